;; Denies with one of the API's codes as its reason.
(data (i32.const 256) "mfa_required")
(func $misbehave (result i32) (call $decide (i32.const 1) (i32.const 256) (i32.const 12)))
