;; refused: `configure` did not end within 200ms
(func (export "cabi_post_configure") (param i32) (loop $l (br $l)))
