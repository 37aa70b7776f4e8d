;; outcome: malformed. A reason that lies outside the memory.
(func $misbehave (result i32) (call $decide (i32.const 0) (i32.const 0x7ffffff0) (i32.const 4)))
