;; outcome: malformed. Once configured, the room for the host's strings begins at the memory's last byte.
(global $configured (mut i32) (i32.const 0))
(func (export "configure") (param i32 i32) (result i32) (global.set $configured (i32.const 1)) (i32.const 64))
(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
  (select (i32.const 131071) (i32.const 8192) (global.get $configured)))
