;; refused: it cannot be instantiated
(component
  (core module $s (func $s (loop $l (br $l))) (start $s))
  (core instance (instantiate $s))
  (core module $m
    (memory (export "memory") 1)
    (func (export "f")))
  (core instance $i (instantiate $m))
  (func (export "configure") (canon lift (core func $i "f")))
  (func (export "evaluate") (canon lift (core func $i "f"))))
