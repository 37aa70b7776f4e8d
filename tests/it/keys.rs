//! Turning keys while the vault serves: nothing becomes unreadable, nobody else's keys are touched, all is on record.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use portcullis::domain::Scope;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    postgres,
    support::{ALL_SCOPES, Client, Options, TestServer},
};

/// An administrator of the default tenant.
fn admin(server: &TestServer) -> Client {
    admin_of(server, "default")
}

fn admin_of(server: &TestServer, tenant: &str) -> Client {
    server.client_with_token(server.token_with("user:root", tenant, &[Scope::Admin], &[]))
}

async fn status(admin: &Client) -> Value {
    let (status, body) = admin.get("/v1/keys").await.json().await;
    assert_eq!(status, 200, "{body}");
    body
}

/// The tenant's generations with their records.
async fn generations(admin: &Client, tenant: &str) -> Vec<(i64, i64)> {
    let body = status(admin).await;
    let tenants = body["tenants"].as_array().unwrap();
    let Some(of) = tenants.iter().find(|of| of["tenant"] == tenant) else { return Vec::new() };
    let one = |one: &Value| (one["generation"].as_i64().unwrap(), one["records"].as_i64().unwrap());
    of["generations"].as_array().unwrap().iter().map(one).collect()
}

async fn rotate(admin: &Client, body: Value) -> Value {
    let (status, body) = admin.post("/v1/keys/rotate", body).await.json().await;
    assert_eq!(status, 200, "{body}");
    body
}

