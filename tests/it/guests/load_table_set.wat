;; refused: it cannot be snapshotted: unsupported `table.set` instruction
(table 1 funcref)
(func (table.set (i32.const 0) (ref.null func)))
