;; outcome: malformed. A character beyond the last.
(data (i32.const 256) "\f4\90\80\80")
(func $misbehave (result i32) (call $decide (i32.const 0) (i32.const 256) (i32.const 4)))
