;; outcome: output. A million rules, all of them there.
(memory (export "memory") 200)
(func $misbehave (result i32)
  (drop (call $allow))
  (i32.store (i32.const 1048) (i32.const 65536))
  (i32.store (i32.const 1052) (i32.const 1000000))
  (i32.const 1024))
