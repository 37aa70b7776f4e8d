;; refused: it cannot be instantiated
(data (i32.const 131070) "four")