/// Re-wraps and waits for the end.
async fn rewrap(admin: &Client, body: Value) -> Value {
    let (code, body) = admin.post("/v1/keys/rewrap", body).await.json().await;
    assert_eq!(code, 202, "{body}");
    loop {
        let body = status(admin).await;
        if body["rewrap"]["state"] != "running" {
            return body["rewrap"].clone();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_turned_while_the_vault_serves() {
    let server = TestServer::new().await;
    let (root, admin) = (server.root(), admin(&server));
    for n in 0..600 {
        root.store(&format!("s/{}", n % 300), json!({"n": n})).await;
    }
    assert_eq!(generations(&admin, "default").await, [(1, 600)]);
    let body = rotate(&admin, json!({})).await;
    assert_eq!(body, json!({"tenants": [{"tenant": "default", "newest": 2}]}));
    root.store("s/0", json!({"n": "new"})).await;
    assert_eq!(generations(&admin, "default").await, [(1, 600), (2, 1)], "new values at once, old ones as they were");

    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut load = JoinSet::new();
    for worker in 0..4 {
        let (client, stop, reads) = (root.clone(), Arc::clone(&stop), Arc::clone(&reads));
        load.spawn(async move {
            let mut n = worker;
            while !stop.load(Ordering::Relaxed) {
                n = (n + 7) % 299 + 1;
                let body = client.batch(&[&format!("s/{n}")]).await;
                assert_eq!(body["secrets"][format!("s/{n}")]["data"]["n"], 300 + n, "{body}");
                client.store(&format!("w/{worker}"), json!({"n": n})).await;
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let done = rewrap(&admin, json!({})).await;
    assert_eq!((done["state"].as_str(), &done["moved"], &done["unreadable"]), (Some("done"), &json!(600), &json!(0)));
    rotate(&admin, json!({})).await;
    let done = rewrap(&admin, json!({"drop_unused": true})).await;
    assert_eq!((done["state"].as_str(), &done["dropped"]), (Some("done"), &json!(2)), "{done}");
    stop.store(true, Ordering::Relaxed);
    load.join_all().await;
    println!("{} reads and writes meanwhile", reads.load(Ordering::Relaxed));
    assert!(reads.load(Ordering::Relaxed) > 0);
    let of = generations(&admin, "default").await;
    assert_eq!(of.iter().map(|(generation, _)| *generation).collect::<Vec<_>>(), [3]);
    for (path, data) in [("s/0", json!("new")), ("s/1", json!(301))] {
        assert_eq!(root.batch(&[path]).await["secrets"][path]["data"]["n"], data);
    }
    let (_, old) = root.get("/v1/secrets/s/5?version=1").await.json().await;
    assert_eq!(old["data"]["n"], 5);
}

#[tokio::test]
async fn a_generation_that_a_record_needs_is_kept() {
    let server = TestServer::new().await;
    let (root, admin) = (server.root(), admin(&server));
    root.store("a", json!({"k": 1})).await;
    root.store("damaged", json!({"k": 2})).await;
    let mut database = crate::process::raw(&server.data_dir).await;
    let damage = "UPDATE versions SET wrapped_key = zeroblob(length(wrapped_key)) WHERE path = 'damaged'";
    crate::process::execute(&mut database, damage).await;
    rotate(&admin, json!({})).await;
    let done = rewrap(&admin, json!({"drop_unused": true})).await;
    assert_eq!((&done["moved"], &done["unreadable"], &done["dropped"]), (&json!(1), &json!(1), &json!(0)), "{done}");
    assert_eq!(generations(&admin, "default").await, [(1, 1), (2, 1)]);
    assert_eq!(root.batch(&["a"]).await["retrieved"], 1);
    // A value destroyed needs nothing.
    assert_eq!(root.delete("/v1/secrets/damaged?permanent=true").await.status(), 204);
    let done = rewrap(&admin, json!({"drop_unused": true})).await;
    assert_eq!(done["dropped"], 1, "{done}");
    assert_eq!(generations(&admin, "default").await, [(2, 1)]);
}

#[tokio::test]
async fn a_tenant_turns_its_own_keys_alone() {
    let server = TestServer::new().await;
    let (admin, acme) = (admin(&server), admin_of(&server, "acme"));
    server.root().store("a", json!({})).await;
    acme.store("a", json!({"k": "acme's"})).await;
    assert_eq!(rotate(&acme, json!({})).await["tenants"], json!([{"tenant": "acme", "newest": 2}]));
    assert_eq!(rotate(&acme, json!({"tenant": "acme"})).await["tenants"][0]["newest"], 3);
    for (target, body) in [
        ("rotate", json!({"tenant": "default"})),
        ("rotate", json!({"all": true})),
        ("rewrap", json!({"tenant": "default"})),
        ("rewrap", json!({"all": true})),
        ("rotate-root", json!({})),
    ] {
        acme.post(&format!("/v1/keys/{target}"), body).await.expect_error(403, "access_denied").await;
    }
    let seen = status(&acme).await;
    assert_eq!((seen["tenants"].as_array().unwrap().len(), &seen["root_key"]), (1, &Value::Null), "{seen}");
    let both = rotate(&admin, json!({"all": true})).await;
    assert_eq!(both["tenants"], json!([{"tenant": "acme", "newest": 4}, {"tenant": "default", "newest": 2}]));
    assert_eq!(rewrap(&admin, json!({"all": true, "drop_unused": true})).await["dropped"], 4);
    assert_eq!(acme.batch(&["a"]).await["secrets"]["a"]["data"]["k"], "acme's");
    admin.post("/v1/keys/rotate", json!({"tenant": "none"})).await.expect_error(404, "not_found").await;
    admin.post("/v1/keys/rotate", json!({"tenant": "None"})).await.expect_error(400, "invalid_request").await;
    admin
        .post("/v1/keys/rotate", json!({"tenant": "acme", "all": true}))
        .await
        .expect_error(400, "invalid_request")
        .await;
    let everything_else = server.root();
    for target in ["rotate", "rewrap", "rotate-root"] {
        let refused = everything_else.post(&format!("/v1/keys/{target}"), json!({})).await;
        refused.expect_error(403, "insufficient_scope").await;
    }
}

#[tokio::test]
async fn every_turn_of_a_key_is_on_record() {
    let server = TestServer::new().await;
    let admin = admin(&server);
    server.root().store("a", json!({})).await;
    rotate(&admin, json!({})).await;
    rewrap(&admin, json!({})).await;
    admin.post("/v1/keys/rotate-root", json!({})).await.expect_error(422, "root_key_rejected").await;
    let told = |entries: Vec<Value>| -> Vec<String> {
        let one =
            |e: &Value| format!("{} {} {}", e["action"].as_str().unwrap(), e["code"].as_str().unwrap(), e["details"]);
        entries.iter().map(one).collect()
    };
    let started = Instant::now();
    loop {
        let events = told(server.audit("&action=rotate_keys,rewrap_keys,keys,rotate_root_key").await);
        let wanted = [
            "keys root_key_rejected null",
            "rewrap_keys ok {\"dropped\":0,\"moved\":1,\"state\":\"done\",\"unreadable\":0,\"whose\":\"default\"}",
            "rewrap_keys ok {\"drop_unused\":false,\"stale\":1,\"whose\":\"default\"}",
            "rotate_keys ok {\"generation\":2,\"tenant\":\"default\"}",
        ];
        if wanted.iter().all(|line| events.iter().any(|event| event == line)) && events.len() == wanted.len() {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(5), "{events:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_turned() {
    let server = TestServer::new().await;
    let admin = admin(&server);
    server.root().store("a", json!({"k": 1})).await;
    next_root_key(&server, 9);
    let mut database = crate::process::raw(&server.data_dir).await;
    let trigger = "CREATE TRIGGER no BEFORE INSERT ON audit_log BEGIN SELECT RAISE(ABORT, 'no'); END";
    crate::process::execute(&mut database, trigger).await;
    for target in ["rotate", "rewrap", "rotate-root"] {
        let refused = admin.post(&format!("/v1/keys/{target}"), json!({})).await;
        refused.expect_error(503, "service_unavailable").await;
    }
    crate::process::execute(&mut database, "DROP TRIGGER no").await;
    assert_eq!(generations(&admin, "default").await, [(1, 1)]);
    assert_eq!(status(&admin).await["root_key"]["current"], true);
    assert_eq!(server.root().batch(&["a"]).await["retrieved"], 1);
}

/// Puts a new root key where the next one is looked for.
fn next_root_key(server: &TestServer, byte: u8) -> std::path::PathBuf {
    let file = server.data_dir.join("root.key.next");
    std::fs::write(&file, [byte; 32]).unwrap();
    private(&file);
    file
}

fn private(file: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_follows_within_a_second() {
    let Some(url) = postgres::database().await else { return };
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = async |directory: &std::path::Path| {
        let options =
            Options { database_url: Some(url.clone()), data_dir: Some(directory.to_owned()), ..Options::default() };
        TestServer::start(options).await
    };
    let one = start(first.path()).await;
    std::fs::copy(first.path().join("root.key"), second.path().join("root.key")).unwrap();
    let two = start(second.path()).await;
    let admin_one = admin(&one);
    one.root().store("a", json!({"k": 1})).await;
    two.root().store("b", json!({"k": 1})).await;
    rotate(&admin_one, json!({})).await;
    one.root().store("new", json!({"k": 2})).await;
    let body = two.root().batch(&["new", "a"]).await;
    assert_eq!(body["retrieved"], 2, "a generation that it has not met is fetched: {body}");
    rotate(&admin_one, json!({})).await;
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    two.root().store("b", json!({"k": 2})).await;
    assert_eq!(generations(&admin_one, "default").await, [(1, 2), (2, 1), (3, 1)]);
    // At the other server's next write, the generation that it holds as newest may be gone.
    rotate(&admin_one, json!({})).await;
    assert_eq!(rewrap(&admin_one, json!({"drop_unused": true})).await["dropped"], 3);
    let answers = [
        two.root().put("/v1/secrets/c", json!({"data": {}})).await.status(),
        two.root().put("/v1/secrets/c", json!({"data": {}})).await.status(),
    ];
    assert!(matches!(answers, [503, 201] | [201, 200]), "{answers:?}");
    assert_eq!(one.root().batch(&["a", "b", "new", "c"]).await["retrieved"], 4);
    assert_eq!(two.root().batch(&["a", "b", "new", "c"]).await["retrieved"], 4);
    another_server_keeps_the_old_root_key_to_itself(&one, &two).await;
}

/// A server that was not told of a new root key adds no key under the old one, and says why.
async fn another_server_keeps_the_old_root_key_to_itself(one: &TestServer, two: &TestServer) {
    next_root_key(one, 9);
    let (code, body) = admin(one).post("/v1/keys/rotate-root", json!({})).await.json().await;
    assert_eq!(code, 200, "{body}");
    let client = two.client_with_token(two.token_with("user:root", "fresh", &ALL_SCOPES, &[]));
    let refused = client.put("/v1/secrets/a", json!({"data": {}})).await;
    let message = refused.expect_error(503, "service_unavailable").await;
    assert!(message.contains("replaced through another server"), "{message}");
    let refused = admin(two).post("/v1/keys/rotate", json!({})).await;
    assert!(refused.expect_error(503, "service_unavailable").await.contains("replaced"));
    assert_eq!(status(&admin(two)).await["root_key"]["current"], false);
    assert_eq!(two.root().batch(&["a", "b"]).await["retrieved"], 2, "what it holds the keys of it serves");
    assert_eq!(rotate(&admin(one), json!({})).await["tenants"][0]["newest"], 5);
    assert_eq!(one.root().store("later", json!({"k": 1})).await, 1);
}

#[tokio::test]
async fn a_new_root_key_wraps_everything_and_opens_it_after_a_restart() {
    let mut server = TestServer::new().await;
    let admin = admin(&server);
    for tenant in ["default", "acme"] {
        let client = server.client_with_token(server.token_with("user:root", tenant, &ALL_SCOPES, &[]));
        client.store("a", json!({"of": tenant})).await;
    }
    rotate(&admin, json!({"all": true})).await;
    let old = status(&admin).await["root_key"]["fingerprint"].clone();
    let message = admin.post("/v1/keys/rotate-root", json!({})).await.expect_error(422, "root_key_rejected").await;
    assert!(message.contains("root.key.next"), "{message}");
    let key = server.data_dir.join("root.key");
    let next = server.data_dir.join("root.key.next");
    std::fs::copy(&key, &next).unwrap();
    admin.post("/v1/keys/rotate-root", json!({})).await.expect_error(422, "root_key_rejected").await;
    next_root_key(&server, 9);
    let (code, body) = admin.post("/v1/keys/rotate-root", json!({})).await.json().await;
    assert_eq!(code, 200, "{body}");
    assert!(body["next_step"].as_str().unwrap().contains("[root_key]"), "{body}");
    assert_ne!(body["fingerprint"], old);
    assert_eq!(status(&admin).await["root_key"]["fingerprint"], body["fingerprint"]);
    let reads = async |server: &TestServer| {
        for tenant in ["default", "acme"] {
            let client = server.client_with_token(server.token_with("user:root", tenant, &ALL_SCOPES, &[]));
            assert_eq!(client.batch(&["a"]).await["secrets"]["a"]["data"]["of"], tenant);
            client.store("b", json!({})).await;
        }
    };
    // The tokens are signed with the old key's sibling until the restart.
    reads(&server).await;
    rotate(&admin, json!({"all": true})).await;

    // With the configuration as it was: the next key is found, and its tokens are the valid ones.
    server.restart().await;
    server.root().get("/v1/secrets/a").await.expect_error(401, "token_invalid").await;
    let kept_old = std::fs::read(&key).unwrap();
    std::fs::copy(&next, &key).unwrap();
    reads(&server).await;
    // With the new one in its place.
    std::fs::remove_file(&next).unwrap();
    server.restart().await;
    reads(&server).await;
    // With the old one alone.
    std::fs::write(&key, kept_old).unwrap();
    server.stop().await;
    let refused = server.try_restart().await.unwrap_err().to_string();
    assert!(refused.contains(old.as_str().unwrap()) && refused.contains("not this vault's"), "{refused}");
}

/// Key and ciphertext of a version, from the database.
async fn sealed(server: &TestServer, path: &str) -> [Vec<u8>; 2] {
    use sqlx::Row;
    let mut database = crate::process::raw(&server.data_dir).await;
    let sql = "SELECT wrapped_key, ciphertext FROM versions WHERE path = $1";
    let row = sqlx::query(sql).bind(path).fetch_one(&mut database).await.unwrap();
    [row.get(0), row.get(1)]
}

/// In which of the database's files some bytes are.
fn files_with(server: &TestServer, bytes: &[u8]) -> Vec<&'static str> {
    let holds = |name: &&str| {
        let content = std::fs::read(server.data_dir.join(name)).unwrap_or_default();
        memchr::memmem::find(&content, bytes).is_some()
    };
    ["portcullis.db", "portcullis.db-wal", "portcullis.db-shm"].into_iter().filter(holds).collect()
}

#[tokio::test]
async fn what_is_destroyed_is_in_no_file() {
    let server = TestServer::new().await;
    let root = server.root();
    for (path, size) in [("small", 10), ("large", 30_000), ("purged", 10_000), ("kept", 10)] {
        root.store(path, json!({"k": "x".repeat(size)})).await;
    }
    let mut gone = Vec::new();
    for path in ["small", "large", "purged"] {
        gone.extend(sealed(&server, path).await);
    }
    let kept = sealed(&server, "kept").await;
    for part in gone.iter().chain(&kept) {
        let pieces = part.chunks(512).map(|piece| files_with(&server, &piece[..piece.len().min(48)]));
        assert!(pieces.into_iter().all(|files| !files.is_empty()), "a search that finds nothing shows nothing");
    }
    for path in ["small", "large"] {
        assert_eq!(root.post(&format!("/v1/destroy/{path}"), json!({"versions": [1]})).await.status(), 200);
    }
    assert_eq!(root.delete("/v1/secrets/purged?permanent=true").await.status(), 204);
    let started = Instant::now();
    loop {
        let pieces = gone.iter().flat_map(|part| part.chunks(512)).filter(|piece| piece.len() >= 16);
        let left: Vec<_> = pieces.flat_map(|piece| files_with(&server, &piece[..piece.len().min(48)])).collect();
        if left.is_empty() {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(3), "{left:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("gone from all files after {:?}", started.elapsed());
    assert_eq!(files_with(&server, &kept[1]), ["portcullis.db"]);
}

/// The program against this server: its exit code, what it printed, what it complained of.
async fn portcullis(server: &TestServer, token: &str, words: &'static [&'static str]) -> (i32, String, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(words).env("PORTCULLIS_URL", &server.url).env("PORTCULLIS_TOKEN", token);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_turns_keys() {
    let server = TestServer::new().await;
    server.root().store("a", json!({"k": 1})).await;
    let token = admin(&server).token;
    let run = async |words| portcullis(&server, &token, words).await;
    let (code, printed, _) = run(&["keys", "rotate"]).await;
    assert_eq!((code, printed.as_str()), (0, "default: new values are sealed under generation 2\n"));
    let (code, printed, _) = run(&["keys", "rewrap", "--drop-unused"]).await;
    let sentence = "re-wrapping done: 1 of 1 data keys moved, 0 unreadable, 1 generations removed\n";
    assert_eq!((code, printed.as_str()), (0, sentence));
    let (code, printed, _) = run(&["keys", "status"]).await;
    let lines: Vec<_> = printed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert!(code == 0 && lines[0].starts_with("root key ") && lines[0].ends_with(" from file"), "{printed}");
    assert_eq!(lines[2..4], ["tenant generation records", "default 2 1 newest"], "{printed}");
    let (_, printed, _) = run(&["keys", "status", "--json"]).await;
    let body: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(body["tenants"][0]["newest"], 2);
    let (code, _, complaint) = run(&["keys", "rotate-root"]).await;
    assert!(code == 5 && complaint.contains("root.key.next"), "{code} {complaint}");
    next_root_key(&server, 7);
    let (code, printed, _) = run(&["keys", "rotate-root"]).await;
    assert!(code == 0 && printed.contains("next: Make the new root key the configured one"), "{printed}");
    let (code, _, complaint) = run(&["keys", "rotate", "--tenant", "none"]).await;
    assert!(code == 4, "{code} {complaint}");
    let (code, _, complaint) = portcullis(&server, &server.token("user:root"), &["keys", "status"]).await;
    assert!(code == 3 && complaint.contains("admin"), "{code} {complaint}");
    let (code, printed, _) = run(&["seal"]).await;
    assert!(code == 0 && printed.contains("portcullis unseal"), "{printed}");
    let (code, _, complaint) = run(&["keys", "status"]).await;
    assert!(code == 1 && complaint.contains("sealed"), "{complaint}");
}
