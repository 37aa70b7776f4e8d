;; outcome: output. A question that is another one each time: it would all be recorded.
(import "portcullis:policy/principal@0.1.0" "claim" (func $claim (param i32 i32 i32)))
(func $misbehave (result i32) (local $left i32)
  (local.set $left (i32.const 1000000))
  (loop $more
    (i32.store (i32.const 512) (i32.or (i32.const 0x40404040) (i32.and (local.get $left) (i32.const 0x0f0f0f0f))))
    (i32.store (i32.const 516) (i32.or (i32.const 0x40404040)
      (i32.and (i32.shr_u (local.get $left) (i32.const 4)) (i32.const 0x0f0f0f0f))))
    (call $claim (i32.const 512) (i32.const 8) (i32.const 528))
    (local.set $left (i32.sub (local.get $left) (i32.const 1)))
    (br_if $more (local.get $left)))
  (call $allow))
