;; refused: it cannot be snapshotted: unsupported `table.copy` instruction
(table 1 funcref)
(func (table.copy (i32.const 0) (i32.const 0) (i32.const 1)))
