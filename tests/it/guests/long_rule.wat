;; outcome: output. One rule's name of 257 bytes.
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store (i32.const 2048) (i32.const 3072))
  (i32.store (i32.const 2052) (i32.const 257))
  (i32.store (i32.const 1048) (i32.const 2048))
  (i32.store (i32.const 1052) (i32.const 1))
  (i32.const 1024))
