;; outcome: trap. A quotient that does not fit.
(func $misbehave (result i32) (i32.div_s (i32.const 0x80000000) (i32.const -1)))
