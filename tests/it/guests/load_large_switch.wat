;; refused: exceeds the implementation limit
(func (block $end (br_table
;;repeat 3000000
  $end
;;end
  (i32.const 7))))
