;; outcome: malformed. The ninth of three effects.
(func $misbehave (result i32) (call $decide (i32.const 9) (i32.const 0) (i32.const 0)))
