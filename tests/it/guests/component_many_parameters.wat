;; refused: param
(component
  (core module (func (param
;;repeat 1001
  i32
;;end
  )))
  (core module $m
    (memory (export "memory") 1)
    (func (export "f")))
  (core instance $i (instantiate $m))
  (func (export "configure") (canon lift (core func $i "f")))
  (func (export "evaluate") (canon lift (core func $i "f"))))
