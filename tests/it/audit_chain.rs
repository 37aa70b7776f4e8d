//! The audit log proves itself: receipts, `audit verify`, checkpoints in a second place, retention, export; on one server
//! and on several that share a database.

use std::{fs, time::Duration};

use portcullis::{
    audit::{CHECKPOINT, Note, NoteKind, Problem},
    domain::{AuditPlace, AuditRow, ChainHead, StoredAuditRow},
    server::StartError,
};
use serde_json::{Value, json};

use crate::{
    postgres,
    process::{execute, raw},
    support::{Log, Options, TestServer},
};

async fn some_requests(server: &TestServer) -> String {
    let root = server.root();
    let mut receipt = String::new();
    for n in 0..5 {
        root.store(&format!("team/{n}"), json!({"k": n})).await;
        let answer = root.post("/v1/secrets/batch", json!({"paths": ["team/0", "none"]})).await;
        receipt = answer.header("x-audit-receipt").unwrap();
    }
    receipt
}

#[tokio::test]
async fn whoever_is_recorded_is_given_a_receipt() {
    let server = TestServer::new().await;
    let (root, stranger, nobody) =
        (server.root(), server.client("user:stranger"), server.client_with_token("x".to_owned()));
    root.store("a", json!({"k": 1})).await;
    let answers = [
        root.get("/v1/secrets/a").await,
        root.get("/v1/secrets/none").await,
        root.put("/v1/secrets/a", json!({"data": {}})).await,
        root.put("/v1/secrets/a", json!({"data": {}, "options": {"expected_version": 9}})).await,
        root.post("/v1/secrets/batch", json!({"paths": ["a"]})).await,
        root.get("/v1/secrets?limit=1").await,
        root.get("/v1/secrets/a//b").await,
        stranger.get("/v1/secrets/a").await,
        nobody.get("/v1/secrets/a").await,
    ];
    let log = server.log().await;
    for answer in answers {
        let id = answer.header("x-request-id").unwrap();
        let receipt = answer.header("x-audit-receipt").unwrap_or_else(|| panic!("{} {id}", answer.status()));
        let note = Note::verify(&receipt, &log.keys.verifying_key()).unwrap();
        let row = log.rows.iter().find(|row| row.row.request_id == id).unwrap();
        assert!(note.kind == NoteKind::Reached && note.head.place >= row.place);
        assert_eq!(log.verify(&[&receipt]).problems, []);
    }
    assert_eq!(root.get("/v1/health").await.header("x-audit-receipt"), None);
}

#[tokio::test]
async fn the_program_tells_integrity_and_completeness_apart() {
    let server = TestServer::new().await;
    let receipt = some_requests(&server).await;
    let verify = async |more: &[&str]| server.program(&[&["audit", "verify"], more].concat()).await;
    let (code, told) = verify(&["--receipt", &receipt]).await;
    assert_eq!(code, 0, "{told}");
    assert!(told.contains("integrity:    holds\ncompleteness: holds"), "{told}");

    let mut database = raw(&server.data_dir).await;
    execute(&mut database, "CREATE TABLE kept AS SELECT * FROM audit_log").await;
    execute(&mut database, "UPDATE audit_log SET identity_id = 'user:other' WHERE number = 4").await;
    let (code, told) = verify(&[]).await;
    assert_eq!(code, 1, "{told}");
    assert!(
        told.contains("row 4: it, or the row before it") && told.contains("integrity:    BROKEN\ncompleteness: holds")
    );

    execute(&mut database, "DELETE FROM audit_log; INSERT INTO audit_log SELECT * FROM kept WHERE number < 5").await;
    let (code, told) = verify(&["--receipt", &receipt]).await;
    assert_eq!(code, 1, "{told}");
    assert!(told.contains("receipt 1 proves") && told.contains("integrity:    holds\ncompleteness: BROKEN"), "{told}");

    execute(&mut database, "DELETE FROM audit_log; INSERT INTO audit_log SELECT * FROM kept WHERE number <> 3").await;
    let (code, told) = verify(&["--json"]).await;
    let report: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((code, report["problems"][0]["problem"].as_str()), (1, Some("missing")), "{told}");
    assert_eq!((report["problems"][0]["from"].as_i64(), report["problems"][0]["to"].as_i64()), (Some(3), Some(3)));

    let (code, told) = verify(&["--receipt", "reached1.1.1.1.AAAA.AAAA"]).await;
    assert!(code == 1 && told.contains("receipt 1: not signed by this vault"), "{told}");
    let (_, key) = server.program(&["audit", "key"]).await;
    assert_eq!(key.trim().len(), 64, "{key}");
}

