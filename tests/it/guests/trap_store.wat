;; outcome: trap. A store that straddles the end of the memory.
(func $misbehave (result i32) (i64.store (i32.const 131068) (i64.const 1)) (call $allow))
