;; refused: gc
(rec (type $a (struct (field (ref null $b)))) (type $b (struct (field (ref null $a)))))
(func (param (ref null $a)))
