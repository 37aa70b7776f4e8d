;; outcome: malformed. Arguments that end outside the memory.
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store (i32.const 2056) (i32.const 131064))
  (i32.store (i32.const 2060) (i32.const 2))
  (i32.store (i32.const 1056) (i32.const 2048))
  (i32.store (i32.const 1060) (i32.const 1))
  (i32.const 1024))
