//! Sealing and unsealing: what is sealed holds no key and answers nobody, and is opened on its own machine alone.

use std::{
    env, fs,
    io::Write,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use portcullis::{
    crypto::{RootKey, RootKeySource},
    domain::{Scope, Timestamp},
    server::SystemEntropy,
};
use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    memory::{Needles, keys_of, search},
    process::Process,
    support::{Client, Options, TestServer},
};

fn admin(server: &TestServer) -> Client {
    server.client_with_token(server.token_with("user:root", "default", &[Scope::Admin], &[]))
}

/// The program with a data directory, and lines on its standard input.
fn program(words: &[&str], data_dir: &Path, input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(words)
        .arg("--data-dir")
        .arg(data_dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn run(words: &'static [&'static str], server: &TestServer, input: &str) -> Output {
    let (data_dir, input) = (server.data_dir.clone(), input.to_owned());
    tokio::task::spawn_blocking(move || program(words, &data_dir, &input)).await.unwrap()
}

async fn seal(admin: &Client) {
    let (status, body) = admin.post("/v1/seal", json!({})).await.json().await;
    assert_eq!((status, body), (200, json!({"sealed": true})));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_server_answers_nobody_until_it_is_unsealed() {
    let mut server = TestServer::new().await;
    let (root, admin) = (server.root(), admin(&server));
    root.store("a", json!({"k": 1})).await;
    root.post("/v1/seal", json!({})).await.expect_error(403, "insufficient_scope").await;
    let other = server.client_with_token(server.token_with("user:root", "acme", &[Scope::Admin], &[]));
    other.post("/v1/seal", json!({})).await.expect_error(403, "access_denied").await;
    let open = run(&["seal-status"], &server, "").await;
    assert_eq!((open.status.code(), text(&open.stdout).trim()), (Some(0), "unsealed"));

    seal(&admin).await;
    for (client, method, target) in [
        (&root, Method::GET, "/v1/secrets/a"),
        (&root, Method::PUT, "/v1/secrets/a"),
        (&root, Method::POST, "/v1/secrets/batch"),
        (&admin, Method::GET, "/v1/keys"),
        (&admin, Method::POST, "/v1/seal"),
        (&admin, Method::POST, "/v1/unseal"),
        (&admin, Method::GET, "/v1/metrics"),
        (&admin, Method::GET, "/v1/nothing"),
    ] {
        let answer = crate::support::Answer(client.request(method, target).send().await.unwrap());
        assert!(answer.expect_error(503, "service_unavailable").await.contains("sealed"), "{target}");
    }
    assert_eq!(root.get("/v1/health").await.status(), 200);
    assert_eq!(root.get("/v1/version").await.status(), 200);
    let (status, body) = root.get("/v1/health/ready").await.json().await;
    assert_eq!((status, body), (503, json!({"status": "not_ready", "failing": ["sealed"]})));
    let sealed = run(&["seal-status"], &server, "").await;
    assert_eq!((sealed.status.code(), text(&sealed.stdout).trim()), (Some(3), "sealed"));

    let key = server.data_dir.join("root.key");
    let kept = fs::read(&key).unwrap();
    fs::write(&key, [9; 32]).unwrap();
    let refused = run(&["unseal"], &server, "").await;
    assert!(text(&refused.stderr).contains("not this vault's"), "{refused:?}");
    root.get("/v1/secrets/a").await.expect_error(503, "service_unavailable").await;
    fs::write(&key, kept).unwrap();
    for _ in 0..2 {
        assert_eq!(run(&["unseal"], &server, "").await.status.code(), Some(0));
        assert_eq!(root.batch(&["a"]).await["secrets"]["a"]["data"]["k"], 1, "and tokens are valid as before");
    }
    let actions: Vec<_> = server.audit("&action=seal,unseal,keys").await;
    let told: Vec<_> =
        actions.iter().map(|e| format!("{} {}", e["action"].as_str().unwrap(), e["code"].as_str().unwrap())).collect();
    assert_eq!(told, ["unseal ok", "seal ok", "keys insufficient_scope"]);
    // Sealed or not, it stops when it is told to.
    seal(&admin).await;
    server.stop().await;
    assert!(!server.data_dir.join("portcullis.sock").exists());
}

#[tokio::test]
async fn the_operators_socket_is_the_servers_users_alone() {
    let server = TestServer::new().await;
    let socket = server.data_dir.join("portcullis.sock");
    while !socket.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let metadata = fs::metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    // Whoever gets past the modes is known by their user id.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    for directory in socket.ancestors().skip(1).take_while(|directory| directory.starts_with(env::temp_dir())) {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let script = format!(
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect({socket:?})\n\
         s.sendall(b'GET /v1/seal-status HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n')\nprint(s.recv(4096))"
    );
    let ask = async |user: &'static str| {
        let script = script.clone();
        let asked = tokio::task::spawn_blocking(move || {
            Command::new("setpriv").args(["--reuid", user, "--clear-groups", "python3", "-c", &script]).output()
        });
        asked.await.unwrap()
    };
    let Ok(own) = ask("0").await else { return println!("SKIPPED: no setpriv") };
    if !own.status.success() {
        return println!("SKIPPED: the test is not run by root, or without Python: {}", text(&own.stderr));
    }
    assert!(text(&own.stdout).contains("sealed"), "{own:?}");
    let strangers = ask("65534").await.unwrap();
    assert!(!text(&strangers.stdout).contains("sealed"), "{strangers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_open_a_server_that_started_sealed() {
    let vault = Process::new().await;
    let data_dir = vault.data_dir();
    let split = program(&["keys", "split", "--shares", "5", "--threshold", "3"], &data_dir, "");
    let shares: Vec<String> = text(&split.stdout).lines().map(str::to_owned).collect();
    assert_eq!(shares.len(), 5, "{split:?}");
    let other = RootKey::fresh(&SystemEntropy).split(3, 5, &SystemEntropy).unwrap();
    let config = vault.server.scratch().join("portcullis.toml");
    let with_shares = fs::read_to_string(&config).unwrap() + "\n[root_key]\nshares = 3\n";
    fs::write(&config, with_shares).unwrap();
    // Its key is wherever the shares are.
    let key = fs::read(data_dir.join("root.key")).unwrap();
    let process = vault.start_with_another_key().await;
    let client = vault.client("user:root");
    let put = json!({"data": {"k": 1}});
    client.put("/v1/secrets/a", put.clone()).await.expect_error(503, "service_unavailable").await;
    let unseal = async |input: String| {
        let data_dir = data_dir.clone();
        tokio::task::spawn_blocking(move || program(&["unseal"], &data_dir, &input)).await.unwrap()
    };
    let (start, last) = shares[0].split_at(shares[0].len() - 1);
    let typo = unseal(format!("{start}{}\n", if last == "0" { "1" } else { "0" })).await;
    assert!(text(&typo.stderr).contains("typing error"), "{typo:?}");
    let two = unseal(format!("{}\n{}\n", shares[4], shares[1])).await;
    assert!(text(&two.stderr).contains("2 of 3 shares") && !two.status.success(), "{two:?}");
    let stray = unseal(format!("{}\n", *other[0].text())).await;
    assert!(text(&stray.stderr).contains("belongs to other shares"), "{stray:?}");
    let third = unseal(format!("{}\n", shares[2])).await;
    assert!(text(&third.stderr).contains("unsealed") && third.status.success(), "{third:?}");
    assert_eq!(client.put("/v1/secrets/a", put).await.status(), 201);
    drop(process);

    // A whole set of another key is refused by the fingerprint, and forgotten.
    let _process = vault.start_with_another_key().await;
    let wrong = unseal(lines(other.iter().take(3).map(|share| share.text().to_string()))).await;
    assert!(text(&wrong.stderr).contains("not this vault's"), "{wrong:?}");
    let status = program(&["seal-status"], &data_dir, "");
    assert_eq!(text(&status.stdout).trim(), "sealed: 0 of 3 shares are there");
    let right = unseal(lines(shares.iter().skip(2).cloned())).await;
    assert!(right.status.success(), "{right:?}");
    assert_eq!(client.batch(&["a"]).await["secrets"]["a"]["data"]["k"], 1);
    assert_eq!(fs::read(data_dir.join("root.key")).unwrap(), key);
}

fn lines(texts: impl Iterator<Item = String>) -> String {
    texts.collect::<Vec<_>>().join("\n") + "\n"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_file_and_a_program_open_a_server() {
    let mut server = TestServer::new().await;
    server.root().store("a", json!({"k": 1})).await;
    server.stop().await;
    let sealed = server.scratch().join("sealed");
    let passphrase = server.scratch().join("passphrase");
    fs::write(&passphrase, "correct horse\n").unwrap();
    fs::set_permissions(&passphrase, fs::Permissions::from_mode(0o600)).unwrap();
    let words = ["keys", "seal-file", sealed.to_str().unwrap(), "--passphrase-file", passphrase.to_str().unwrap()];
    let made = program(&words, &server.data_dir, "");
    assert!(made.status.success(), "{made:?}");
    let key = server.data_dir.join("root.key");
    for lines in [
        format!("[root_key]\nsealed_file = {sealed:?}\npassphrase = {{ file = {passphrase:?} }}\n"),
        format!("[root_key]\ncommand = [\"cat\", {key:?}]\n"),
    ] {
        let file = server.scratch().join("other.toml");
        fs::write(&file, &lines).unwrap();
        let config = portcullis::config::Config::load(Some(&file), []).unwrap();
        let loaded = RootKey::load(&config.root_key_source().unwrap()).unwrap();
        let plain = RootKey::load(&RootKeySource::File(key.clone())).unwrap();
        assert_eq!(loaded.fingerprint(), plain.fingerprint(), "{lines}");
        let other =
            TestServer::start(Options { data_dir: Some(server.data_dir.clone()), config: lines, ..Options::default() });
        let mut other = other.await;
        let admin = admin(&other);
        seal(&admin).await;
        assert!(run(&["unseal"], &other, "").await.status.success());
        assert_eq!(other.root().batch(&["a"]).await["secrets"]["a"]["data"]["k"], 1);
        other.stop().await;
    }
}

/// Writes and reads until told to stop; what is sealed meanwhile is refused, and nothing else is.
fn load(vault: &Process, stop: &Arc<AtomicBool>, done: &Arc<AtomicUsize>) -> JoinSet<()> {
    let mut load = JoinSet::new();
    for worker in 0..3 {
        let (client, stop, done) = (vault.client("user:root"), Arc::clone(stop), Arc::clone(done));
        load.spawn(async move {
            let path = format!("/v1/secrets/load/{worker}");
            while !stop.load(Ordering::Relaxed) {
                let put = client.put(&path, json!({"data": {"canary": format!("canary-{worker}")}})).await.status();
                let (read, _) = client.get(&path).await.json().await;
                assert!(matches!(put, 200 | 201 | 503) && matches!(read, 200 | 404 | 503), "{put} {read}");
                if put != 503 && read == 200 {
                    done.fetch_add(1, Ordering::Relaxed);
                } else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
    }
    load
}

async fn sealed_status(vault: &Process) -> String {
    let data_dir = vault.data_dir();
    let asked = tokio::task::spawn_blocking(move || program(&["seal-status"], &data_dir, "")).await.unwrap();
    text(&asked.stdout).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_is_in_the_memory_of_a_sealed_server() {
    let cycles = env::var("PORTCULLIS_SEAL_CYCLES").map_or(5, |cycles| cycles.parse::<usize>().unwrap());
    let vault = Process::new().await;
    let process = vault.start_with_another_key().await;
    let pid = process.id();
    if fs::File::open(format!("/proc/{pid}/mem")).is_err() {
        return println!("SKIPPED: the memory of another process cannot be read here");
    }
    let admin = Client {
        url: vault.client("user:root").url,
        ..vault.server.client_with_token(vault.server.token_with("user:root", "default", &[Scope::Admin], &[]))
    };
    vault.client("user:root").store("first", json!({"k": 1})).await;
    assert_eq!(admin.post("/v1/keys/rotate", json!({})).await.status(), 200);
    let needles = keys_of(&vault.data_dir()).await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut load = load(&vault, &stop, &done);
    for cycle in 1..=cycles {
        let before = done.load(Ordering::Relaxed);
        let started = Instant::now();
        while done.load(Ordering::Relaxed) < before + 20 {
            assert!(started.elapsed() < Duration::from_secs(20), "the load gets no further");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let found = search_for(pid, &needles).await;
        let (tenant, root) = ("key 2 of default in", "root key in");
        assert!(
            found.keys().any(|name| name.starts_with(tenant)) && found.keys().any(|name| name.starts_with(root)),
            "a search that finds nothing in an open server shows nothing: {found:?}"
        );
        seal(&admin).await;
        while sealed_status(&vault).await != "sealed" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let left = search_for(pid, &needles).await;
        assert!(left.is_empty(), "cycle {cycle}: {left:?} (open: {found:?})");
        if cycle < cycles {
            let data_dir = vault.data_dir();
            let unsealed = tokio::task::spawn_blocking(move || program(&["unseal"], &data_dir, "")).await.unwrap();
            assert!(unsealed.status.success(), "{unsealed:?}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.unwrap();
    }
    println!("{cycles} cycles, {} keys sought, {} reads and writes", needles.len(), done.load(Ordering::Relaxed));
}

async fn search_for(pid: u32, needles: &Needles) -> std::collections::BTreeMap<String, usize> {
    let needles = needles.clone();
    tokio::task::spawn_blocking(move || search(pid, &needles)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_gone_from_memory_a_second_after_their_answer() {
    let vault = Process::new().await;
    let process = vault.start_with_another_key().await;
    let pid = process.id();
    if fs::File::open(format!("/proc/{pid}/mem")).is_err() {
        return println!("SKIPPED: the memory of another process cannot be read here");
    }
    let client = vault.client("user:root");
    let mut needles = Needles::new();
    for n in 0..50 {
        let canary = format!("canary-{n:02}-{}", portcullis::domain::request_id(&SystemEntropy, Timestamp::default()));
        client.store(&format!("c/{n}"), json!({ "k": canary })).await;
        assert_eq!(client.batch(&[&format!("c/{n}")]).await["secrets"][format!("c/{n}")]["data"]["k"], canary);
        needles.insert(canary.clone(), canary.into_bytes());
    }
    drop(client);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let left = search_for(pid, &needles).await;
    println!("{} of 50 values are still in memory: {left:?}", left.len());
    assert!(left.is_empty(), "{left:?}");
}
