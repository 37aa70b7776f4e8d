;; outcome: malformed. The answer itself lies outside the memory.
(func $misbehave (result i32) (i32.const 0x7ffffff0))