#[tokio::test]
async fn an_old_database_is_noticed_and_can_be_accepted() {
    let mut server = TestServer::new().await;
    some_requests(&server).await;
    server.stop().await;
    let old = server.scratch().join("old.db");
    fs::copy(server.data_dir.join("portcullis.db"), &old).unwrap();
    server.restart().await;
    server.root().store("revoked", json!({"k": 2})).await;
    server.stop().await;
    fs::copy(&old, server.data_dir.join("portcullis.db")).unwrap();
    let refused = server.try_restart().await.unwrap_err();
    assert!(matches!(&refused, StartError::RolledBack(lost) if matches!(lost[..], [Problem::CutOff { chain: 1, .. }])));
    assert!(refused.to_string().contains("serve --accept-rollback"), "{refused}");
    // It is the same with a database that went on from there.
    server.accept_rollback(true);
    server.try_restart().await.unwrap();
    let accepted = server.audit("&action=accept_rollback").await;
    assert_eq!(accepted[0]["details"]["lost"][0]["problem"], "cut_off", "{accepted:?}");
    some_requests(&server).await;
    server.accept_rollback(false);
    server.restart().await;
    assert_eq!(server.log().await.verify(&[]).problems, []);
}

#[tokio::test]
async fn a_database_that_is_taken_away_is_noticed_at_once() {
    let server = TestServer::new().await;
    let root = server.root();
    root.store("kept", json!({"k": 1})).await;
    for name in ["portcullis.db", "portcullis.db-wal"] {
        let (file, aside) = (server.data_dir.join(name), server.scratch().join("aside"));
        fs::rename(&file, &aside).unwrap();
        for _ in 0..2 {
            root.get("/v1/secrets/kept").await.expect_error(503, "service_unavailable").await;
            root.put("/v1/secrets/new", json!({"data": {}})).await.expect_error(503, "service_unavailable").await;
        }
        // Another file in its place is not it.
        fs::copy(&aside, &file).unwrap();
        root.get("/v1/secrets/kept").await.expect_error(503, "service_unavailable").await;
        fs::rename(&aside, &file).unwrap();
        assert_eq!(root.batch(&["kept"]).await["secrets"]["kept"]["data"]["k"], 1, "{name}: back again");
    }
    assert_eq!(server.log().await.verify(&[]).problems, []);
}

