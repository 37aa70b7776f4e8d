//! What a storage attacker can do to the audit log: every bit, every row, every order, every end. All of it is found.
//!
//! 200 rows by default; as many as `PORTCULLIS_TAMPERING` says.

use std::{borrow::Cow, sync::Arc};

use portcullis::{
    audit::{CHECKPOINT, Evidence, Problem, Verifier},
    domain::{AuditPlace, AuditRow, StoredAuditRow, TenantId, Timestamp},
};
use serde_json::json;

use crate::support::{Log, TestServer};

fn wanted() -> usize {
    std::env::var("PORTCULLIS_TAMPERING").map_or(200, |rows| rows.parse().unwrap())
}

/// A log as a server writes it: reads, writes, denials, batches; and the last receipt that a client was given.
async fn real_log() -> (Log, String) {
    let server = TestServer::new().await;
    let (root, stranger) = (server.root(), server.client("user:stranger"));
    let mut receipt = String::new();
    for n in 0.. {
        let path = format!("/v1/secrets/team/{}", n % 7);
        let answer = match n % 5 {
            0 => root.put(&path, json!({"data": {"k": n}})).await,
            1 => root.get(&path).await,
            2 => stranger.get(&path).await,
            3 => root.post("/v1/secrets/batch", json!({"paths": ["team/1", "team/2", "none"]})).await,
            _ => root.delete(&path).await,
        };
        receipt = answer.header("x-audit-receipt").unwrap_or(receipt);
        if n % 20 == 19 && server.log().await.rows.len() >= wanted() {
            break;
        }
    }
    (server.log().await, receipt)
}

fn found(log: &Log, rows: impl IntoIterator<Item = StoredAuditRow>, notes: &[&str]) -> Vec<Problem> {
    let rows = rows.into_iter().collect();
    Log { keys: Arc::clone(&log.keys), rows, tombstones: vec![] }.verify(notes).problems
}

/// What the store would read back where a text was altered; none where it is no text any more.
fn flip_text(text: &str, bit: usize) -> Option<String> {
    let mut bytes = text.as_bytes().to_vec();
    flip(&mut bytes, bit);
    String::from_utf8(bytes).ok()
}

fn flip(bytes: &mut [u8], bit: usize) {
    bytes[bit / 8] ^= 1 << (bit % 8);
}

/// The row with one bit of its columns flipped, bit by bit; `None` where it cannot be read then.
fn edits(row: &StoredAuditRow) -> Vec<Option<StoredAuditRow>> {
    let mut edits = Vec::new();
    let mut edit = |row: Option<AuditRow>, link: &[u8], place: AuditPlace| {
        edits.push(row.map(|row| StoredAuditRow { place, row, link: link.to_vec() }));
    };
    let StoredAuditRow { place, row: content, link } = row;
    let bits = |text: &str| 0..text.len() * 8;
    for bit in 0..64 {
        let at = Timestamp::from_micros(content.at.micros() ^ (1 << bit));
        edit(Some(AuditRow { at, ..content.clone() }), link, *place);
    }
    for bit in 0..32 {
        edit(Some(AuditRow { events: content.events ^ (1 << bit), ..content.clone() }), link, *place);
    }
    for bit in 0..content.body.len() * 8 {
        let mut altered = content.clone();
        flip(&mut altered.body, bit);
        edit(Some(altered), link, *place);
    }
    for bit in 0..link.len() * 8 {
        let mut altered = link.clone();
        flip(&mut altered, bit);
        edit(Some(content.clone()), &altered, *place);
    }
    for bit in bits(&content.action) {
        let action = flip_text(&content.action, bit).map(Cow::Owned);
        edit(action.map(|action| AuditRow { action, ..content.clone() }), link, *place);
    }
    for bit in bits(&content.request_id) {
        let request_id = flip_text(&content.request_id, bit);
        edit(request_id.map(|request_id| AuditRow { request_id, ..content.clone() }), link, *place);
    }
    if let Some(tenant) = &content.tenant {
        for bit in bits(tenant.as_str()) {
            let tenant = flip_text(tenant.as_str(), bit).and_then(|text| TenantId::parse(&text));
            edit(tenant.map(|tenant| AuditRow { tenant: Some(tenant), ..content.clone() }), link, *place);
        }
    }
    if let Some(id) = &content.identity_id {
        for bit in bits(id) {
            let id = flip_text(id, bit);
            edit(id.map(|id| AuditRow { identity_id: Some(id), ..content.clone() }), link, *place);
        }
    }
    if let Some(kind) = &content.identity_type {
        for bit in bits(kind) {
            let kind = flip_text(kind, bit).map(Cow::Owned);
            edit(kind.map(|kind| AuditRow { identity_type: Some(kind), ..content.clone() }), link, *place);
        }
    }
    if let Some(ip) = &content.source_ip {
        for bit in bits(ip) {
            let ip = flip_text(ip, bit);
            edit(ip.map(|ip| AuditRow { source_ip: Some(ip), ..content.clone() }), link, *place);
        }
    }
    edits
}

