;; outcome: malformed. 4,294,967,295 rules, which no memory holds.
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store (i32.const 1048) (i32.const 2048))
  (i32.store (i32.const 1052) (i32.const -1))
  (i32.const 1024))
