;; refused: `configure` failed
(func $deeper (param i64) (result i32) (i32.add (i32.const 1) (call $deeper (i64.add (local.get 0) (i64.const 1)))))
(func (export "configure") (param i32 i32) (result i32) (call $deeper (i64.const 1)))
