;; outcome: malformed. The place for a question's answer is not aligned.
(import "portcullis:policy/principal@0.1.0" "id" (func $id (param i32)))
(func $misbehave (result i32) (call $id (i32.const 513)) (call $allow))
