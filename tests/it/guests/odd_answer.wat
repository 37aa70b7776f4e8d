;; outcome: malformed. The answer is not aligned.
(func $misbehave (result i32) (i32.add (call $allow) (i32.const 1)))
