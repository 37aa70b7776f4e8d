;; outcome: output. A reason of 129 bytes.
(func $misbehave (result i32)
  (memory.fill (i32.const 2048) (i32.const 97) (i32.const 129))
  (call $decide (i32.const 0) (i32.const 2048) (i32.const 129)))
