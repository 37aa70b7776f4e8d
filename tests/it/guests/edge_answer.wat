;; outcome: malformed. The answer's last byte lies outside the memory.
(func $misbehave (result i32) (i32.const 131036))
