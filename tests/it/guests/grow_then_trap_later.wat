;; Is refused memory at a path that does not end in `x`, bears it, and traps for another reason at one that does.
(func (export "evaluate") (param i32 i32) (param $path i32) (param $length i32) (result i32)
  (if (call $provoked (local.get $path) (local.get $length)) (then unreachable))
  (drop (memory.grow (i32.const 65000)))
  (call $allow))
