;; outcome: malformed. Obligations at an address that is not a multiple of four.
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store (i32.const 1056) (i32.const 2050))
  (i32.store (i32.const 1060) (i32.const 1))
  (i32.const 1024))
