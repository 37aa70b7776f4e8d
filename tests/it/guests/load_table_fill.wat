;; refused: it cannot be snapshotted: unsupported `table.fill` instruction
(table 1 funcref)
(func (table.fill (i32.const 0) (ref.null func) (i32.const 1)))
