;; Denies with the number of this call in this instance: "call-1", "call-2", up to "call-9".
(data (i32.const 256) "call-")
(global $calls (mut i32) (i32.const 0))
(func (export "evaluate") (param i32 i32 i32 i32) (result i32)
  (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
  (i32.store8 (i32.const 261) (i32.add (i32.const 48) (global.get $calls)))
  (call $decide (i32.const 1) (i32.const 256) (i32.const 6)))
