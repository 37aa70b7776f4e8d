;; refused: it cannot be snapshotted: unsupported `table.init` instruction
(table 1 funcref)
(elem $some func $allow)
(func (table.init $some (i32.const 0) (i32.const 0) (i32.const 1)))
