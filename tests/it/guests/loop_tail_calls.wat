;; outcome: deadline. Tail calls without end, which need no stack.
(func $for_ever (param i32) (result i32) (return_call $for_ever (i32.add (local.get 0) (i32.const 1))))
(func $misbehave (result i32) (call $for_ever (i32.const 1)))
