;; outcome: deadline. Grows by nothing, without end.
(func $misbehave (result i32) (loop $for_ever (drop (memory.grow (i32.const 0))) (br $for_ever)) (unreachable))
