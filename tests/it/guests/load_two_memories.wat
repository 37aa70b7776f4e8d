;; refused: memor
(memory $second 1)
