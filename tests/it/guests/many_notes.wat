;; outcome: allow, after 100,000 notes of 2,000 bytes.
(import "portcullis:policy/diagnostics@0.1.0" "note" (func $note (param i32 i32)))
(func $misbehave (result i32) (local $left i32)
  (local.set $left (i32.const 100000))
  (memory.fill (i32.const 2048) (i32.const 110) (i32.const 2000))
  (loop $more
    (call $note (i32.const 2048) (i32.const 2000))
    (local.set $left (i32.sub (local.get $left) (i32.const 1)))
    (br_if $more (local.get $left)))
  (call $allow))
