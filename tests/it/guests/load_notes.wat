;; refused: `configure` failed (it may call no import) | diagnostics
(import "portcullis:policy/diagnostics@0.1.0" "note" (func $note (param i32 i32)))
(func (export "configure") (param i32 i32) (result i32) (call $note (i32.const 256) (i32.const 1)) (i32.const 64))
