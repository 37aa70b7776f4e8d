;; outcome: trap. A load beyond the memory.
(func $misbehave (result i32) (i32.load (i32.const 0x7fffffff)))
