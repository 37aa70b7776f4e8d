;; refused: `configure` failed
(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (unreachable))
