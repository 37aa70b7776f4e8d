;; refused: `configure` failed
(data (i32.const 256) "a\ffb")
(func (export "configure") (param i32 i32) (result i32)
  (i32.store8 (i32.const 64) (i32.const 1))
  (i32.store (i32.const 68) (i32.const 512))
  (i32.store (i32.const 72) (i32.const 1))
  (i32.store (i32.const 512) (i32.const 256))
  (i32.store (i32.const 516) (i32.const 3))
  (i32.const 64))
