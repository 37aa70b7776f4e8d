;; outcome: allow. A reason of 128 bytes.
(func $misbehave (result i32)
  (memory.fill (i32.const 2048) (i32.const 97) (i32.const 128))
  (call $decide (i32.const 0) (i32.const 2048) (i32.const 128)))
