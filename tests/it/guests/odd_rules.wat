;; outcome: malformed. A list at an odd address.
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store (i32.const 1048) (i32.const 2049))
  (i32.store (i32.const 1052) (i32.const 1))
  (i32.const 1024))
