;; outcome: output. Questions about the secret, another one each time.
(import "portcullis:policy/secret@0.1.0" "custom" (func $custom (param i32 i32 i32)))
(func $misbehave (result i32) (local $left i32)
  (memory.fill (i32.const 2048) (i32.const 97) (i32.const 100))
  (local.set $left (i32.const 100))
  (loop $more
    (call $custom (i32.const 2048) (local.get $left) (i32.const 528))
    (local.set $left (i32.sub (local.get $left) (i32.const 1)))
    (br_if $more (local.get $left)))
  (call $allow))
