;; refused: it cannot be instantiated
(table 1 funcref)
(elem (i32.const 1) $allow)
