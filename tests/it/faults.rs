//! What fails around the vault: the disk, the audit log, the database, the client, the process itself. Nothing that
//! was acknowledged is lost, nothing is half done, nothing leaves unrecorded, and nobody waits without end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row};
use tokio::task::JoinSet;

use crate::{
    postgres::{Cluster, at_exit, connect},
    process::{Process, execute, raw},
    support::{ALL_SCOPES, Answer, Client, Options, TestServer},
};

/// What no answer may hold while the audit log cannot be written.
const CANARY: &str = "canary-5f1d";
/// When a test gives up.
const FOREVER: Duration = Duration::from_mins(1);
/// Two seconds, and what a busy machine may add.
const PROMPT: Duration = Duration::from_millis(3_500);

/// Every way to ask.
fn questions(root: &Client, stranger: &Client) -> Vec<(&'static str, RequestBuilder)> {
    let none = Value::Null;
    let asked = [
        ("read", root, Method::GET, "/v1/secrets/kept", none.clone()),
        ("absent", root, Method::GET, "/v1/secrets/none", none.clone()),
        ("batch", root, Method::POST, "/v1/secrets/batch", json!({"paths": ["kept", "none"]})),
        (
            "batch that fails fast",
            root,
            Method::POST,
            "/v1/secrets/batch",
            json!({"paths": ["kept", "none"], "options": {"fail_fast": true}}),
        ),
        ("list", root, Method::GET, "/v1/secrets", none.clone()),
        ("metadata", root, Method::GET, "/v1/metadata/kept", none.clone()),
        ("versions", root, Method::GET, "/v1/versions/kept", none.clone()),
        ("write", root, Method::PUT, "/v1/secrets/kept", json!({"data": {"k": "new"}})),
        ("create", root, Method::PUT, "/v1/secrets/created", json!({"data": {"k": "new"}})),
        ("delete", root, Method::DELETE, "/v1/secrets/kept", none.clone()),
        ("purge", root, Method::DELETE, "/v1/secrets/kept?permanent=true", none.clone()),
        ("destroy", root, Method::POST, "/v1/destroy/kept", json!({"versions": [1]})),
        ("rollback", root, Method::POST, "/v1/rollback/kept", json!({"version": 1})),
        ("denial", stranger, Method::GET, "/v1/secrets/kept", none.clone()),
        ("denied write", stranger, Method::PUT, "/v1/secrets/kept", json!({"data": {}})),
    ];
    let request = |(what, client, method, target, body): (_, &Client, _, _, Value)| {
        let request = client.request(method, target).timeout(FOREVER);
        match body {
            Value::Null => (what, request),
            body => (what, request.header("content-type", "application/json").body(body.to_string())),
        }
    };
    asked.into_iter().map(request).collect()
}

async fn is_refused(what: &str, request: RequestBuilder) {
    let started = Instant::now();
    let (status, body) = Answer(request.send().await.unwrap()).json().await;
    assert_eq!(status, 503, "{what}: {body}");
    assert_eq!(body["error"]["code"], "service_unavailable", "{what}: {body}");
    assert!(!body.to_string().contains(CANARY), "{what}: {body}");
    assert!(started.elapsed() < PROMPT, "{what}: {:?}", started.elapsed());
}

/// Asks in every way there is, all at once, and expects to be told, soon, that it cannot be done now.
async fn all_is_refused(root: &Client, stranger: &Client) {
    let mut answers = JoinSet::new();
    for (what, request) in questions(root, stranger) {
        answers.spawn(is_refused(what, request));
    }
    answers.join_all().await;
    readiness_becomes(root, 503).await;
}

/// The same, one after the other: on SQLite, those who ask together are committed together.
async fn each_is_refused(root: &Client, stranger: &Client) {
    for (what, request) in questions(root, stranger) {
        is_refused(what, request).await;
    }
}

