;; outcome: malformed. A note of 4,294,967,295 bytes.
(import "portcullis:policy/diagnostics@0.1.0" "note" (func $note (param i32 i32)))
(func $misbehave (result i32) (call $note (i32.const 256) (i32.const -1)) (call $allow))
