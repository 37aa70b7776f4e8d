;; refused: it cannot be instantiated
(func $start (unreachable))
(start $start)
