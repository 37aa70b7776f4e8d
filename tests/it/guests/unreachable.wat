;; outcome: trap
(func $misbehave (result i32) (unreachable))
