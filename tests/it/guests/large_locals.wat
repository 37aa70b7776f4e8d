;; outcome: trap. A function of 40,000 variables that calls itself.
(func $deeper (result i32) (local
;;repeat 40000
  i64
;;end
  ) (local.set 39999 (i64.extend_i32_u (call $deeper))) (i32.wrap_i64 (local.get 39999)))
(func $misbehave (result i32) (call $deeper))
