;; outcome: malformed. A rule's name that lies outside the memory.
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store (i32.const 2048) (i32.const 0x7ffffff0))
  (i32.store (i32.const 2052) (i32.const 4))
  (i32.store (i32.const 1048) (i32.const 2048))
  (i32.store (i32.const 1052) (i32.const 1))
  (i32.const 1024))
