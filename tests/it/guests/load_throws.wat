;; refused: exception
(tag $oops)
(func (throw $oops))