/// The answer of a readiness check is given again for a second.
async fn readiness_becomes(client: &Client, status: u16) {
    let started = Instant::now();
    while client.get("/v1/health/ready").await.status() != status {
        assert!(started.elapsed() < Duration::from_secs(4), "readiness does not become {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// All works, at once, and `kept` is as it was.
async fn all_is_well(root: &Client) {
    let body = root.batch(&["kept", "created"]).await;
    assert_eq!(body["secrets"]["kept"]["data"]["k"], CANARY, "{body}");
    assert_eq!(body["secrets"]["kept"]["version"], 1);
    assert_eq!(body["errors"]["created"]["code"], "secret_not_found", "what was refused was not done");
    root.store("after", json!({"k": "v"})).await;
    readiness_becomes(root, 200).await;
}

async fn with_a_secret(server: &TestServer) -> (Client, Client) {
    let root = server.root();
    root.store("kept", json!({"k": CANARY})).await;
    (root, server.client("user:stranger"))
}

/// Every version that was written has one event, and every event of a write its version.
async fn versions_and_events_agree(server: &TestServer, prefix: &str) -> BTreeMap<String, BTreeSet<i64>> {
    let mut versions = BTreeMap::new();
    let mut database = raw(&server.data_dir).await;
    let sql = format!("SELECT path, version FROM versions WHERE path LIKE '{prefix}%'");
    for row in sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut database).await.unwrap() {
        versions.entry(row.get::<String, _>(0)).or_insert_with(BTreeSet::new).insert(row.get::<i64, _>(1));
    }
    let mut told: BTreeMap<String, BTreeSet<i64>> = BTreeMap::new();
    for event in server.audit(&format!("&action=write&success=true&path_prefix={prefix}")).await {
        let path = event["secret_path"].as_str().unwrap().to_owned();
        let fresh = told.entry(path).or_default().insert(event["version"].as_i64().unwrap());
        assert!(fresh, "two events of one version: {event}");
    }
    assert_eq!(versions, told);
    for (path, numbers) in &versions {
        let newest = i64::try_from(numbers.len()).unwrap();
        assert_eq!(*numbers, (1..=newest).collect(), "{path} has a gap");
        let body = server.root().batch(&[path]).await;
        assert_eq!(body["secrets"][path]["data"]["n"], newest, "{body}");
    }
    let check = sqlx::query("PRAGMA integrity_check").fetch_one(&mut database).await.unwrap();
    assert_eq!(check.get::<String, _>(0), "ok");
    versions
}

/// Writes version after version to a path until told to stop, on the condition that nothing comes between. Answers the
/// newest version that was acknowledged.
async fn write_on(client: Client, path: String, acknowledged: Arc<AtomicUsize>, stop: Arc<AtomicBool>) -> i64 {
    let mut newest = None;
    let mut kept = 0;
    // Whether a write was given up that may still take its place.
    let mut in_doubt = false;
    while !stop.load(Ordering::Relaxed) {
        let Some(before) = (if newest.is_some() { newest } else { newest_version(&client, &path).await }) else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        assert!(before >= kept, "{path}: version {kept} was acknowledged, {before} is there");
        let next = before + 1;
        let options = json!({"max_versions": 1000, "expected_version": before});
        let body = json!({"data": {"n": next}, "options": options}).to_string();
        let request = client.request(Method::PUT, &format!("/v1/secrets/{path}"));
        // What is not acknowledged may stand or not; the next round looks.
        newest = match request.header("content-type", "application/json").body(body).send().await {
            Ok(answer) if answer.status().is_success() => {
                acknowledged.fetch_add(1, Ordering::Relaxed);
                kept = next;
                in_doubt = false;
                Some(next)
            }
            Ok(answer) => {
                let conflict = in_doubt && answer.status() == 409;
                assert!(conflict || answer.status() == 503, "{path} {next}: {:?}", answer.text().await);
                in_doubt = true;
                None
            }
            Err(_) => {
                in_doubt = true;
                None
            }
        };
    }
    kept
}

/// The newest version; 0 where there is none; nothing where nobody answers.
async fn newest_version(client: &Client, path: &str) -> Option<i64> {
    let answer = client.request(Method::GET, &format!("/v1/secrets/{path}")).send().await.ok()?;
    match answer.status().as_u16() {
        200 => serde_json::from_str::<Value>(&answer.text().await.ok()?).ok()?["version"].as_i64(),
        404 => Some(0),
        503 => None,
        other => panic!("{other}"),
    }
}

async fn reach(counter: &AtomicUsize, wanted: usize) {
    let started = Instant::now();
    while counter.load(Ordering::Relaxed) < wanted {
        assert!(started.elapsed() < FOREVER, "the writers get no further");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

// ---------------------------------------------------------------------------------------------- the audit log

#[tokio::test]
async fn what_cannot_be_audited_is_not_done() {
    let server = TestServer::new().await;
    let (root, stranger) = with_a_secret(&server).await;
    let mut database = raw(&server.data_dir).await;
    for no in ["ABORT, 'no'", "IGNORE"] {
        let trigger = format!("CREATE TRIGGER no BEFORE INSERT ON audit_log BEGIN SELECT RAISE({no}); END");
        execute(&mut database, &trigger).await;
        all_is_refused(&root, &stranger).await;
        each_is_refused(&root, &stranger).await;
        execute(&mut database, "DROP TRIGGER no").await;
        all_is_well(&root).await;
    }
    execute(&mut database, "ALTER TABLE audit_log RENAME TO hidden").await;
    all_is_refused(&root, &stranger).await;
    each_is_refused(&root, &stranger).await;
    execute(&mut database, "ALTER TABLE hidden RENAME TO audit_log").await;
    all_is_well(&root).await;
}

#[tokio::test]
async fn nobody_waits_long_for_a_log_that_is_locked() {
    let server = TestServer::new().await;
    let (root, stranger) = with_a_secret(&server).await;
    let mut database = raw(&server.data_dir).await;
    execute(&mut database, "BEGIN IMMEDIATE").await;
    for _ in 0..2 {
        all_is_refused(&root, &stranger).await;
    }
    execute(&mut database, "ROLLBACK").await;
    all_is_well(&root).await;
    // Who need not wait long is served.
    execute(&mut database, "BEGIN IMMEDIATE").await;
    let (version, ()) = tokio::join!(root.store("patient", json!({})), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        execute(&mut database, "ROLLBACK").await;
    });
    assert_eq!(version, 1);
}

// --------------------------------------------------------------------------------------------------- the disk

/// Writes and reads until there is no more room, then with room again. Answers the paths acknowledged.
async fn no_room(root: &Client, stranger: &Client, fill: impl AsyncFn(), free: impl AsyncFn()) -> BTreeSet<String> {
    let mut acknowledged = BTreeSet::new();
    fill().await;
    let mut refused = false;
    for n in 0..2_000 {
        let path = format!("w/{n}");
        let answer = root.put(&format!("/v1/secrets/{path}"), json!({"data": {"n": 1, "k": "x".repeat(20_000)}})).await;
        if answer.status() == 503 {
            refused = true;
            break;
        }
        assert_eq!(answer.status(), 201);
        acknowledged.insert(path);
    }
    assert!(refused, "there was no end of room");
    // What needs less room than a write finds the last of it.
    let mut tries = 0;
    while root.get("/v1/secrets/kept").await.status() != 503 {
        tries += 1;
        assert!(tries < 2_000, "there was no end of room for reads");
    }
    readiness_becomes(root, 503).await;
    all_is_refused(root, stranger).await;
    each_is_refused(root, stranger).await;
    free().await;
    all_is_well(root).await;
    let path = "w/last".to_owned();
    root.store(&path, json!({"n": 1})).await;
    acknowledged.insert(path);
    acknowledged
}

#[tokio::test]
async fn a_full_disk_refuses_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=3m,mode=700", "none"]).arg(directory.path()).stderr(Stdio::null());
    if !mount.status().is_ok_and(|status| status.success()) {
        println!("SKIPPED: no filesystem of its own size can be mounted here");
        return;
    }
    let mut unmount = at_exit(r#"umount -l "$1"; rmdir "$1""#, directory.path());
    let data_dir = directory.path().join("data");
    let mut server = TestServer::start(Options { data_dir: Some(data_dir), ..Options::default() }).await;
    let (root, stranger) = with_a_secret(&server).await;
    let ballast = directory.path().join("ballast");
    let fill = async || {
        let mut file = fs::File::create(&ballast).unwrap();
        while file.write_all(&[0; 1_024]).is_ok() {}
    };
    let acknowledged = no_room(&root, &stranger, fill, async || fs::remove_file(&ballast).unwrap()).await;
    for _ in 0..2 {
        let kept = versions_and_events_agree(&server, "w/").await;
        assert_eq!(kept.into_keys().collect::<BTreeSet<_>>(), acknowledged);
        server.restart().await;
    }
    server.stop().await;
    drop(server);
    drop(unmount.stdin.take());
    unmount.wait().unwrap();
}

#[tokio::test]
async fn a_file_that_may_not_grow_refuses_and_recovers() {
    let vault = Process::new().await;
    let process = vault.start().await;
    let (root, stranger) = (vault.client("user:root"), vault.client("user:stranger"));
    root.store("kept", json!({"k": CANARY})).await;
    let limit = |bytes: String| {
        let pid = process.id().to_string();
        let status = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}:unlimited")]).status();
        assert!(status.unwrap().success());
    };
    let log = vault.data_dir().join("portcullis.db-wal");
    let fill = async || limit((fs::metadata(&log).unwrap().len() + 100_000).to_string());
    let acknowledged = no_room(&root, &stranger, fill, async || limit("unlimited".to_owned())).await;
    drop(process);
    let server = vault.in_process().await;
    let kept = versions_and_events_agree(&server, "w/").await;
    assert_eq!(kept.into_keys().collect::<BTreeSet<_>>(), acknowledged);
}

// ------------------------------------------------------------------------------------------------- PostgreSQL

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_goes_away_comes_back() {
    let Some(cluster) = Cluster::start() else { return };
    let url = Some(cluster.url());
    let server = TestServer::start(Options { database_url: url, ..Options::default() }).await;
    let (root, stranger) = with_a_secret(&server).await;

    // Locked.
    let mut other = connect(&cluster.url()).await;
    sqlx::raw_sql("BEGIN; LOCK TABLE audit_log").execute(&mut other).await.unwrap();
    all_is_refused(&root, &stranger).await;
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    all_is_well(&root).await;

    // Silent.
    cluster.freeze(true);
    for _ in 0..2 {
        all_is_refused(&root, &stranger).await;
    }
    cluster.freeze(false);
    all_is_well(&root).await;

    // Gone, under writers.
    let (acknowledged, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut writers = JoinSet::new();
    for n in 0..4 {
        let writer = write_on(server.root(), format!("w/{n}"), Arc::clone(&acknowledged), Arc::clone(&stop));
        writers.spawn(writer);
    }
    for round in 1..=3 {
        reach(&acknowledged, round * 40).await;
        cluster.halt();
        if round == 1 {
            all_is_refused(&root, &stranger).await;
        }
        cluster.resume();
    }
    reach(&acknowledged, 160).await;
    stop.store(true, Ordering::Relaxed);
    writers.join_all().await;
    all_is_well(&root).await;
    let events = server.audit("&action=write&success=true&path_prefix=w/").await;
    let mut database = connect(&cluster.url()).await;
    let rows = sqlx::query("SELECT path, version FROM versions WHERE path LIKE 'w/%'").fetch_all(&mut database).await;
    let kept: BTreeSet<(String, i64)> = rows.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
    let told: Vec<(String, i64)> = events
        .iter()
        .map(|event| (event["secret_path"].as_str().unwrap().to_owned(), event["version"].as_i64().unwrap()))
        .collect();
    assert_eq!(told.len(), kept.len(), "one event for each version");
    assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), kept);
    drop(server);
}

// ------------------------------------------------------------------------------------------------- the client

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_splits_nothing() {
    let mut server = TestServer::new().await;
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    let token = server.token("user:root");
    let mut clients = JoinSet::new();
    for n in 0..200_u64 {
        let (address, token) = (address.clone(), token.clone());
        clients.spawn(async move {
            let body = json!({"data": {"n": 1}}).to_string();
            let request = format!(
                "PUT /v1/secrets/w/{n} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
                 content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut socket, request.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_micros(n * 50)).await;
            if n % 2 == 0 {
                // A reset instead of an orderly end.
                socket.set_zero_linger().unwrap();
            }
        });
    }
    clients.join_all().await;
    // The writer takes requests in order: what comes after these waits for them, once there is a place for it.
    let (root, started) = (server.root(), Instant::now());
    while root.put("/v1/secrets/last", json!({"data": {"n": 1}})).await.status() / 100 != 2 {
        assert!(started.elapsed() < FOREVER, "it finds no place");
    }
    versions_and_events_agree(&server, "w/").await;
    server.restart().await;
    let kept = versions_and_events_agree(&server, "w/").await;
    assert!(!kept.is_empty());
}

// ------------------------------------------------------------------------------------------------ the process

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_keeps_what_was_acknowledged() {
    let mut server = TestServer::new().await;
    let (acknowledged, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut writers = JoinSet::new();
    for n in 0..8 {
        let path = format!("w/{n}");
        let writer = write_on(server.root(), path.clone(), Arc::clone(&acknowledged), Arc::clone(&stop));
        writers.spawn(async move { (path, writer.await) });
    }
    reach(&acknowledged, 200).await;
    server.stop().await;
    stop.store(true, Ordering::Relaxed);
    let newest = writers.join_all().await;
    server.restart().await;
    let kept = versions_and_events_agree(&server, "w/").await;
    for (path, acknowledged) in newest {
        assert!(kept[&path].len() >= usize::try_from(acknowledged).unwrap(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_nothing_that_was_acknowledged() {
    const CYCLES: usize = 10;
    let vault = Process::new().await;
    let mut process = vault.start().await;
    let (acknowledged, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut writers = JoinSet::new();
    for n in 0..8 {
        let path = format!("w/{n}");
        let writer = write_on(vault.client("user:root"), path.clone(), Arc::clone(&acknowledged), Arc::clone(&stop));
        writers.spawn(async move { (path, writer.await) });
    }
    let mut slowest = Duration::ZERO;
    for cycle in 1..=CYCLES {
        reach(&acknowledged, cycle * 60 + cycle * 7 % 13).await;
        drop(process);
        let started = Instant::now();
        process = vault.start().await;
        slowest = slowest.max(started.elapsed());
    }
    println!("the slowest restart took {slowest:?}");
    assert!(slowest < Duration::from_secs(10));
    stop.store(true, Ordering::Relaxed);
    let newest = writers.join_all().await;
    drop(process);
    let server = vault.in_process().await;
    let kept = versions_and_events_agree(&server, "w/").await;
    for (path, acknowledged) in newest {
        assert!(kept[&path].len() >= usize::try_from(acknowledged).unwrap(), "{path}");
    }
}

// --------------------------------------------------------------------------------------------------- the rows

#[tokio::test]
async fn a_row_that_was_tampered_with_is_unreadable_and_no_other() {
    let mut server = TestServer::new().await;
    let root = server.root();
    let paths = [
        "whole",
        "from-path",
        "from-version",
        "from-tenant",
        "cut",
        "empty",
        "cut-key",
        "generation",
        "no-generation",
        "metadata",
        "type",
        "version-type",
        "latest",
        "no-version",
        "undecodable",
    ];
    for path in paths {
        root.store(path, json!({"path": path, "v": 1})).await;
        root.store(path, json!({"path": path, "v": 2})).await;
    }
    let acme = |server: &TestServer| server.client_with_token(server.token_with("user:root", "acme", &ALL_SCOPES, &[]));
    for _ in 0..2 {
        acme(&server).store("from-tenant", json!({"path": "acme's"})).await;
    }
    // It has nothing of what was written in memory then.
    server.restart().await;
    let (root, acme) = (server.root(), acme(&server));
    let copy = |to: &str, tenant: &str, path: &str, version: i64| {
        format!(
            "UPDATE versions SET (wrapped_key, ciphertext) = (SELECT wrapped_key, ciphertext FROM versions
             WHERE tenant = '{tenant}' AND path = '{path}' AND version = {version})
             WHERE tenant = 'default' AND path = '{to}' AND version = 2;"
        )
    };
    let set = |table: &str, path: &str, what: &str| {
        let newest = if table == "versions" { "AND version = 2" } else { "" };
        format!("UPDATE {table} SET {what} WHERE tenant = 'default' AND path = '{path}' {newest};")
    };
    let tampering = [
        copy("from-path", "default", "whole", 2),
        copy("from-version", "default", "from-version", 1),
        copy("from-tenant", "acme", "from-tenant", 2),
        set("versions", "cut", "ciphertext = substr(ciphertext, 1, length(ciphertext) - 1)"),
        set("versions", "empty", "ciphertext = x'', wrapped_key = x''"),
        set("versions", "cut-key", "wrapped_key = substr(wrapped_key, 1, 8)"),
        set("versions", "generation", "key_generation = 2"),
        set("versions", "no-generation", "key_generation = -1"),
        set("secrets", "metadata", "metadata = '{\"tags\":[\"cut'"),
        set("secrets", "type", "secret_type = 'kv2'"),
        set("versions", "version-type", "secret_type = ''"),
        set("secrets", "latest", "latest = 4294967296"),
        set("secrets", "undecodable", "metadata = CAST(x'ff' AS TEXT)"),
        "DELETE FROM versions WHERE tenant = 'default' AND path = 'no-version' AND version = 2;".to_owned(),
    ];
    let mut database = raw(&server.data_dir).await;
    execute(&mut database, tampering.concat()).await;

    let answer = root.post("/v1/secrets/batch", json!({ "paths": paths })).await;
    let request_id = answer.header("x-request-id").unwrap();
    let (status, body) = answer.json().await;
    assert_eq!((status, &body["retrieved"]), (200, &json!(1)), "{body}");
    assert_eq!(body["secrets"]["whole"]["data"], json!({"path": "whole", "v": 2}));
    for path in &paths[1..] {
        assert_eq!(body["errors"][path]["code"], "unreadable", "{path}: {body}");
        root.get(&format!("/v1/secrets/{path}")).await.expect_error(500, "unreadable").await;
    }
    let events = server.audit(&format!("&request_id={request_id}")).await;
    let unreadable = events.iter().filter(|event| event["code"] == "unreadable" && event["success"] == false).count();
    assert_eq!((events.len(), unreadable), (paths.len(), paths.len() - 1));
    assert_eq!(acme.batch(&["from-tenant"]).await["retrieved"], 1, "the other tenant's is whole");

    // Described, listed, written: the damaged one alone is refused.
    let (status, body) =
        root.post("/v1/secrets/batch/metadata", json!({"paths": ["whole", "metadata"]})).await.json().await;
    assert_eq!((status, &body["errors"]["metadata"]["code"]), (200, &json!("unreadable")), "{body}");
    assert_eq!(body["metadata"]["whole"]["version"], 2);
    root.get("/v1/metadata/type").await.expect_error(500, "unreadable").await;
    root.get("/v1/versions/version-type").await.expect_error(500, "unreadable").await;
    let refused = root.put("/v1/secrets/metadata", json!({"data": {}})).await;
    let request_id = refused.header("x-request-id").unwrap();
    refused.expect_error(500, "unreadable").await;
    assert_eq!(server.audit(&format!("&request_id={request_id}")).await[0]["code"], "unreadable");
    root.post("/v1/rollback/cut", json!({"version": 2})).await.expect_error(500, "unreadable").await;
    assert_eq!(root.post("/v1/rollback/cut", json!({"version": 1})).await.status(), 200, "and is whole again so");
    assert_eq!(root.batch(&["cut"]).await["retrieved"], 1);
    execute(&mut database, "UPDATE secrets SET path = 'a//b' WHERE path = 'empty' AND tenant = 'default'").await;
    let (status, listed) = root.get("/v1/secrets?limit=4").await.json().await;
    assert_eq!(status, 200, "{listed}");
    let listed: Vec<_> = listed["secrets"].as_array().unwrap().iter().map(|entry| entry["path"].clone()).collect();
    assert_eq!(listed, ["cut", "cut-key", "from-path", "from-tenant"]);
}

#[tokio::test]
async fn no_flipped_bit_opens() {
    let mut server = TestServer::new().await;
    server.root().store("a", json!({"k": CANARY})).await;
    // It has nothing of what was written in memory then.
    server.restart().await;
    let root = server.root();
    let mut database = raw(&server.data_dir).await;
    for column in ["wrapped_key", "ciphertext"] {
        let sql = format!("SELECT {column} FROM versions");
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut database).await.unwrap();
        let whole: Vec<u8> = row.get(0);
        let update = format!("UPDATE versions SET {column} = $1");
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            let update = sqlx::query(AssertSqlSafe(update.clone())).bind(flipped);
            update.execute(&mut database).await.unwrap();
            let (status, body) = root.get("/v1/secrets/a").await.json().await;
            assert_eq!((status, &body["error"]["code"]), (500, &json!("unreadable")), "{column} {at}: {body}");
        }
        sqlx::query(AssertSqlSafe(update)).bind(whole).execute(&mut database).await.unwrap();
    }
    assert_eq!(root.batch(&["a"]).await["secrets"]["a"]["data"]["k"], CANARY);
}
