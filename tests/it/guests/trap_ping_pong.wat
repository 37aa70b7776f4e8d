;; outcome: trap. Two functions that call one another without end.
(func $ping (param i32) (result i32) (i32.add (i32.const 1) (call $pong (local.get 0))))
(func $pong (param i32) (result i32) (i32.mul (i32.const 3) (call $ping (local.get 0))))
(func $misbehave (result i32) (call $ping (i32.const 1)))
