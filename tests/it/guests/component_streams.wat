;; refused: async
(component
  (type $s (stream u8))
  (core func (canon stream.new $s))
  (core module $m
    (memory (export "memory") 1)
    (func (export "f")))
  (core instance $i (instantiate $m))
  (func (export "configure") (canon lift (core func $i "f")))
  (func (export "evaluate") (canon lift (core func $i "f"))))
