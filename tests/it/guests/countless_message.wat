;; outcome: malformed. A message of 2,147,483,648 bytes.
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store8 (i32.const 1036) (i32.const 1))
  (i32.store (i32.const 1040) (i32.const 256))
  (i32.store (i32.const 1044) (i32.const 0x80000000))
  (i32.const 1024))
