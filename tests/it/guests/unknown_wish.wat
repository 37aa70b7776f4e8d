;; Allows, with a duty that the vault does not know and need not.
(data (i32.const 256) "sing-a-song")
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store (i32.const 2048) (i32.const 256))
  (i32.store (i32.const 2052) (i32.const 11))
  (i32.store (i32.const 1056) (i32.const 2048))
  (i32.store (i32.const 1060) (i32.const 1))
  (i32.const 1024))
