;; outcome: memory. Asks for the caller's name until the strings, 64 KiB of room for each, fill its memory.
(import "portcullis:policy/principal@0.1.0" "id" (func $id (param i32)))
(global $heap (mut i32) (i32.const 8192))
(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
  (global.set $heap (i32.add (global.get $heap) (i32.const 65536)))
  (if (i32.gt_u (i32.add (global.get $heap) (i32.const 65536)) (i32.mul (memory.size) (i32.const 65536)))
    (then (if (i32.eq (i32.const -1) (memory.grow (i32.const 1))) (then unreachable))))
  (global.get $heap))
(func $misbehave (result i32) (loop $for_ever (call $id (i32.const 512)) (br $for_ever)) (unreachable))
