;; outcome: deadline. Copies a data segment without end.
(data $some "some bytes that are copied for ever")
(func $misbehave (result i32)
  (loop $for_ever
    (memory.init $some (i32.const 4096) (i32.const 0) (i32.const 35))
    (br $for_ever))
  (unreachable))
