;; outcome: trap. A call of a typed reference to nothing.
(type $f (func (result i32)))
(func $misbehave (result i32) (call_ref $f (ref.null $f)))
