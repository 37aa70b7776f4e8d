;; refused: settings: refused without a reason
(func (export "configure") (param i32 i32) (result i32)
  (i32.store8 (i32.const 64) (i32.const 1))
  (i32.const 64))
