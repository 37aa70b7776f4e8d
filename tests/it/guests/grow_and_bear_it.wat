;; outcome: allow. Is refused memory, and does without.
(func $misbehave (result i32) (drop (memory.grow (i32.const 65000))) (call $allow))
