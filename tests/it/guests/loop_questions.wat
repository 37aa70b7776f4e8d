;; outcome: deadline. The same question without end.
(import "portcullis:policy/context@0.1.0" "now" (func $now (result i64)))
(func $misbehave (result i32) (loop $for_ever (drop (call $now)) (br $for_ever)) (unreachable))
