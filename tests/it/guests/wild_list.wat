;; outcome: malformed. A list that ends outside the memory.
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store (i32.const 1048) (i32.const 131064))
  (i32.store (i32.const 1052) (i32.const 2))
  (i32.const 1024))
