;; Takes 12 MB and writes to all of it; traps then at paths that end in `x`.
(func (export "evaluate") (param i32 i32) (param $path i32) (param $length i32) (result i32)
  (if (i32.lt_u (memory.size) (i32.const 192)) (then (drop (memory.grow (i32.const 190)))))
  (memory.fill (i32.const 65536) (i32.const 255) (i32.const 12000000))
  (if (call $provoked (local.get $path) (local.get $length)) (then unreachable))
  (call $allow))
