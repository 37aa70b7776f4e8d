;; refused: `configure` failed (it may call no import) | principal
(import "portcullis:policy/principal@0.1.0" "id" (func $id (param i32)))
(func (export "configure") (param i32 i32) (result i32) (call $id (i32.const 512)) (i32.const 64))
