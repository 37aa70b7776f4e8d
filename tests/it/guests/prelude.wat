;; What every guest is wrapped in, part by part where it does not define the part itself (see hostile_policies.rs).
;; A path that ends in `x` is the one that a guest misbehaves at; every other is allowed.

;;part "memory"
(memory (export "memory") 2)
;;part "cabi_realloc"
(global $heap (mut i32) (i32.const 8192))
(func $realloc (export "cabi_realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32)
  (result i32) (local $at i32)
  (local.set $at (i32.and
    (i32.add (global.get $heap) (i32.sub (local.get $align) (i32.const 1)))
    (i32.sub (i32.const 0) (local.get $align))))
  (global.set $heap (i32.add (local.get $at) (local.get $size)))
  (if (i32.gt_u (global.get $heap) (i32.mul (memory.size) (i32.const 65536)))
    (then (if (i32.eq (i32.const -1) (memory.grow (i32.add (i32.const 1) (i32.shr_u (local.get $size) (i32.const 16)))))
      (then unreachable))))
  (local.get $at))
;;part "configure"
;; `ok`: at 64 there are zeros.
(func (export "configure") (param i32 i32) (result i32) (i32.const 64))
;;part "evaluate"
(func (export "evaluate") (param $action i32) (param $action_length i32) (param $path i32) (param $length i32)
  (result i32)
  (if (result i32) (call $provoked (local.get $path) (local.get $length))
    (then (call $misbehave))
    (else (call $allow))))
;;part "$misbehave"
(func $misbehave (result i32) (call $allow))
;;part always
(func $provoked (param $path i32) (param $length i32) (result i32)
  (i32.eq (i32.const 120)
    (i32.load8_u (i32.sub (i32.add (local.get $path) (local.get $length)) (i32.const 1)))))
;; A decision at 1024: effect, reason, then no message, no rules, no obligations.
(func $decide (param $effect i32) (param $reason i32) (param $length i32) (result i32)
  (memory.fill (i32.const 1024) (i32.const 0) (i32.const 40))
  (i32.store8 (i32.const 1024) (local.get $effect))
  (i32.store (i32.const 1028) (local.get $reason))
  (i32.store (i32.const 1032) (local.get $length))
  (i32.const 1024))
(func $allow (result i32) (call $decide (i32.const 0) (i32.const 0) (i32.const 0)))
