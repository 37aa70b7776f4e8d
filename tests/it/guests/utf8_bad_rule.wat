;; outcome: malformed. The second rule's name is not UTF-8.
(data (i32.const 256) "a\ffb")
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store (i32.const 2056) (i32.const 256))
  (i32.store (i32.const 2060) (i32.const 3))
  (i32.store (i32.const 1048) (i32.const 2048))
  (i32.store (i32.const 1052) (i32.const 2))
  (i32.const 1024))
