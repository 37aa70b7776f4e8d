;; outcome: output. 64 obligations with 64 arguments of 256 bytes, all of them the same: 1 MB of 20 KB.
(func $misbehave (result i32) (local $i i32)
  (drop (call $allow))
  (memory.fill (i32.const 16384) (i32.const 97) (i32.const 256))
  (loop $arguments
    (i32.store (i32.add (i32.const 12288) (i32.mul (local.get $i) (i32.const 8))) (i32.const 16384))
    (i32.store (i32.add (i32.const 12292) (i32.mul (local.get $i) (i32.const 8))) (i32.const 256))
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (br_if $arguments (i32.lt_u (local.get $i) (i32.const 64))))
  (local.set $i (i32.const 0))
  (loop $obligations
    (i32.store (i32.add (i32.const 20488) (i32.mul (local.get $i) (i32.const 20))) (i32.const 12288))
    (i32.store (i32.add (i32.const 20492) (i32.mul (local.get $i) (i32.const 20))) (i32.const 64))
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (br_if $obligations (i32.lt_u (local.get $i) (i32.const 64))))
  (i32.store (i32.const 1056) (i32.const 20480))
  (i32.store (i32.const 1060) (i32.const 64))
  (i32.const 1024))
