;; refused: it cannot be snapshotted: unsupported `data.drop` instruction
(data $some "four")
(func (data.drop $some))
