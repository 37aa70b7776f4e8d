//! What lies on the disk, and what happens there at once (C-47, C-48, S-1 to S-4).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, TryRecvError},
    thread::sleep,
    time::Duration,
};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row};
use tokio::task::JoinSet;

use super::{
    crypto::{sayers, sources},
    leaks::files,
    number,
    routes::with_a_path,
};
use crate::{
    child::Process,
    guests::Directory,
    process,
    support::{Client, TestServer},
};

/// CVE-2021-38553: a database that others may read. The program is started by somebody whose files everybody may read
/// and write; what it makes is private all the same.
#[tokio::test]
async fn c_47_what_the_program_makes_is_private() {
    let policies = Directory::new().with("allow", "deadline = \"5s\"");
    let process = Process::start(&policies.path(), "info");
    let root = process.root();
    root.store("team/app/key", json!({"k": "v"})).await;
    assert_eq!(root.post("/v1/policies/reload", json!({})).await.status(), 200);
    let mut modes = BTreeMap::new();
    for path in files(&process.data_dir).into_iter().chain(files(&process.temporary)) {
        // The test made the data directory, and the process what is in it.
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        modes.insert(name, mode(&path));
        let parent = path.parent().unwrap();
        if parent != process.data_dir {
            assert_eq!(mode(parent), 0o700, "{}", parent.display());
        }
    }
    for made in ["portcullis.db", "portcullis.db-wal", "portcullis.db-shm", "portcullis.lock", "root.key", "last-good"]
    {
        assert!(modes.contains_key(made), "{made} is not among {modes:?}");
    }
    assert!(modes.len() >= 7, "and compiled policies: {modes:?}");
    assert!(modes.values().all(|mode| *mode == 0o600), "{modes:?}");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Every secret thing that is stored of a path: wrapped keys and ciphertexts.
async fn stored_of(data_dir: &Path, path: &str) -> Vec<Vec<u8>> {
    let mut connection = process::raw(data_dir).await;
    let query = sqlx::query("SELECT wrapped_key, ciphertext FROM versions WHERE path = ?").bind(path);
    let rows = query.fetch_all(&mut connection).await.unwrap();
    rows.iter().flat_map(|row| [row.get::<Vec<u8>, _>(0), row.get::<Vec<u8>, _>(1)]).collect()
}

/// The files that hold one of these.
fn holders(data_dir: &Path, things: &[Vec<u8>]) -> BTreeSet<PathBuf> {
    let holds = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        // Long values lie in pieces of a page; their beginnings are enough to be found by.
        things.iter().any(|thing| bytes.windows(32).any(|part| part == &thing[..32]))
    };
    files(data_dir).into_iter().filter(holds).collect()
}

/// CVE-2026-42186: what was deleted stayed. After a destruction no key and no ciphertext of it is in the database, nor in
/// the log that the database writes ahead.
#[tokio::test]
async fn c_48_what_is_destroyed_is_nowhere() {
    let mut server = TestServer::new().await;
    let root = server.root();
    for (path, ways) in [("gone/purged", "purge"), ("gone/destroyed", "destroy"), ("gone/pruned", "prune")] {
        for version in 1..=3 {
            let value = format!("{path} {version} {}", "x".repeat(5_000));
            root.store(path, json!({"k": value})).await;
        }
        root.store("kept/beside", json!({"k": path})).await;
        let things = stored_of(&server.data_dir, path).await;
        assert_eq!(things.len(), 6);
        assert!(!holders(&server.data_dir, &things).is_empty(), "the search finds what is there");
        match ways {
            "purge" => assert_eq!(root.delete(&format!("/v1/secrets/{path}?permanent=true")).await.status(), 204),
            "destroy" => {
                let body = json!({"versions": [1, 2, 3]});
                assert_eq!(root.post(&format!("/v1/destroy/{path}"), body).await.status(), 200);
            }
            _ => {
                let body = json!({"data": {"k": "new"}, "options": {"max_versions": 1}});
                assert_eq!(root.put(&format!("/v1/secrets/{path}"), body).await.status(), 200);
                // Nobody waits for the log because of versions that are merely too many.
                server.restart().await;
            }
        }
        let left = holders(&server.data_dir, &things);
        assert!(left.is_empty(), "{ways}: still in {left:?}");
    }
    // Of a purged secret not even its name is left, but for the audit log.
    let mut connection = process::raw(&server.data_dir).await;
    for table in ["secrets", "versions"] {
        let sql = format!("SELECT count(*) FROM {table} WHERE path = 'gone/purged'");
        let count: i64 = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap().get(0);
        assert_eq!(count, 0, "{table}");
    }
    assert_eq!(server.root().get("/v1/secrets/kept/beside").await.status(), 200);
}

