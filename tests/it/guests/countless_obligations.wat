;; outcome: malformed. 4,294,967,295 obligations, whose bytes wrap around to few.
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store (i32.const 1056) (i32.const 2048))
  (i32.store (i32.const 1060) (i32.const -1))
  (i32.const 1024))
