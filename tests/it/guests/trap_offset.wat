;; outcome: trap. An address that would wrap around.
(func $misbehave (result i32) (i32.load offset=0xffffffff (i32.const 0xffffffff)))
