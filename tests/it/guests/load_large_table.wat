;; refused: table
(table 200000 funcref)
