;; outcome: trap. 5,000 functions, each of which calls the one before.
(func $f0 (result i32) (unreachable))
;;repeat 5000
(func (result i32) (call $f0))
;;end
(func $misbehave (result i32) (call $f0))
