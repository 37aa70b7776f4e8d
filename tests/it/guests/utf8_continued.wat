;; outcome: malformed. A continuation of nothing.
(data (i32.const 256) "a\bf")
(func $misbehave (result i32) (call $decide (i32.const 0) (i32.const 256) (i32.const 2)))
