;; refused: `configure` failed
(func (export "configure") (param i32 i32) (result i32)
  (loop $more (br_if $more (i32.ne (i32.const -1) (memory.grow (i32.const 16)))))
  (unreachable))
