//! Rows of the audit log as a store may hand them back: unpacked or refused, and what is shown of one holds together;
//! verified, a row that this vault did not write is never taken for one.

#![no_main]

use std::{borrow::Cow, sync::Arc};

use libfuzzer_sys::fuzz_target;
use portcullis::{
    audit::{AuditKeys, Verifier, unpack},
    domain::{AuditPlace, AuditRow, StoredAuditRow, Timestamp},
};

fuzz_target!(|input: (u32, &[u8])| {
    let (number, body) = input;
    let row = AuditRow {
        at: Timestamp::from_micros(number.into()),
        tenant: None,
        identity_id: None,
        identity_type: None,
        action: Cow::Borrowed(if number % 2 == 0 { "checkpoint" } else { "read" }),
        source_ip: None,
        request_id: String::new(),
        events: number,
        body: body.to_vec(),
    };
    let place = AuditPlace { chain: 1, number: i64::from(number) + 1 };
    let stored = StoredAuditRow { place, row, link: body.iter().copied().take(32).collect() };
    let mut verifier = Verifier::new(Arc::new(AuditKeys::new(&[1; 32])), &[], &[]);
    verifier.row(&stored);
    assert!(!verifier.finish().problems.is_empty(), "nobody but the vault writes a row");
    let Some(entries) = unpack(&stored) else { return };
    let shown = serde_json::to_value(&entries).expect("what is shown can be written");
    for (index, entry) in entries.iter().enumerate() {
        assert_eq!(entry.position, (stored.row.at, place, index), "in their order, none left out");
        assert_eq!(entry.success, matches!(entry.code.as_str(), "ok" | "not_modified"));
        assert_eq!(shown[index]["id"], format!("evt_{place}_{index}"));
    }
    assert_eq!(unpack(&stored), Some(entries), "read twice, read the same");
});
