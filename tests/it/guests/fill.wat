;; outcome: deadline. Bulk operations over all of a large memory, again and again (CVE RUSTSEC-2026-0223).
(memory (export "memory") 128)
(func $misbehave (result i32)
  (loop $for_ever
    (memory.fill (i32.const 65536) (i32.const 255) (i32.const 8000000))
    (memory.copy (i32.const 65536) (i32.const 65537) (i32.const 8000000))
    (br $for_ever))
  (unreachable))
