;; outcome: malformed. A reason of 4,294,967,295 bytes.
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store (i32.const 1028) (i32.const 1))
  (i32.store (i32.const 1032) (i32.const -1))
  (i32.const 1024))
