;; refused: instan
(component
  (core module $e (table 10000 funcref) (memory 16))
;;repeat 1000
  (core instance (instantiate $e))
;;end
  (core module $m
    (memory (export "memory") 1)
    (func (export "f")))
  (core instance $i (instantiate $m))
  (func (export "configure") (canon lift (core func $i "f")))
  (func (export "evaluate") (canon lift (core func $i "f"))))
