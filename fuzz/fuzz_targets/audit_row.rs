//! Rows of the audit log as a store may hand them back: unpacked or refused, and what is shown of one holds together.

#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::{audit::unpack, domain::StoredAuditRow};

fuzz_target!(|input: (u32, &[u8])| {
    let (sequence, body) = input;
    let row = StoredAuditRow { sequence: sequence.into(), body: body.to_vec() };
    let Some(entries) = unpack(&row) else { return };
    let shown = serde_json::to_value(&entries).expect("what is shown can be written");
    for (place, entry) in entries.iter().enumerate() {
        let index = entries.len() - 1 - place;
        assert_eq!(entry.position, (row.sequence, index), "newest first, none left out");
        assert_eq!(entry.success, matches!(entry.code.as_str(), "ok" | "not_modified"));
        assert_eq!(shown[place]["id"], format!("evt_{sequence}_{index}"));
    }
    assert_eq!(unpack(&row), Some(entries), "read twice, read the same");
});