/// Feeds the rows from one on to a verifier that has seen what is before, until something is found.
fn notices(verifier: &Verifier, altered: Option<&StoredAuditRow>, place: AuditPlace, rest: &[StoredAuditRow]) -> bool {
    let mut verifier = verifier.clone();
    match altered {
        Some(row) => verifier.row(row),
        None => verifier.damaged_row(place),
    }
    rest.iter().take(1).for_each(|row| verifier.row(row));
    !verifier.finish().problems.is_empty()
}

#[tokio::test]
async fn every_alteration_is_found() {
    let (log, receipt) = real_log().await;
    assert_eq!(log.verify(&[&receipt]).problems, [], "no false alarm");
    let rows = &log.rows;
    let (mut bits, mut verifier) = (0, Verifier::new(Arc::clone(&log.keys), &[], &[]));
    for (index, row) in rows.iter().enumerate() {
        for edit in edits(row) {
            bits += 1;
            let seen = notices(&verifier, edit.as_ref(), row.place, &rows[index + 1..]);
            assert!(seen, "an edit of row {} went unnoticed: {edit:?}", row.place.number);
        }
        verifier.row(row);
    }
    // A row's place: it is somewhere else then, in the order that the store answers.
    for index in 0..rows.len() {
        for bit in 0..63 + 31 {
            let mut altered = rows.clone();
            let place = &mut altered[index].place;
            if bit < 63 {
                place.number ^= 1 << bit;
            } else {
                place.chain ^= 1 << (bit - 63);
            }
            altered.sort_by_key(|row| row.place);
            bits += 1;
            assert!(!found(&log, altered, &[]).is_empty(), "row {index} moved by bit {bit}");
        }
    }
    let mut others = 0;
    let mut check = |altered: Vec<StoredAuditRow>, what: &str, index: usize| {
        others += 1;
        assert!(!found(&log, altered, &[&receipt]).is_empty(), "{what} at {index}");
    };
    for index in 0..rows.len() {
        let renumber = |mut rows: Vec<StoredAuditRow>| {
            (1..).zip(&mut rows).for_each(|(number, row)| row.place.number = number);
            rows
        };
        let mut gone = rows.clone();
        gone.remove(index);
        check(gone.clone(), "a deletion", index);
        check(renumber(gone), "a deletion that closed the gap", index);
        let mut twice = rows.clone();
        twice.insert(index, rows[index].clone());
        check(twice.clone(), "a duplicate", index);
        check(renumber(twice), "a duplicate with a number of its own", index);
        let mut inserted = rows.clone();
        let foreign = &rows[(index * 7 + 3) % rows.len()];
        inserted.insert(
            index,
            StoredAuditRow { row: AuditRow { request_id: "req_x".into(), ..foreign.row.clone() }, ..foreign.clone() },
        );
        check(renumber(inserted), "an insertion", index);
        if index + 1 < rows.len() {
            let mut swapped = rows.clone();
            swapped.swap(index, index + 1);
            check(renumber(swapped), "a swap", index);
        }
        check(rows[..index].to_vec(), "the end cut off", index);
    }
    println!(
        "{} rows: {bits} single-bit edits and {others} deletions, duplicates, insertions, swaps and cuts found; 0 missed",
        rows.len()
    );
}

#[tokio::test]
async fn a_cut_is_found_by_any_later_note() {
    let (log, receipt) = real_log().await;
    let last = log.rows.last().unwrap().place.number;
    // Without evidence, a log that ends early is a log.
    assert_eq!(found(&log, log.rows[..20].to_vec(), &[]), []);
    let cut = found(&log, log.rows[..20].to_vec(), &[&receipt]);
    assert!(matches!(cut[..], [Problem::CutOff { chain: 1, last: 20, reached, .. }] if reached <= last), "{cut:?}");
    // A note from before the cut proves nothing about it.
    let early = log.rows.iter().find(|row| row.row.action == CHECKPOINT).unwrap();
    let packed: serde_json::Value = serde_json::from_slice(&early.row.body).unwrap();
    let checkpoint = packed["details"]["note"].as_str().unwrap();
    assert_eq!(found(&log, log.rows[..20].to_vec(), &[checkpoint]), []);
    // Nobody makes a note up, or makes a receipt a tombstone.
    let forged = checkpoint.replacen(".1.", ".2.", 1);
    let mut verifier = Verifier::new(
        Arc::clone(&log.keys),
        std::slice::from_ref(&receipt),
        &[Evidence { note: forged, origin: "x".into() }],
    );
    log.rows.iter().for_each(|row| verifier.row(row));
    let problems = verifier.finish().problems;
    assert!(matches!(problems[..], [Problem::ForgedNote { .. }, Problem::ForgedNote { .. }]), "{problems:?}");
}
