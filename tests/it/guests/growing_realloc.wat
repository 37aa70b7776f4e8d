;; outcome: memory. Once configured, wants 32 MB for each of the host's strings.
(global $configured (mut i32) (i32.const 0))
(func (export "configure") (param i32 i32) (result i32) (global.set $configured (i32.const 1)) (i32.const 64))
(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
  (if (global.get $configured)
    (then (if (i32.eq (i32.const -1) (memory.grow (i32.const 512))) (then unreachable))))
  (i32.const 8192))