/// The database as it was before versions had row numbers, with many values besides.
const BEFORE_ROW_NUMBERS: &str = "
    CREATE TABLE before (tenant TEXT NOT NULL, path TEXT NOT NULL, version INTEGER NOT NULL, secret_type TEXT NOT NULL,
                         created_at INTEGER NOT NULL, created_by TEXT NOT NULL, expires_at INTEGER, destroyed_at INTEGER,
                         key_generation INTEGER, wrapped_key BLOB, ciphertext BLOB, PRIMARY KEY (tenant, path, version))
        STRICT, WITHOUT ROWID;
    INSERT INTO before SELECT * FROM versions;
    WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 30000)
    INSERT INTO before SELECT 'other', 'path/' || n, 1, 'opaque', 1, 'somebody', NULL, NULL, 1, randomblob(80), randomblob(300)
                       FROM n;
    DROP TABLE versions;
    ALTER TABLE before RENAME TO versions;
    DELETE FROM _sqlx_migrations WHERE version > 4;
    VACUUM";

/// An old database is brought to this version without a copy of its values anywhere else, where what is destroyed later
/// would stay.
#[tokio::test]
async fn c_48_an_upgrade_leaves_no_copy() {
    let mut process = process::Process::new().await;
    process.server.restart().await;
    process.server.root().store("old", json!({"k": "x".repeat(500)})).await;
    process.server.stop().await;
    process::execute(&mut process::raw(&process.data_dir()).await, BEFORE_ROW_NUMBERS).await;
    let things = stored_of(&process.data_dir(), "old").await;
    let running = process.spawn(&[]);
    let descriptors = PathBuf::from(format!("/proc/{}/fd", running.id()));
    let (ended, end) = mpsc::channel();
    let watching = tokio::task::spawn_blocking(move || watched(&descriptors, &end));
    process.answers().await;
    drop(ended);
    let (looks, temporary) = watching.await.unwrap();
    assert!(looks > 20, "{looks}");
    assert!(temporary.is_empty(), "{temporary:?}");
    let root = process.client("user:root");
    assert_eq!(root.get("/v1/secrets/old").await.json().await.1["data"]["k"], "x".repeat(500));
    assert!(!holders(&process.data_dir(), &things).is_empty(), "the search finds what is there");
    assert_eq!(root.post("/v1/destroy/old", json!({"versions": [1]})).await.status(), 200);
    let left = holders(&process.data_dir(), &things);
    assert!(left.is_empty(), "still in {left:?}");
}

/// How often a process was looked at, and SQLite's temporary files that it had open.
fn watched(descriptors: &Path, end: &Receiver<()>) -> (usize, BTreeSet<PathBuf>) {
    let (mut looks, mut temporary) = (0, BTreeSet::new());
    while matches!(end.try_recv(), Err(TryRecvError::Empty)) {
        looks += 1;
        for descriptor in fs::read_dir(descriptors).into_iter().flatten().flatten() {
            let target = fs::read_link(descriptor.path()).unwrap_or_default();
            temporary.extend(Some(target).filter(|target| target.to_string_lossy().contains("etilqs_")));
        }
        sleep(Duration::from_millis(1));
    }
    (looks, temporary)
}

