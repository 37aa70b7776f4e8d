;; refused: `configure` failed
(func (export "configure") (param i32 i32) (result i32)
  (i32.store8 (i32.const 64) (i32.const 1))
  (i32.store (i32.const 68) (i32.const 513))
  (i32.store (i32.const 72) (i32.const 1))
  (i32.const 64))
