;; outcome: memory. Asks for the caller's name until the strings fill its memory.
(import "portcullis:policy/principal@0.1.0" "id" (func $id (param i32)))
(func $misbehave (result i32) (loop $for_ever (call $id (i32.const 512)) (br $for_ever)) (unreachable))
