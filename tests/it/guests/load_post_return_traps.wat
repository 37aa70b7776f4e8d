;; refused: `configure` failed
(func (export "cabi_post_configure") (param i32) (unreachable))
