;; outcome: malformed. A question whose argument lies outside the memory.
(import "portcullis:policy/principal@0.1.0" "claim" (func $claim (param i32 i32 i32)))
(func $misbehave (result i32) (call $claim (i32.const 131070) (i32.const 8) (i32.const 528)) (call $allow))
