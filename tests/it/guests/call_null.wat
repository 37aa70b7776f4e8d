;; outcome: trap. An indirect call of nothing.
(table 4 funcref)
(func $misbehave (result i32) (call_indirect (result i32) (i32.const 3)))