#[tokio::test]
async fn what_is_removed_leaves_a_tombstone() {
    let config = "[audit]\nkeep_for = \"1s\"\n".to_owned();
    let mut server = TestServer::start(Options { config, ..Options::default() }).await;
    let receipt = some_requests(&server).await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    server.restart().await;
    let log = loop {
        let log = server.log().await;
        if !log.tombstones.is_empty() {
            break log;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(log.rows[0].place.number > 10, "{:?}", log.rows[0].place);
    assert_eq!(log.verify(&[&receipt]).problems, [], "an old receipt is no alarm");
    let events = server.audit("&action=remove_old_events").await;
    assert_eq!(events[0]["details"]["until"], log.rows[0].place.number - 1);
    // Whoever takes the tombstone away takes the rows away.
    let without = Log { tombstones: vec![], ..log };
    assert!(matches!(without.verify(&[]).problems[..], [Problem::Missing { from: 1, .. }]));
    server.restart().await;
    assert_eq!(server.log().await.verify(&[]).problems, []);
}

/// Whoever writes to the database must not have the vault sign away what is not old.
#[tokio::test]
async fn retention_signs_for_nothing_that_was_altered() {
    let config = "[audit]\nkeep_for = \"1h\"\n".to_owned();
    let mut server = TestServer::start(Options { config, ..Options::default() }).await;
    some_requests(&server).await;
    server.stop().await;
    let mut database = raw(&server.data_dir).await;
    execute(&mut database, "UPDATE audit_log SET at = 0 WHERE number <= 6").await;
    drop(database);
    server.restart().await;
    some_requests(&server).await;
    let log = server.log().await;
    assert_eq!((log.rows[0].place.number, log.tombstones.len()), (1, 0), "nothing was removed");
    assert!(log.verify(&[]).problems.contains(&Problem::Altered { chain: 1, number: 1 }));
}

#[tokio::test]
async fn rows_elsewhere_are_shown_to_nobody_and_found() {
    let server = TestServer::new().await;
    some_requests(&server).await;
    let before = server.audit("").await.len();
    let mut database = raw(&server.data_dir).await;
    for (chain, number) in [(0, -1), (0, 5), (-3, 1), (5_000_000_000_i64, 1), (1, -7), (1, i64::MAX)] {
        let columns = "at, tenant, identity_id, identity_type, action, source_ip, request_id, events, body, link";
        let copy = format!(
            "INSERT INTO audit_log (chain, number, {columns}) SELECT {chain}, {number}, {columns} FROM audit_log WHERE number = 4"
        );
        execute(&mut database, copy).await;
    }
    assert_eq!(server.audit("").await.len(), before, "none of them is shown");
    server.root().store("goes/on", json!({"k": 1})).await;
    let (code, told) = server.program(&["audit", "verify"]).await;
    assert!(code == 1 && told.contains("6 rows stand where the vault writes none"), "{told}");
}

#[tokio::test]
async fn the_log_is_exported_line_by_line() {
    let server = TestServer::new().await;
    some_requests(&server).await;
    let agent = server.http.get(format!("{}/v1/secrets/team/0", server.url)).bearer_auth(server.token("user:root"));
    agent.header("user-agent", "=HYPERLINK(1)").send().await.unwrap();
    let root = server.root();
    let mut logged = server.audit("").await;
    logged.reverse();
    let answer = root.post("/v1/audit/export", json!({"format": "jsonl"})).await;
    assert_eq!(answer.header("content-type").unwrap(), "application/jsonl");
    let text = answer.0.text().await.unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.retain(|line| line["tenant_id"] != Value::Null && line["action"] != "query_audit_log");
    logged.retain(|line| line["action"] != "query_audit_log");
    assert_eq!(lines, logged);

    let csv = root.post("/v1/audit/export", json!({"format": "csv", "action": "read", "success": true})).await;
    assert!(csv.header("x-audit-receipt").is_some());
    let text = csv.0.text().await.unwrap();
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    assert_eq!(reader.headers().unwrap().iter().take(3).collect::<Vec<_>>(), ["id", "timestamp", "action"]);
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    let wanted = logged.iter().filter(|line| line["action"] == "read" && line["success"] == true);
    assert_eq!(rows.len(), wanted.clone().count());
    assert!(rows.iter().zip(wanted).all(|(row, line)| row[0] == *line["id"].as_str().unwrap()));
    assert!(text.contains("'=HYPERLINK"), "{text}");
    let exports = server.audit("&action=export_audit_log").await;
    assert_eq!(exports.len(), 2, "{exports:?}");
    root.post("/v1/audit/export", json!({"format": "xml"})).await.expect_error(400, "invalid_request").await;
    server
        .client_with_token(server.token_with("user:root", "default", &[], &[]))
        .post("/v1/audit/export", json!({"format": "csv"}))
        .await
        .expect_error(403, "insufficient_scope")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_servers_have_chains_that_vouch_for_one_another() {
    let Some(url) = postgres::database().await else { return };
    let first = TestServer::start(Options { database_url: Some(url.clone()), ..Options::default() }).await;
    let options =
        || Options { database_url: Some(url.clone()), data_dir: Some(first.data_dir.clone()), ..Options::default() };
    let mut second = TestServer::start(options()).await;
    for _ in 0..3 {
        some_requests(&first).await;
        some_requests(&second).await;
    }
    // What stops leaves its chain to the next.
    second.stop().await;
    let third = TestServer::start(options()).await;
    let receipt = some_requests(&third).await;
    // A checkpoint of the first that comes after all this.
    let until = std::time::Instant::now() + Duration::from_secs(20);
    let checkpoints = |log: &Log| {
        let of_first = |row: &&StoredAuditRow| row.place.chain == 1 && row.row.action == CHECKPOINT;
        log.rows.iter().filter(of_first).count()
    };
    let before = checkpoints(&first.log().await);
    while checkpoints(&first.log().await) == before {
        assert!(std::time::Instant::now() < until);
        some_requests(&first).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let log = first.log().await;
    let report = log.verify(&[&receipt]);
    assert_eq!(report.problems, []);
    assert_eq!(report.chains.iter().map(|chain| chain.chain).collect::<Vec<_>>(), [1, 2]);
    assert!(report.chains[1].proven_to.is_some());
    // The whole second chain, or its end: the first one knows of them.
    for kept in [0, 9] {
        let stays = |row: &&StoredAuditRow| row.place.chain == 1 || row.place.number <= kept;
        let rows = log.rows.iter().filter(stays).cloned().collect();
        let cut = Log { rows, keys: log.keys.clone(), tombstones: vec![] };
        let problems = cut.verify(&[]).problems;
        let expected = |last: i64| matches!(&problems[..], [Problem::CutOff { chain: 2, last: found, origin, .. }] if *found == last && origin.contains("chain 1"));
        assert!(expected(kept), "{problems:?}");
    }
    // A chain that was cut, and grew again past what the other one knows of it: its own links hold together.
    let last = log.rows.iter().rfind(|row| row.place.chain == 2).unwrap().place.number;
    let mut regrown: Vec<StoredAuditRow> = log.rows.iter().filter(|row| row.place.chain == 1).cloned().collect();
    let mut head = ChainHead::origin(2);
    for number in 1..=last + 5 {
        let row = AuditRow { request_id: format!("req_{number}"), ..regrown[0].row.clone() };
        let link = log.keys.link(&head, &row);
        head = ChainHead { place: AuditPlace { chain: 2, number }, link };
        regrown.push(StoredAuditRow { place: head.place, row, link: link.0.to_vec() });
    }
    let problems = Log { rows: regrown, keys: log.keys.clone(), tombstones: vec![] }.verify(&[]).problems;
    assert!(problems.iter().any(|problem| matches!(problem, Problem::Rewritten { chain: 2, .. })), "{problems:?}");
}
