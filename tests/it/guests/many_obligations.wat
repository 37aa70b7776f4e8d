;; outcome: output. 65 obligations.
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store (i32.const 1056) (i32.const 2048))
  (i32.store (i32.const 1060) (i32.const 65))
  (i32.const 1024))
