;; outcome: trap. A copy that ends beyond the memory.
(func $misbehave (result i32)
  (memory.copy (i32.const 0) (i32.const 131000) (i32.const 1000))
  (call $allow))
