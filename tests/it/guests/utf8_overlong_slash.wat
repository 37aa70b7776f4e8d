;; outcome: malformed. A slash in three bytes.
(data (i32.const 256) "a\e0\80\afb")
(func $misbehave (result i32) (call $decide (i32.const 0) (i32.const 256) (i32.const 5)))
