;; refused: page
(memory (export "memory") 65536 (pagesize 1))
