;; outcome: output. A message of 1,025 bytes.
(func $misbehave (result i32)
  (memory.fill (i32.const 2048) (i32.const 97) (i32.const 1025))
  (drop (call $allow))
  (i32.store8 (i32.const 1036) (i32.const 1))
  (i32.store (i32.const 1040) (i32.const 2048))
  (i32.store (i32.const 1044) (i32.const 1025))
  (i32.const 1024))
