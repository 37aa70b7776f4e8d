;; outcome: malformed. The first two bytes of three.
(data (i32.const 256) "\e2\82")
(func $misbehave (result i32) (call $decide (i32.const 0) (i32.const 256) (i32.const 2)))
