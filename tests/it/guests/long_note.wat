;; outcome: output. One note of 1 MB.
(import "portcullis:policy/diagnostics@0.1.0" "note" (func $note (param i32 i32)))
(memory (export "memory") 32)
(func $misbehave (result i32) (call $note (i32.const 2048) (i32.const 1000000)) (call $allow))
