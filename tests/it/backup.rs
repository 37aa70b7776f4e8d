//! Backups under load, and the way back: what was acknowledged before is there, and what is no whole backup of this vault
//! changes nothing.
//!
//! 10 drills by default; as many as `PORTCULLIS_BACKUPS` says.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use portcullis::{
    config::Config,
    crypto::RootKey,
    server::{BackupError, StartError, SystemEntropy, back_up, restore},
};
use serde_json::json;
use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};
use tokio::task::JoinSet;

use crate::{
    campaign::{Dice, count, seed},
    process::{execute, raw},
    support::{Client, Options, TestServer},
};

const WRITERS: usize = 3;
const PATHS: usize = 8;

/// The newest acknowledged version of each path. The value says which version it is.
type Acknowledged = Arc<Mutex<BTreeMap<String, i64>>>;

async fn write_on(client: Client, writer: usize, acknowledged: Acknowledged) {
    for turn in 0.. {
        let path = format!("w/{writer}/{}", turn % PATHS);
        let next = acknowledged.lock().unwrap().get(&path).map_or(1, |version| version + 1);
        let version = client.store(&path, json!({"path": path, "version": next})).await;
        assert_eq!(version, next);
        acknowledged.lock().unwrap().insert(path, version);
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// A data directory that has the vault's root key and nothing else.
fn elsewhere(server: &TestServer, name: &str) -> PathBuf {
    let directory = server.scratch().join(name);
    fs::create_dir(&directory).unwrap();
    fs::copy(server.data_dir.join("root.key"), directory.join("root.key")).unwrap();
    directory
}

async fn backed_up(server: &TestServer, name: &str) -> (PathBuf, String) {
    let file = server.scratch().join(name);
    let (code, told) = server.program(&["backup", "--to", file.to_str().unwrap()]).await;
    assert_eq!(code, 0, "{told}");
    (file, told)
}

async fn restored(server: &TestServer, from: &Path, to: &Path, more: &[&str]) -> (i32, String) {
    let usual = ["restore", "--from", from.to_str().unwrap(), "--data-dir", to.to_str().unwrap()];
    server.program(&[&usual, more].concat()).await
}

/// Nothing was changed: there is still no database, and nothing of an attempt.
fn is_untouched(directory: &Path) {
    let found = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let more: Vec<_> = found.filter(|name| !["root.key", "portcullis.lock"].contains(&name.as_str())).collect();
    assert!(more.is_empty(), "{more:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_before_a_backup_is_in_it() {
    let (drills, mut dice) = (count("PORTCULLIS_BACKUPS", 10), Dice::new(seed()));
    let server = TestServer::new().await;
    let acknowledged = Acknowledged::default();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write_on(server.root(), writer, Arc::clone(&acknowledged)));
    }
    let (mut opened, mut newer) = (0, 0);
    for drill in 0..drills {
        tokio::time::sleep(Duration::from_micros(dice.below(200_000) as u64)).await;
        let before = acknowledged.lock().unwrap().clone();
        let (file, told) = backed_up(&server, &format!("backup-{drill}")).await;
        assert_eq!(mode(&file), 0o600);
        let there = elsewhere(&server, &format!("there-{drill}"));
        let (code, answer) = restored(&server, &file, &there, &[]).await;
        assert_eq!(code, 0, "{answer}");
        assert_eq!(mode(&there.join("portcullis.db")), 0o600);
        let second = TestServer::start(Options { data_dir: Some(there.clone()), ..Options::default() }).await;
        let paths: Vec<&str> = before.keys().map(String::as_str).collect();
        let found = if paths.is_empty() { json!({}) } else { second.root().batch(&paths).await };
        for (path, version) in &before {
            let secret = &found["secrets"][path];
            let got = secret["version"].as_i64().unwrap_or_else(|| panic!("{path} is lost: {found}"));
            assert!(got >= *version, "{path}: {got} is there, {version} was acknowledged");
            assert_eq!(secret["data"], json!({"path": path, "version": got}));
            (opened, newer) = (opened + 1, newer + usize::from(got > *version));
        }
        let note = told.lines().find_map(|line| line.strip_prefix("note:")).unwrap().trim();
        let shown: &[&str] = if note.starts_with("reached1.") { &["--receipt", note] } else { &[] };
        let verify = ["audit", "verify", "--data-dir", there.to_str().unwrap()];
        let (code, answer) = second.program(&[&verify, shown].concat()).await;
        assert_eq!(code, 0, "{answer}");
        drop(second);
        fs::remove_dir_all(there).ok();
        fs::remove_file(file).unwrap();
    }
    writers.abort_all();
    while let Some(Err(error)) = writers.join_next().await {
        assert!(error.is_cancelled(), "{error}");
    }
    println!(
        "{drills} drills passed, 0 failed; {opened} secrets opened, {newer} of them newer than the backup's start"
    );
    assert!(opened > 0);
}

#[tokio::test]
async fn what_is_no_whole_backup_of_this_vault_is_refused() {
    let server = TestServer::new().await;
    server.root().store("kept", json!({"k": 1})).await;
    let (file, _) = backed_up(&server, "backup").await;
    let alter = async |name: &str, sql: &str| {
        let altered = server.scratch().join(name);
        fs::copy(&file, &altered).unwrap();
        let mut database = SqliteConnectOptions::new().filename(&altered).connect().await.unwrap();
        execute(&mut database, sql).await;
        database.close().await.unwrap();
        altered
    };
    let text = server.scratch().join("text");
    fs::write(&text, "no database at all").unwrap();
    let cut = server.scratch().join("cut");
    let whole = fs::read(&file).unwrap();
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let refused = [
        (text, "not a database"),
        (cut, "malformed"),
        (server.scratch().join("none"), "No such file"),
        (alter("empty", "DELETE FROM root_key").await, "no root key's fingerprint"),
        (alter("edited", "UPDATE audit_log SET identity_id = 'user:other' WHERE number = 2").await, "audit log is not"),
        (alter("shortened", "DELETE FROM audit_log WHERE number = 1").await, "audit log is not"),
        (alter("swapped", "UPDATE tenant_keys SET wrapped = zeroblob(60)").await, "tenant default"),
        (alter("trigger", "CREATE TRIGGER t AFTER INSERT ON audit_log BEGIN SELECT 1; END").await, "other tables"),
        (server.data_dir.join("portcullis.db"), "no backup"),
    ];
    let there = elsewhere(&server, "there");
    for (from, why) in refused {
        let (code, told) = restored(&server, &from, &there, &[]).await;
        assert!(code == 1 && told.contains(why), "{}: {code} {told}", from.display());
        is_untouched(&there);
    }
    fs::remove_file(there.join("root.key")).unwrap();
    RootKey::load_or_create(&there.join("root.key"), &SystemEntropy).unwrap();
    let (code, told) = restored(&server, &file, &there, &[]).await;
    assert!(code == 1 && told.contains("is not this vault's"), "{told}");
    is_untouched(&there);
}

#[tokio::test]
async fn nothing_is_written_over() {
    let mut server = TestServer::new().await;
    server.root().store("kept", json!({"k": 1})).await;
    let (file, _) = backed_up(&server, "backup").await;
    let before = fs::read(&file).unwrap();
    let (code, told) = server.program(&["backup", "--to", file.to_str().unwrap()]).await;
    assert!(code == 1 && told.contains("will not write over"), "{told}");
    assert_eq!(fs::read(&file).unwrap(), before);
    let here = server.data_dir.clone();
    let (code, told) = restored(&server, &file, &here, &["--replace"]).await;
    assert!(code == 1 && told.contains("another server is using it"), "{told}");
    server.stop().await;
    let (code, told) = restored(&server, &file, &here, &[]).await;
    assert!(code == 1 && told.contains("there is a database already"), "{told}");
    let none = server.scratch().join("none");
    let (code, told) = server.program(&["backup", "--to", "x", "--data-dir", none.to_str().unwrap()]).await;
    assert!(code == 1 && !Path::new("x").exists() && !Path::new("x.partial").exists(), "{told}");
    let old = fs::read(here.join("portcullis.db")).unwrap();
    for number in 1..=2 {
        let (code, told) = restored(&server, &file, &here, &["--replace"]).await;
        assert!(code == 0 && told.contains(&format!("portcullis.db.{number} now")), "{told}");
    }
    assert_eq!(fs::read(here.join("portcullis.db.1")).unwrap(), old);
}

#[tokio::test]
async fn an_older_backup_is_noticed_and_can_be_accepted() {
    let mut server = TestServer::new().await;
    server.root().store("revoked", json!({"k": 1})).await;
    let (file, _) = backed_up(&server, "backup").await;
    server.root().store("revoked", json!({"k": 2})).await;
    let receipt = server.root().get("/v1/secrets/revoked").await.header("x-audit-receipt").unwrap();
    server.stop().await;
    let here = server.data_dir.clone();
    let (code, told) = restored(&server, &file, &here, &["--replace"]).await;
    assert!(code == 0 && told.contains("NEWER THAN THE BACKUP: chain 1 ends at row"), "{told}");
    let refused = server.try_restart().await.unwrap_err();
    assert!(
        matches!(&refused, StartError::RolledBack(_)) && refused.to_string().contains("a checkpoint in "),
        "{refused}"
    );
    // Even where no checkpoint file is, a client can show it.
    let there = elsewhere(&server, "there");
    assert_eq!(restored(&server, &file, &there, &[]).await.0, 0);
    let verify = ["audit", "verify", "--receipt", &receipt, "--data-dir", there.to_str().unwrap()];
    let (code, told) = server.program(&verify).await;
    assert!(code == 1 && told.contains("receipt 1 proves that it had come to row"), "{told}");
    assert!(told.contains("integrity:    holds\ncompleteness: BROKEN"), "{told}");
    server.accept_rollback(true);
    server.try_restart().await.unwrap();
    assert_eq!(server.root().batch(&["revoked"]).await["secrets"]["revoked"]["data"], json!({"k": 1}));
    let accepted = server.audit("&action=accept_rollback").await;
    assert_eq!(accepted[0]["details"]["lost"][0]["problem"], "cut_off", "{accepted:?}");
}

#[tokio::test]
async fn a_server_starts_while_a_backup_is_being_made() {
    let mut server = TestServer::new().await;
    server.root().store("before", json!({"k": 1})).await;
    // What a long copy does to the database.
    let mut backup = raw(&server.data_dir).await;
    execute(&mut backup, "BEGIN; SELECT COUNT(*) FROM versions").await;
    server.root().store("after", json!({"k": 2})).await;
    server.restart().await;
    server.root().store("later", json!({"k": 3})).await;
    execute(&mut backup, "COMMIT").await;
    backup.close().await.unwrap();
    server.restart().await;
    let found = server.root().batch(&["before", "after", "later"]).await;
    assert_eq!(found["retrieved"], 3, "{found}");
    assert_eq!(server.log().await.verify(&[]).problems, []);
}

#[tokio::test]
async fn who_only_looks_does_not_sweep_damaged_changes_away() {
    let server = TestServer::new().await;
    for n in 0..20 {
        server.root().store("path", json!({"n": n})).await;
    }
    // As if it had been killed.
    let there = elsewhere(&server, "there");
    fs::copy(server.data_dir.join("portcullis.db"), there.join("portcullis.db")).unwrap();
    let log = there.join("portcullis.db-wal");
    let mut bytes = fs::read(server.data_dir.join("portcullis.db-wal")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&log, &bytes).unwrap();
    let backup = server.scratch().join("backup");
    let commands = [&["audit", "verify"][..], &["audit", "key"], &["backup", "--to", backup.to_str().unwrap()]];
    for command in commands {
        let (code, told) = server.program(&[command, &["--data-dir", there.to_str().unwrap()]].concat()).await;
        assert!(code != 0 && told.contains("acknowledged changes are damaged"), "{command:?}: {told}");
        assert!(fs::read(&log).unwrap() == bytes, "{command:?} changed the log");
    }
}

#[tokio::test]
async fn a_backup_that_failed_leaves_no_file() {
    let server = TestServer::new().await;
    let there = elsewhere(&server, "there");
    let options = SqliteConnectOptions::new().filename(there.join("portcullis.db")).create_if_missing(true);
    let mut other = options.connect().await.unwrap();
    execute(&mut other, "CREATE TABLE of_somebody_else (a)").await;
    other.close().await.unwrap();
    let backup = server.scratch().join("backup");
    let command = ["backup", "--to", backup.to_str().unwrap(), "--data-dir", there.to_str().unwrap()];
    let (code, told) = server.program(&command).await;
    assert!(code != 0 && told.contains("no such table"), "{told}");
    assert!(!backup.exists());
}

#[tokio::test]
async fn postgresql_has_means_of_its_own() {
    let variable = ("PORTCULLIS__STORE__DATABASE_URL".to_owned(), "postgres://127.0.0.1:1/none".to_owned());
    let config = Config::load(None, [variable]).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("backup");
    let refused = back_up(&config, &file).await.err().unwrap();
    assert!(matches!(refused, BackupError::Postgres) && refused.to_string().contains("pg_dump"), "{refused}");
    let root = RootKey::fresh(&SystemEntropy);
    assert!(matches!(restore(&config, root, &file, false).await, Err(BackupError::Postgres)));
}
