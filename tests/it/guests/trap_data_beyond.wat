;; outcome: trap. More of a data segment than there is.
(data $some "four")
(func $misbehave (result i32)
  (memory.init $some (i32.const 0) (i32.const 0) (i32.const 5))
  (call $allow))
