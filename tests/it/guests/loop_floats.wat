;; outcome: deadline. Square roots without end.
(func $misbehave (result i32)
  (local $x f64)
  (local.set $x (f64.const 2))
  (loop $for_ever (local.set $x (f64.sqrt (f64.add (local.get $x) (f64.const 1)))) (br $for_ever))
  (unreachable))
