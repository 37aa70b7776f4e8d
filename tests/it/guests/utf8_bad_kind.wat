;; outcome: malformed. An obligation whose kind is not UTF-8.
(data (i32.const 256) "a\ffb")
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store (i32.const 2048) (i32.const 256))
  (i32.store (i32.const 2052) (i32.const 3))
  (i32.store (i32.const 1056) (i32.const 2048))
  (i32.store (i32.const 1060) (i32.const 1))
  (i32.const 1024))
