;; outcome: malformed. An option that is neither some nor none.
(func $misbehave (result i32) (drop (call $allow)) (i32.store8 (i32.const 1036) (i32.const 7)) (i32.const 1024))
