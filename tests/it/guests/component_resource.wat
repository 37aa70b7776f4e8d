;; refused: its `configure`
(component
  (type $thing (resource (rep i32)))
  (core func (canon resource.new $thing))
  (core func (canon resource.drop $thing))
  (core module $m
    (memory (export "memory") 1)
    (func (export "f")))
  (core instance $i (instantiate $m))
  (func (export "configure") (canon lift (core func $i "f")))
  (func (export "evaluate") (canon lift (core func $i "f"))))
