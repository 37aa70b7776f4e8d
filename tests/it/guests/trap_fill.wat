;; outcome: trap. A fill of 4 GiB.
(func $misbehave (result i32) (memory.fill (i32.const 1) (i32.const 0) (i32.const -1)) (call $allow))