/// S-1: two that write and checkpoint at once corrupt a log of an old SQLite. One file opens what does either, and another
/// asserts the library's version before that.
#[test]
fn s_01_one_connection_writes_and_checkpoints() {
    let files = |names: &[&str]| names.iter().map(|name| format!("src/store/{name}.rs")).collect::<BTreeSet<_>>();
    // A backup is held against a scratch database in memory.
    assert_eq!(sayers("SqliteConnectOptions::new"), files(&["backup", "sqlite"]), "one place opens a vault's database");
    let apart = &sources()["src/store/backup.rs"];
    assert_eq!(apart.matches("SqliteConnectOptions::new").count(), 1);
    assert!(apart.contains("SqliteConnectOptions::new().in_memory(true)"));
    // The writer's connection alone writes, and alone asks for it; the start does, before there is a writer. A backup
    // reads the database over one like it, since it writes the copy.
    for text in ["Connection::open", "use rusqlite::"] {
        assert_eq!(sayers(text), files(&["direct", "readers"]), "{text}");
    }
    // Besides, a kind of error has its name, and the library its version.
    assert_eq!(sayers("rusqlite::"), files(&["direct", "mod", "readers", "sqlite"]));
    assert_eq!(sayers("wal_checkpoint"), files(&["direct"]));
    assert_eq!(sayers("B::settle_log("), files(&["writer"]));
    assert_eq!(sayers("direct::open("), files(&["backup", "sqlite"]));
    assert!(apart.contains("direct::open(&database)?.execute(\"VACUUM INTO ?\", [name])"));
    let readers = &sources()["src/store/readers.rs"];
    assert!(readers.contains("pragma_update(None, \"query_only\", true)"));
    assert_eq!(readers.matches("Connection::open").count(), 2, "both in the one function that says so");
    let code = &sources()["src/store/sqlite.rs"];
    for text in ["SqliteSynchronous::Full", "SqliteJournalMode::Wal", "secure_delete"] {
        assert!(code.contains(text), "{text}");
    }
    let direct = &sources()["src/store/direct.rs"];
    for pragma in [
        "\"journal_mode\", \"WAL\"",
        "\"synchronous\", \"FULL\"",
        "\"secure_delete\", true",
        "\"foreign_keys\", true",
        "\"temp_store\", \"MEMORY\"",
        "\"wal_autocheckpoint\", CHECKPOINT_PAGES",
    ] {
        assert!(direct.contains(pragma), "{pragma}");
    }
    let asserted = code.find("assert_library(").unwrap();
    for writes in ["settle_log(file.clone())", "migrate(&mut", "WriterHandle::start"] {
        assert!(asserted < code.find(writes).unwrap(), "the version is asserted before anything is written: {writes}");
    }
}

/// S-2 (`SQLITE_BUSY_SNAPSHOT`): a transaction that reads first and then writes fails at once where another wrote between.
/// What writes begins as a writer; whatever else begins cannot write.
#[test]
fn s_02_writers_begin_as_writers() {
    assert!(sources()["src/store/direct.rs"].contains("const BEGIN: &'static str = \"BEGIN IMMEDIATE\";"));
    assert_eq!(sayers("execute(B::BEGIN)"), BTreeSet::from(["src/store/writer.rs".to_owned()]));
    assert_eq!(sayers(".transaction("), BTreeSet::new(), "such a one begins as a reader");
    for (file, code) in sources().iter().filter(|(file, _)| file.contains("sqlite") || file.contains("writer")) {
        for line in code.lines().filter(|line| line.contains(".begin()")) {
            assert!(line.contains("line.begin()"), "{file}: {line}");
        }
    }
}

/// S-2 and S-3: sixty-four at once, on every route that changes one secret: nobody meets an error of the server, and
/// of those who expect the same version one wins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_02_s_04_sixty_four_writers_meet_no_fault() {
    let server = TestServer::new().await;
    let root = server.root();
    root.store("team/app/key", json!({"n": 0})).await;
    let mut crew = JoinSet::new();
    for writer in 0..64 {
        let root = root.clone();
        crew.spawn(async move { writes(&root, writer, number(6, 200)).await });
    }
    let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
    for (status, count) in crew.join_all().await.into_iter().flatten() {
        *statuses.entry(status).or_default() += count;
    }
    assert!(statuses.keys().all(|status| *status < 500), "{statuses:?}");
    let rounds = number(6, 200);
    for round in 0..rounds {
        assert_eq!(winners(&root, round).await, 1, "round {round}");
    }
    println!("{statuses:?}; {rounds} rounds of 64 who expect the same version");
}

