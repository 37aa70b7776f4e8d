;; outcome: allow. Takes all the memory that it may have when it is configured; there is room to read it nevertheless.
(func (export "configure") (param i32 i32) (result i32)
  (loop $more (br_if $more (i32.ne (i32.const -1) (memory.grow (i32.const 1)))))
  (memory.fill (i32.const 65536) (i32.const 1) (i32.const 16000000))
  (i32.const 64))
