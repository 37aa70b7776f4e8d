;; outcome: deadline. Notes without end: far more time in the host than in the guest.
(import "portcullis:policy/diagnostics@0.1.0" "note" (func $note (param i32 i32)))
(func $misbehave (result i32) (loop $for_ever (call $note (i32.const 2048) (i32.const 8)) (br $for_ever)) (unreachable))
