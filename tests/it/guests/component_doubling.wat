;; refused: nested components with modules
(component
  (component $c0 (core module $m (memory 1)) (core instance (instantiate $m)))
;;repeat 20
  (component $d#
    (component $leaf (core module $m (memory 1)) (core instance (instantiate $m)))
    (instance (instantiate $leaf))
    (instance (instantiate $leaf)))
  (instance (instantiate $d#))
  (instance (instantiate $d#))
;;end
  (core module $m
    (memory (export "memory") 1)
    (func (export "f")))
  (core instance $i (instantiate $m))
  (func (export "configure") (canon lift (core func $i "f")))
  (func (export "evaluate") (canon lift (core func $i "f"))))
