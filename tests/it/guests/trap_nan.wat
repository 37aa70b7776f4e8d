;; outcome: trap. What is no number becomes no integer.
(func $misbehave (result i32) (i32.trunc_f64_s (f64.const nan)))
