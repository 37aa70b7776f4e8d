//! The floors under the comparison: bare axum handlers with no authentication, policy, encryption or audit, which write
//! the same JSON as the server. The store floor reads the same rows through sqlx, the memory floor has them in a map.
//! `benches/compare/run` starts it.
//!
//!     floor store|memory DATABASE ADDRESS:PORT

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench that meets what it does not expect must fail")]

use std::{
    collections::{BTreeMap, HashMap},
    env,
    sync::{Arc, RwLock},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use portcullis::domain::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::{
    ConnectOptions, Connection, Row, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};
use tokio::{net::TcpListener, sync::Mutex};

/// The statement that finds secrets with their newest versions: what they are taken from, and which of them.
macro_rules! find {
    ($from:literal, $which:literal) => {
        concat!(
            "SELECT s.path, v.version, s.secret_type, v.ciphertext, s.metadata, s.created_at, s.created_by,
                    s.updated_at, s.updated_by, s.expires_at FROM ",
            $from,
            " JOIN versions AS v ON v.tenant = s.tenant AND v.path = s.path AND v.version = s.latest
              WHERE s.tenant = 'default'",
            $which
        )
    };
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [kind, database, address] = arguments.as_slice() else { return println!("see benches/compare/run") };
    let options = SqliteConnectOptions::new()
        .filename(database)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let router = if kind == "store" { store(options).await } else { memory(options).await };
    axum::serve(TcpListener::bind(address).await.unwrap(), router).await.unwrap();
}

/// A row as the answers need it.
#[derive(Clone)]
struct Found {
    path: String,
    version: i64,
    secret_type: String,
    data: Box<RawValue>,
    metadata: Box<RawValue>,
    created: (Timestamp, String),
    updated: (Timestamp, String),
    expires_at: Option<Timestamp>,
}

impl Found {
    fn of(row: &SqliteRow) -> Self {
        let raw = |bytes: Vec<u8>| RawValue::from_string(String::from_utf8(bytes).unwrap().trim_end().to_owned());
        Self {
            path: row.get(0),
            version: row.get(1),
            secret_type: row.get(2),
            data: raw(row.get(3)).unwrap(),
            metadata: RawValue::from_string(row.get(4)).unwrap(),
            created: (Timestamp::from_micros(row.get(5)), row.get(6)),
            updated: (Timestamp::from_micros(row.get(7)), row.get(8)),
            expires_at: row.get::<Option<i64>, _>(9).map(Timestamp::from_micros),
        }
    }

    fn whole(&self) -> Whole<'_> {
        Whole {
            path: &self.path,
            version: self.version,
            secret_type: &self.secret_type,
            data: &self.data,
            metadata: &self.metadata,
            created_at: self.created.0,
            created_by: &self.created.1,
            updated_at: self.updated.0,
            updated_by: &self.updated.1,
            expires_at: self.expires_at,
        }
    }

    fn brief(&self) -> Brief<'_> {
        Brief { data: &self.data, version: self.version, secret_type: &self.secret_type }
    }
}

#[derive(Serialize)]
struct Whole<'a> {
    path: &'a str,
    version: i64,
    secret_type: &'a str,
    data: &'a RawValue,
    metadata: &'a RawValue,
    created_at: Timestamp,
    created_by: &'a str,
    updated_at: Timestamp,
    updated_by: &'a str,
    expires_at: Option<Timestamp>,
}

#[derive(Serialize)]
struct Brief<'a> {
    data: &'a RawValue,
    version: i64,
    secret_type: &'a str,
}

#[derive(Serialize)]
struct BatchAnswer<'a> {
    secrets: BTreeMap<&'a str, Brief<'a>>,
    errors: BTreeMap<&'a str, &'a str>,
    retrieved: usize,
    failed: usize,
}

#[derive(Serialize)]
struct Written<'a> {
    path: &'a str,
    version: i64,
    secret_type: &'a str,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
}

#[derive(Deserialize)]
struct BatchBody<'a> {
    #[serde(borrow)]
    paths: Vec<&'a str>,
}

#[derive(Deserialize)]
struct PutBody<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
}

fn json(value: &impl Serialize) -> Response {
    ([(CONTENT_TYPE, "application/json")], serde_json::to_vec(value).unwrap()).into_response()
}

fn one(found: Option<&Found>) -> Response {
    found.map_or_else(|| StatusCode::NOT_FOUND.into_response(), |found| json(&found.whole()))
}

