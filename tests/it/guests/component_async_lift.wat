;; refused: async
(component
  (core module $m (memory (export "memory") 1) (func (export "f")) (func (export "g") (param i32 i32 i32) (result i32) (i32.const 0)))
  (core instance $i (instantiate $m))
  (func (export "configure") async (canon lift (core func $i "f") async (callback (func $i "g"))))
  (func (export "evaluate") async (canon lift (core func $i "f") async (callback (func $i "g")))))
