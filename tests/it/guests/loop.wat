;; outcome: deadline
(func $misbehave (result i32) (loop $for_ever (br $for_ever)) (unreachable))
