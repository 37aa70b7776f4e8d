;; outcome: malformed. An option of 255.
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store8 (i32.const 1036) (i32.const 255))
  (i32.const 1024))
