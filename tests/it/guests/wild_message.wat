;; outcome: malformed. A message that lies outside the memory.
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store8 (i32.const 1036) (i32.const 1))
  (i32.store (i32.const 1040) (i32.const -16))
  (i32.store (i32.const 1044) (i32.const 8))
  (i32.const 1024))
