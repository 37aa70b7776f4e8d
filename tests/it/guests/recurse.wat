;; outcome: trap. Recursion without end: the stack is the guest's, not the host's.
(func $deeper (param i64 i64 i64 i64) (result i32)
  (i32.add (i32.const 1)
    (call $deeper (local.get 1) (local.get 2) (local.get 3) (i64.add (local.get 0) (i64.const 1)))))
(func $misbehave (result i32) (call $deeper (i64.const 1) (i64.const 2) (i64.const 3) (i64.const 4)))
