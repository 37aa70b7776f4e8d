;; outcome: malformed. A zero in two bytes.
(data (i32.const 256) "\c0\80")
(func $misbehave (result i32) (call $decide (i32.const 0) (i32.const 256) (i32.const 2)))
