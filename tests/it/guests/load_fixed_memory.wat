;; refused: its memory cannot be read (its type must allow two pages more)
(memory (export "memory") 2 2)
