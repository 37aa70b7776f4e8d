;; outcome: output. A reason of 10 MB, all of it there.
(memory (export "memory") 200)
(func $misbehave (result i32) (call $decide (i32.const 0) (i32.const 65536) (i32.const 10000000)))
