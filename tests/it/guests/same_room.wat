;; outcome: allow. All of the host's strings are put at one place, one over the other: a confusion of its own.
(import "portcullis:policy/principal@0.1.0" "groups" (func $groups (param i32)))
(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8192))
(func $misbehave (result i32) (call $groups (i32.const 512)) (call $allow))
