;; outcome: malformed. The first effect beyond the last.
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store8 (i32.const 1024) (i32.const 3))
  (i32.const 1024))
