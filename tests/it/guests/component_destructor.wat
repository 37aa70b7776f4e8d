;; refused: its `configure`
(component
  (core module $d (func (export "d") (param i32) (unreachable)))
  (core instance $di (instantiate $d))
  (type $thing (resource (rep i32) (dtor (func $di "d"))))
  (core module $m
    (memory (export "memory") 1)
    (func (export "f")))
  (core instance $i (instantiate $m))
  (func (export "configure") (canon lift (core func $i "f")))
  (func (export "evaluate") (canon lift (core func $i "f"))))
