;; Denies with the path as its reason.
(func (export "evaluate") (param i32 i32) (param $path i32) (param $length i32) (result i32)
  (call $decide (i32.const 1) (local.get $path) (local.get $length)))
