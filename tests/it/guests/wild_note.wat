;; outcome: malformed. A note that ends outside the memory.
(import "portcullis:policy/diagnostics@0.1.0" "note" (func $note (param i32 i32)))
(func $misbehave (result i32) (call $note (i32.const 131000) (i32.const 100)) (call $allow))
