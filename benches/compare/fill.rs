//! Fills a vault with more secrets than the API takes in reasonable time: each is sealed for its place by the library
//! itself, and the rows are written in large transactions. `benches/compare/run scale` runs it on a stopped server's
//! directory, whose first secrets came through the API.
//!
//!     fill DATA_DIRECTORY FROM TO

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench that meets what it does not expect must fail")]

use std::{
    env,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
};

use portcullis::{
    crypto::{Keyring, RootKey, RootKeySource},
    domain::{Clock, SealedValue, SecretPath, SecretValue, TenantId, Version},
    server::{SystemClock, SystemEntropy},
    store::{SecretStore, SqliteStore},
};
use sqlx::{ConnectOptions, Connection, QueryBuilder, Sqlite, SqliteConnection, sqlite::SqliteConnectOptions};
use zeroize::Zeroizing;

/// As in `workload.py`.
const SUBTREES: u64 = 100;
const ROWS_A_STATEMENT: usize = 500;
const STATEMENTS_A_TRANSACTION: usize = 200;

type Rows = Vec<(SecretPath, SealedValue)>;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [directory, from, to] = arguments.as_slice() else { return println!("see benches/compare/run") };
    let (directory, from, to) = (PathBuf::from(directory), from.parse().unwrap(), to.parse().unwrap());
    let keyring = keyring(&directory).await;
    let (sender, receiver) = mpsc::sync_channel(16);
    let sealing = thread::spawn(move || seal_all(&keyring, from, to, &sender));
    write(&directory, receiver).await;
    sealing.join().unwrap();
}

/// The keys of the vault in the directory.
async fn keyring(directory: &Path) -> Keyring {
    let root = RootKey::load(&RootKeySource::File(directory.join("root.key"))).unwrap();
    let keyring = Keyring::new(root, Arc::new(SystemEntropy));
    let store = SqliteStore::open(directory, 0).await.unwrap();
    let tenant = TenantId::default_tenant();
    keyring.take_in(&tenant, &store.tenant_keys(&tenant).await.unwrap()).unwrap();
    store.close().await;
    keyring
}

/// Seals the secrets of these numbers, in the order of their paths: rows that are appended fill their pages.
fn seal_all(keyring: &Keyring, from: u64, to: u64, sender: &mpsc::SyncSender<Rows>) {
    let tenant = TenantId::default_tenant();
    let mut rows = Rows::new();
    for subtree in 0..SUBTREES {
        let subtree = subtree % 10 * 10 + subtree / 10;
        for n in (subtree..to).step_by(100).filter(|n| *n >= from) {
            let path = format!("bench/g{}/t{}/s{:06}", subtree % 10, subtree / 10, n / SUBTREES);
            let path = SecretPath::parse(&path).unwrap();
            let sealed = keyring.seal(&tenant, &path, Version::FIRST, &value(n)).unwrap();
            rows.push((path, sealed));
            if rows.len() == ROWS_A_STATEMENT {
                sender.send(std::mem::take(&mut rows)).unwrap();
            }
        }
    }
    sender.send(rows).unwrap();
}

fn value(n: u64) -> SecretValue {
    let password = format!("{n:016x}").repeat(8);
    let json = format!(r#"{{"username":"app-{n}","password":"{password}","host":"db-{n}.internal","port":5432}}"#);
    SecretValue::new(Zeroizing::new(json.into_bytes()))
}

async fn write(directory: &Path, receiver: mpsc::Receiver<Rows>) {
    let options = SqliteConnectOptions::new().filename(directory.join("portcullis.db"));
    let mut connection = options.pragma("synchronous", "OFF").connect().await.unwrap();
    let mut waiting = receiver.into_iter().filter(|rows| !rows.is_empty());
    loop {
        let some: Vec<Rows> = waiting.by_ref().take(STATEMENTS_A_TRANSACTION).collect();
        if some.is_empty() {
            break;
        }
        let mut transaction = connection.begin().await.unwrap();
        for rows in &some {
            insert(&mut transaction, rows).await;
        }
        transaction.commit().await.unwrap();
    }
    // What was written without syncs is synced in the end.
    for pragma in ["PRAGMA synchronous = FULL", "PRAGMA wal_checkpoint(TRUNCATE)"] {
        sqlx::query(pragma).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
}

async fn insert(connection: &mut SqliteConnection, rows: &Rows) {
    let now = SystemClock.now().micros();
    let mut versions: QueryBuilder<Sqlite> = QueryBuilder::new(
        "INSERT INTO versions (tenant, path, version, secret_type, created_at, created_by, key_generation, wrapped_key, \
         ciphertext) ",
    );
    versions.push_values(rows, |mut row, (path, sealed)| {
        row.push("'default'").push_bind(path.as_str()).push("1, 'kv'").push_bind(now).push("'sa:bench'");
        row.push_bind(sealed.key_generation).push_bind(&sealed.wrapped_key[..]).push_bind(&sealed.ciphertext[..]);
    });
    versions.build().execute(&mut *connection).await.unwrap();
    let mut secrets: QueryBuilder<Sqlite> = QueryBuilder::new(
        "INSERT INTO secrets (tenant, path, latest, secret_type, metadata, created_at, created_by, updated_at, \
         updated_by, max_versions) ",
    );
    secrets.push_values(rows, |mut row, (path, _)| {
        row.push("'default'").push_bind(path.as_str()).push("1, 'kv', '{}'").push_bind(now).push("'sa:bench'");
        row.push_bind(now).push("'sa:bench', 10");
    });
    secrets.build().execute(connection).await.unwrap();
}
