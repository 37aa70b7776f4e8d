;; outcome: malformed. 536,870,912 arguments, whose bytes wrap around to none.
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store (i32.const 2056) (i32.const 3072))
  (i32.store (i32.const 2060) (i32.const 0x20000000))
  (i32.store (i32.const 1056) (i32.const 2048))
  (i32.store (i32.const 1060) (i32.const 1))
  (i32.const 1024))
