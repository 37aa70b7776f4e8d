;; outcome: malformed. A question whose argument is not UTF-8.
(import "portcullis:policy/secret@0.1.0" "custom" (func $custom (param i32 i32 i32)))
(data (i32.const 256) "te\ffam")
(func $misbehave (result i32) (call $custom (i32.const 256) (i32.const 5) (i32.const 528)) (call $allow))
