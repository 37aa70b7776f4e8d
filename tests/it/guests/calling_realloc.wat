;; outcome: trap. Once configured, calls the host while the host is handing over a string.
(import "portcullis:policy/context@0.1.0" "now" (func $now (result i64)))
(global $configured (mut i32) (i32.const 0))
(func (export "configure") (param i32 i32) (result i32) (global.set $configured (i32.const 1)) (i32.const 64))
(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
  (if (global.get $configured) (then (drop (call $now))))
  (i32.const 8192))
