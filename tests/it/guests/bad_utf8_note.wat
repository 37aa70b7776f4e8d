;; outcome: malformed. A note that is not UTF-8.
(import "portcullis:policy/diagnostics@0.1.0" "note" (func $note (param i32 i32)))
(data (i32.const 256) "\80")
(func $misbehave (result i32) (call $note (i32.const 256) (i32.const 1)) (call $allow))
