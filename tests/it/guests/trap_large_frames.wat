;; outcome: trap. Recursion without end in which each call keeps 200 numbers.
(func $deeper (param $n i64) (result i64)
  (local.get $n)
;;repeat 200
  (i64.mul (local.get $n) (i64.const #))
;;end
  (call $deeper (i64.add (local.get $n) (i64.const 1)))
;;repeat 201
  i64.xor
;;end
)
(func $misbehave (result i32) (i32.wrap_i64 (call $deeper (i64.const 3))))
