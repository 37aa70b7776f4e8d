;; Denies with the code that is the host's alone.
(data (i32.const 256) "policy_error")
(func $misbehave (result i32) (call $decide (i32.const 1) (i32.const 256) (i32.const 12)))
