;; outcome: trap. An indirect call of a function of another type.
(table 1 funcref)
(elem (i32.const 0) $allow)
(func $misbehave (result i32) (call_indirect (param i64) (result i32) (i64.const 1) (i32.const 0)))
