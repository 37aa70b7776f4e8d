;; outcome: malformed. The room for a list lies at an odd address.
(import "portcullis:policy/principal@0.1.0" "scopes" (func $scopes (param i32)))
(global $heap (mut i32) (i32.const 8193))
(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
  (global.set $heap (i32.add (global.get $heap) (i32.const 512)))
  (global.get $heap))
(func $misbehave (result i32) (call $scopes (i32.const 512)) (call $allow))