fn many<'a>(found: impl Iterator<Item = &'a Found>) -> Response {
    let secrets: BTreeMap<_, _> = found.map(|found| (found.path.as_str(), found.brief())).collect();
    json(&BatchAnswer { retrieved: secrets.len(), secrets, errors: BTreeMap::new(), failed: 0 })
}

fn written(path: &str) -> Response {
    let created_at = Timestamp::from_micros(1_700_000_000_000_000);
    json(&Written { path, version: 2, secret_type: "kv", created_at, expires_at: None })
}

/// Connections as the server has them: a pool to read, one to write.
struct Store {
    readers: SqlitePool,
    writer: Mutex<SqliteConnection>,
}

async fn store(options: SqliteConnectOptions) -> Router {
    let cores = std::thread::available_parallelism().map_or(4, |n| u32::try_from(n.get()).unwrap_or(4));
    let writer = Mutex::new(options.clone().connect().await.unwrap());
    let pool = SqlitePoolOptions::new().max_connections(cores.max(4)).min_connections(1).test_before_acquire(false);
    let readers = pool.connect_with(options.pragma("query_only", "ON")).await.unwrap();
    Router::new()
        .route("/v1/secrets/batch", post(store_batch))
        .route("/v1/secrets/{*path}", get(store_get).put(store_put))
        .with_state(Arc::new(Store { readers, writer }))
}

async fn store_get(State(store): State<Arc<Store>>, Path(path): Path<String>) -> Response {
    let sql = find!("secrets AS s", " AND s.path = $1");
    let row = sqlx::query(sql).bind(path).fetch_optional(&store.readers).await.unwrap();
    one(row.as_ref().map(Found::of).as_ref())
}

/// `CROSS` keeps the order: from the wanted to their rows, as the server's left joins do.
async fn store_batch(State(store): State<Arc<Store>>, body: Bytes) -> Response {
    let body: BatchBody<'_> = serde_json::from_slice(&body).unwrap();
    let sql = find!("json_each($1) AS wanted CROSS JOIN secrets AS s ON s.path = wanted.value", "");
    let paths = serde_json::to_string(&body.paths).unwrap();
    let rows = sqlx::query(sql).bind(paths).fetch_all(&store.readers).await.unwrap();
    many(rows.iter().map(Found::of).collect::<Vec<_>>().iter())
}

/// One row in a transaction of its own, durable before it is answered.
async fn store_put(State(store): State<Arc<Store>>, Path(path): Path<String>, body: Bytes) -> Response {
    const SQL: &str = "INSERT INTO versions SELECT tenant, path, 2, secret_type, created_at, created_by, expires_at,
                              destroyed_at, key_generation, wrapped_key, $2
                       FROM versions WHERE tenant = 'default' AND path = $1 AND version = 1
                       ON CONFLICT (tenant, path, version) DO UPDATE SET ciphertext = excluded.ciphertext";
    let body: PutBody<'_> = serde_json::from_slice(&body).unwrap();
    let mut writer = store.writer.lock().await;
    let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await.unwrap();
    sqlx::query(SQL).bind(&path).bind(body.data.get().as_bytes()).execute(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
    written(&path)
}

type Memory = Arc<RwLock<HashMap<String, Found>>>;

async fn memory(options: SqliteConnectOptions) -> Router {
    let sql = find!("secrets AS s", "");
    let rows = sqlx::query(sql).fetch_all(&mut options.connect().await.unwrap()).await.unwrap();
    let secrets: HashMap<_, _> = rows.iter().map(Found::of).map(|found| (found.path.clone(), found)).collect();
    Router::new()
        .route("/v1/secrets/batch", post(memory_batch))
        .route("/v1/secrets/{*path}", get(memory_get).put(memory_put))
        .with_state(Arc::new(RwLock::new(secrets)))
}

async fn memory_get(State(secrets): State<Memory>, Path(path): Path<String>) -> Response {
    one(secrets.read().unwrap().get(&path))
}

async fn memory_batch(State(secrets): State<Memory>, body: Bytes) -> Response {
    let body: BatchBody<'_> = serde_json::from_slice(&body).unwrap();
    let secrets = secrets.read().unwrap();
    many(body.paths.iter().filter_map(|path| secrets.get(*path)))
}

async fn memory_put(State(secrets): State<Memory>, Path(path): Path<String>, body: Bytes) -> Response {
    let body: PutBody<'_> = serde_json::from_slice(&body).unwrap();
    secrets.write().unwrap().entry(path.clone()).and_modify(|found| found.data = body.data.to_owned());
    written(&path)
}
