;; Denies paths that end in `x`, with a reason of its own and a message.
(data (i32.const 256) "outside-office-hoursCome back in the morning")
(func $misbehave (result i32)
  (drop (call $decide (i32.const 1) (i32.const 256) (i32.const 20)))
  (i32.store8 (i32.const 1036) (i32.const 1))
  (i32.store (i32.const 1040) (i32.const 276))
  (i32.store (i32.const 1044) (i32.const 24))
  (i32.const 1024))
