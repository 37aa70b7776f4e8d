;; outcome: allow, after 20,000 questions, all the same.
(import "portcullis:policy/principal@0.1.0" "authenticated-at" (func $authenticated (param i32)))
(func $misbehave (result i32) (local $left i32)
  (local.set $left (i32.const 20000))
  (loop $more
    (call $authenticated (i32.const 512))
    (local.set $left (i32.sub (local.get $left) (i32.const 1)))
    (br_if $more (local.get $left)))
  (call $allow))
