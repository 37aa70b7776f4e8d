;; outcome: deadline. The hundredth number of Fibonacci, the long way.
(func $fibonacci (param $n i32) (result i64)
  (if (result i64) (i32.lt_u (local.get $n) (i32.const 2))
    (then (i64.extend_i32_u (local.get $n)))
    (else (i64.add
      (call $fibonacci (i32.sub (local.get $n) (i32.const 1)))
      (call $fibonacci (i32.sub (local.get $n) (i32.const 2)))))))
(func $misbehave (result i32) (i32.wrap_i64 (call $fibonacci (i32.const 100))))
