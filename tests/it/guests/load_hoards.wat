;; refused: memory minimum size of 1024 pages exceeds memory limits
(memory (export "memory") 1024)
