;; refused: instan
(component
;;repeat 1000
  (core module $e# (memory 1))
  (core instance (instantiate $e#))
;;end
  (core module $m
    (memory (export "memory") 1)
    (func (export "f")))
  (core instance $i (instantiate $m))
  (func (export "configure") (canon lift (core func $i "f")))
  (func (export "evaluate") (canon lift (core func $i "f"))))
