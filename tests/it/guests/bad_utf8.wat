;; outcome: malformed
(data (i32.const 256) "\ff\fe\c0")
(func $misbehave (result i32) (call $decide (i32.const 0) (i32.const 256) (i32.const 3)))
