;; Keeps the first caller's name and gives it as the reason of every denial: whoever sees another's name has met an
;; instance that served somebody else.
(import "portcullis:policy/principal@0.1.0" "id" (func $id (param i32)))
(global $known (mut i32) (i32.const 0))
(func (export "evaluate") (param i32 i32 i32 i32) (result i32)
  (if (i32.eqz (global.get $known)) (then
    (call $id (i32.const 512))
    (global.set $known (i32.const 1))))
  (call $decide (i32.const 1) (i32.load (i32.const 512)) (i32.load (i32.const 516))))
