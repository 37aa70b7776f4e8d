;; outcome: trap, below 3,000 blocks within one another.
(func $misbehave (result i32)
;;repeat 3000
  block
;;end
  unreachable
;;repeat 3000
  end
;;end
  call $allow)
