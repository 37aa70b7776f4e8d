;; outcome: deadline. Three loops within one another, each endless.
(func $misbehave (result i32)
  (local $i i32)
  (loop $a
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (loop $b
      (br_if $a (i32.and (local.get $i) (i32.const 1)))
      (loop $c
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $b (i32.and (local.get $i) (i32.const 2)))
        (br_if $c (i32.and (local.get $i) (i32.const 4)))
        (br $a))))
  (unreachable))
