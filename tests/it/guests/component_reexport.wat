;; refused: it imports `evaluate`
(component
  (import "configure" (func $c))
  (import "evaluate" (func $e))
  (export "configure" (func $c))
  (export "evaluate" (func $e)))
