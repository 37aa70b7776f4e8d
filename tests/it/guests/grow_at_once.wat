;; outcome: memory. Asks for 4 GiB at once.
(func $misbehave (result i32)
  (if (i32.eq (i32.const -1) (memory.grow (i32.const 65000))) (then unreachable))
  (call $allow))
