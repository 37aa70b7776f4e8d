;; outcome: deadline. A loop whose end is the last of 10,000 branches that are never taken.
(func $misbehave (result i32)
  (loop $for_ever
    (block $end
      (br_table
;;repeat 10000
        $for_ever
;;end
        $end (i32.const 7))))
  (unreachable))
