;; outcome: output. 65 names of rules, all empty.
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store (i32.const 1048) (i32.const 2048))
  (i32.store (i32.const 1052) (i32.const 65))
  (i32.const 1024))
