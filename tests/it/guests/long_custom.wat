;; outcome: output. A question about the secret of 513 bytes.
(import "portcullis:policy/secret@0.1.0" "custom" (func $custom (param i32 i32 i32)))
(func $misbehave (result i32)
  (memory.fill (i32.const 2048) (i32.const 97) (i32.const 513))
  (call $custom (i32.const 2048) (i32.const 513) (i32.const 528))
  (call $allow))
