;; outcome: malformed. Half of a surrogate pair, as no UTF-8 has it.
(data (i32.const 256) "\ed\a0\80")
(func $misbehave (result i32) (call $decide (i32.const 0) (i32.const 256) (i32.const 3)))
