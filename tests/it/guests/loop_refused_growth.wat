;; outcome: deadline. Asks for memory that it may not have, without end.
(func $misbehave (result i32)
  (loop $for_ever (drop (memory.grow (i32.const 65000))) (br $for_ever))
  (unreachable))
