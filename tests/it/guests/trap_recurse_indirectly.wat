;; outcome: trap. Recursion without end through a table.
(table 1 funcref)
(elem (i32.const 0) $again)
(func $again (result i32) (i32.add (i32.const 1) (call_indirect (result i32) (i32.const 0))))
(func $misbehave (result i32) (call $again))
