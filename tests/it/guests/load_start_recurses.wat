;; refused: it cannot be instantiated
(func $start (call $start) (call $start))
(start $start)
