;; outcome: memory. Grows page by page and writes to each.
(func $misbehave (result i32)
  (local $page i32)
  (loop $more
    (local.set $page (memory.grow (i32.const 1)))
    (if (i32.eq (local.get $page) (i32.const -1)) (then unreachable))
    (memory.fill (i32.mul (local.get $page) (i32.const 65536)) (i32.const 255) (i32.const 65536))
    (br $more))
  (unreachable))
