;; outcome: trap, after an answer that allows.
(global $provoked_now (mut i32) (i32.const 0))
(func $misbehave (result i32) (global.set $provoked_now (i32.const 1)) (call $allow))
(func (export "cabi_post_evaluate") (param i32) (if (global.get $provoked_now) (then unreachable)))
