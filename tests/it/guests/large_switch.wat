;; outcome: trap. A choice between 60,000 branches.
(func $misbehave (result i32)
  (block $end
    (br_table
;;repeat 60000
      $end
;;end
      $end (i32.const 59999)))
  (unreachable))
