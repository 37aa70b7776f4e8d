;; refused: shared
(memory (export "memory") 2 10 shared)
