;; outcome: output. An obligation whose kind has 257 bytes.
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store (i32.const 2048) (i32.const 3072))
  (i32.store (i32.const 2052) (i32.const 257))
  (i32.store (i32.const 1056) (i32.const 2048))
  (i32.store (i32.const 1060) (i32.const 1))
  (i32.const 1024))
