;; refused: it cannot be snapshotted: unsupported `table.grow` instruction
(table 1 funcref)
(func (drop (table.grow (ref.null func) (i32.const 1))))
