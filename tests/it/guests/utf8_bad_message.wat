;; outcome: malformed. A message that is not UTF-8.
(data (i32.const 256) "a\ffb")
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store8 (i32.const 1036) (i32.const 1))
  (i32.store (i32.const 1040) (i32.const 256))
  (i32.store (i32.const 1044) (i32.const 3))
  (i32.const 1024))
