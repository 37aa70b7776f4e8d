;; refused: it cannot be instantiated
(func $start (loop $l (br $l)))
(start $start)
