;; refused: it does not export `configure` | it does not export `evaluate`
(component
  (component $c)
  (instance $i (instantiate $c))
  (export "configure" (instance $i))
  (export "evaluate" (instance $i)))
