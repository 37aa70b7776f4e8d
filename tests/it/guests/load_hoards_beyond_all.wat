;; refused: exceeds
(memory (export "memory") 65536)
