;; outcome: trap. A vector loaded beyond the memory.
(func $misbehave (result i32) (i32x4.extract_lane 0 (v128.load (i32.const 131060))))