/// One writer's turns on every route that changes something.
async fn writes(root: &Client, writer: usize, rounds: usize) -> BTreeMap<u16, usize> {
    let mut met = BTreeMap::new();
    for round in 0..rounds {
        for route in with_a_path().filter(|route| route.method != "GET") {
            let mut body: Value = route.body.map_or(Value::Null, |body| serde_json::from_str(body).unwrap());
            if body["data"].is_object() {
                body["data"]["n"] = json!(writer * 1_000 + round);
            }
            let request = root.request(route.method.parse().unwrap(), route.target);
            let request = request.header("content-type", "application/json").body(body.to_string());
            let status = request.send().await.unwrap().status().as_u16();
            *met.entry(status).or_default() += 1;
        }
    }
    met
}

/// How many of sixty-four win a version that all of them expect.
async fn winners(root: &Client, round: usize) -> usize {
    let path = format!("expected/r{}", round / 3);
    let expected = round % 3;
    let mut crew = JoinSet::new();
    for writer in 0..64 {
        let (root, target) = (root.clone(), format!("/v1/secrets/{path}"));
        crew.spawn(async move {
            let body = json!({"data": {"n": writer}, "options": {"expected_version": expected}});
            root.put(&target, body).await.status()
        });
    }
    let statuses = crew.join_all().await;
    assert!(statuses.iter().all(|status| matches!(status, 200 | 201 | 409)), "{statuses:?}");
    statuses.iter().filter(|status| **status < 300).count()
}

/// S-4, ASVS 15.4.2: what was true when it was asked, and is not when it is done. A rollback takes a value that was
/// destroyed meanwhile from nowhere; a restored secret that was purged meanwhile is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_04_a_value_that_is_destroyed_meanwhile_does_not_come_back() {
    let server = TestServer::new().await;
    let root = server.root();
    let (mut rolled_back, mut too_late) = (0, 0);
    for round in 0..number(40, 2_000) {
        let path = format!("race/r{round}");
        root.store(&path, json!({"k": "old"})).await;
        root.store(&path, json!({"k": "new"})).await;
        let (back, gone) = (format!("/v1/rollback/{path}"), format!("/v1/destroy/{path}"));
        let back = root.post(&back, json!({"version": 1}));
        let (back, gone) = tokio::join!(back, root.post(&gone, json!({"versions": [1]})));
        assert_eq!(gone.status(), 200);
        let (status, body) = back.json().await;
        let newest = root.get(&format!("/v1/secrets/{path}")).await.json().await.1;
        match status {
            200 => {
                assert_eq!((&newest["version"], &newest["data"]["k"]), (&json!(3), &json!("old")));
                rolled_back += 1;
            }
            404 => {
                assert_eq!((&body["error"]["code"], &newest["version"]), (&json!("version_not_found"), &json!(2)));
                too_late += 1;
            }
            _ => panic!("{status} {body}"),
        }
        let mut events = server.audit(&format!("&path_prefix={path}")).await;
        // Listed by when they were asked for; numbered in the order in which they were done.
        events.sort_by_key(|event| event["id"].as_str().unwrap().split('_').nth(2).unwrap().parse::<i64>().unwrap());
        let order: Vec<_> = events.iter().map(|event| (event["action"].as_str(), event["code"].as_str())).collect();
        let destroyed = order.iter().position(|event| *event == (Some("delete"), Some("ok"))).unwrap();
        let done = order.iter().rposition(|event| event.0 == Some("write")).unwrap();
        assert_eq!(status == 200, done < destroyed, "the log has them in the order in which they were done: {order:?}");
    }
    println!("{rolled_back} rollbacks came first, {too_late} came too late");
}

/// wasmtime RUSTSEC-2026-0222: what belongs to one engine is used with another. There is one place that makes them.
#[test]
fn c_60_one_file_makes_engines() {
    let makers = sayers("Engine::new(");
    assert_eq!(makers.len(), 1, "{makers:?}");
    assert!(makers.iter().all(|file| file.starts_with("src/policy/")));
}

/// wasmtime RUSTSEC-2026-0022: a call that is dropped half-way. Calls run to their end, or to their deadline.
#[test]
fn c_62_guests_are_not_called_asynchronously() {
    for text in ["call_async(", "async_support(true)", "instantiate_async("] {
        assert_eq!(sayers(text), BTreeSet::new(), "{text}");
    }
}
