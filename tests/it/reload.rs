//! How policies come into force: from a start, the watch, a signal, a request; and how what is broken does not.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use portcullis::domain::{Scope, hex};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    child::Process,
    guests::{componentize, core_module_of},
    process::{execute, raw},
    support::{Client, Options, TestServer, metric, rules_directory},
};

/// No look at the directory but those that are asked for.
pub const UNWATCHED: &str = "[policy_loading]\nwatch = false\n";

/// A module that denies with this reason; paths that end in `x` always, all others unless it is a permissive one.
pub fn speaking(reason: &str, permissive: bool) -> Vec<u8> {
    let effect = i32::from(!permissive);
    let length = reason.len();
    let own = format!(
        "(data (i32.const 2048) {reason:?})
         (func $misbehave (result i32) (call $decide (i32.const 1) (i32.const 2048) (i32.const {length})))
         (func (export \"evaluate\") (param i32 i32 i32 i32) (result i32)
           (if (result i32) (call $provoked (local.get 2) (local.get 3))
             (then (call $misbehave))
             (else (call $decide (i32.const {effect}) (i32.const 2048) (i32.const {length})))))"
    );
    componentize(core_module_of(&own), "policy")
}

/// Writes a file as careful programs do: whole, under another name, then renamed.
pub fn replace(path: &Path, content: &[u8]) {
    let passing = path.with_extension("new");
    fs::write(&passing, content).unwrap();
    fs::rename(passing, path).unwrap();
}

/// A policy directory with one module, `m.wasm`.
fn directory(module: &[u8]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("m.wasm"), module).unwrap();
    fs::write(directory.path().join("policies.toml"), entry("m.wasm")).unwrap();
    directory
}

fn entry(module: &str) -> String {
    format!("[[policy]]\nname = \"m\"\nmodule = {module:?}\ndeadline = \"2s\"\n")
}

async fn server_with(policies: &TempDir, config: &str) -> TestServer {
    let (policies, config) = (Some(policies.path().to_owned()), config.to_owned());
    TestServer::start(Options { policies, config, ..Options::default() }).await
}

/// Which module answers now: its reason.
async fn speaker(root: &Client) -> String {
    let (_, answer) = root.get("/v1/secrets/a/x").await.json().await;
    answer["error"]["details"]["reason"].as_str().unwrap_or("nobody").to_owned()
}

async fn speaks(root: &Client, reason: &str) {
    let began = Instant::now();
    while speaker(root).await != reason {
        assert!(began.elapsed() < Duration::from_secs(20), "`{reason}` never comes into force");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn status(root: &Client) -> Value {
    let (status, body) = root.get("/v1/policies/status").await.json().await;
    assert_eq!(status, 200, "{body}");
    body
}

async fn reload(root: &Client) -> (u16, Value) {
    root.post("/v1/policies/reload", Value::Null).await.json().await
}

#[tokio::test]
async fn a_reload_takes_what_is_good_and_tells_everything_of_what_is_not() {
    let policies = directory(&speaking("one", true));
    let server = server_with(&policies, UNWATCHED).await;
    let root = server.root();
    assert_eq!(speaker(&root).await, "one");
    let first = status(&root).await;
    assert_eq!(
        (&first["generation"], &first["up_to_date"], &first["live_generations"]),
        (&json!(1), &json!(true), &json!(1))
    );
    assert_eq!(
        (&first["last_reload"]["trigger"], &first["last_reload"]["result"]),
        (&json!("start"), &json!("loaded"))
    );

    let (code, body) = reload(&root).await;
    assert_eq!((code, &body["result"], &body["generation"]), (200, &json!("unchanged"), &json!(1)));

    replace(&policies.path().join("m.wasm"), &speaking("two", true));
    assert_eq!(speaker(&root).await, "one", "nothing comes into force by itself");
    let (code, body) = reload(&root).await;
    assert_eq!(
        (code, &body["result"], &body["generation"], &body["trigger"]),
        (200, &json!("loaded"), &json!(2), &json!("request"))
    );
    assert_eq!(speaker(&root).await, "two");

    fs::write(
        policies.path().join("policies.toml"),
        entry("m.wasm") + &entry("gone.wasm").replace("\"m\"", "\"n\"") + "nonsense = 1\n",
    )
    .unwrap();
    let (code, body) = reload(&root).await;
    assert_eq!((code, &body["error"]["code"]), (422, &json!("policy_rejected")), "{body}");
    assert!(body["error"]["details"]["errors"][0].as_str().unwrap().contains("nonsense"), "{body}");
    fs::write(
        policies.path().join("policies.toml"),
        entry("m.wasm") + &entry("gone.wasm").replace("\"m\"", "\"n\"") + &entry("odd.wasm").replace("\"m\"", "\"o\""),
    )
    .unwrap();
    fs::write(policies.path().join("odd.wasm"), b"\0asm").unwrap();
    let (code, body) = reload(&root).await;
    let errors = body["error"]["details"]["errors"].as_array().unwrap();
    assert_eq!((code, errors.len()), (422, 2), "every problem: {body}");
    assert_eq!(speaker(&root).await, "two", "the old policies serve on");
    let after = status(&root).await;
    assert_eq!((&after["generation"], &after["up_to_date"]), (&json!(2), &json!(false)));
    assert_eq!(
        (&after["last_reload"]["result"], &after["last_reload"]["errors"]),
        (&json!("rejected"), &body["error"]["details"]["errors"])
    );
    assert_eq!(metric(&server, "portcullis_policy_reloads_total").await, 4);
    assert_eq!(metric(&server, "portcullis_policy_up_to_date").await, 0);
    assert_eq!(metric(&server, "portcullis_policy_generation").await, 2);

    let log = server.whole_audit("&action=reload_policies").await;
    let told: Vec<_> = log
        .iter()
        .map(|e| (e["identity_id"].as_str(), e["code"].as_str().unwrap(), e["details"]["generation"].as_u64().unwrap()))
        .collect();
    let who = Some("user:root");
    assert_eq!(
        told,
        [(who, "policy_rejected", 2), (who, "policy_rejected", 2), (who, "ok", 2), (who, "ok", 1), (None, "ok", 1)]
    );
    let digest = &root.get("/v1/policies/m").await.json().await.1["digest"];
    assert_eq!(&log[2]["details"]["policies"][0]["digest"], digest);
    assert_eq!(log[0]["details"]["problems"], body["error"]["details"]["errors"]);
}

#[tokio::test]
async fn only_who_may_write_policies_reloads_them() {
    let server = TestServer::new().await;
    let reader = server.client_with_token(server.token_with("user:root", "default", &[Scope::PoliciesRead], &[]));
    let writer = server.client_with_token(server.token_with("user:root", "default", &[Scope::PoliciesWrite], &[]));
    reader.post("/v1/policies/reload", Value::Null).await.expect_error(403, "insufficient_scope").await;
    assert_eq!(reader.get("/v1/policies/status").await.status(), 200);
    assert_eq!(writer.post("/v1/policies/reload", Value::Null).await.status(), 200);
    writer.get("/v1/policies/status").await.expect_error(403, "insufficient_scope").await;
}

#[tokio::test]
async fn a_directory_that_changes_is_taken_by_itself() {
    let policies = directory(&speaking("one", true));
    let server = server_with(&policies, "").await;
    let root = server.root();
    let (module, manifest) = (policies.path().join("m.wasm"), policies.path().join("policies.toml"));
    replace(&module, &speaking("renamed", true));
    speaks(&root, "renamed").await;
    fs::write(&module, speaking("written over", true)).unwrap();
    speaks(&root, "written over").await;
    fs::write(policies.path().join("n.wasm"), speaking("another", true)).unwrap();
    replace(&manifest, entry("n.wasm").as_bytes());
    speaks(&root, "another").await;
    // As some editors do: the file is away for a moment.
    fs::remove_file(&manifest).unwrap();
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(speaker(&root).await, "another", "no manifest, no change");
    fs::write(&manifest, entry("m.wasm")).unwrap();
    speaks(&root, "written over").await;
    // What is no part of the policies says nothing, however often it changes.
    let generation = status(&root).await["generation"].clone();
    for round in 0..3 {
        fs::write(policies.path().join(".policies.toml.swp"), vec![0; round]).unwrap();
        fs::write(policies.path().join("notes.txt"), vec![0; round]).unwrap();
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    assert_eq!(status(&root).await["generation"], generation);
    assert_eq!(status(&root).await["last_reload"]["result"], "unchanged");
}

#[tokio::test]
async fn a_half_copied_module_never_serves() {
    let policies = directory(&speaking("one", true));
    let server = server_with(&policies, "").await;
    let root = server.root();
    let whole = speaking("two", true);
    let module = policies.path().join("m.wasm");
    let step = whole.len() / 8;
    for end in (0..whole.len()).step_by(step) {
        fs::write(&module, &whole[..end]).unwrap();
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(speaker(&root).await, "one", "{end} of {} bytes", whole.len());
    }
    assert_eq!(status(&root).await["up_to_date"], false);
    fs::write(&module, &whole).unwrap();
    speaks(&root, "two").await;
    assert_eq!(status(&root).await["up_to_date"], true);
    assert_eq!(status(&root).await["generation"], 2);
}

#[tokio::test]
async fn pins_hold_modules_and_settings() {
    let module = speaking("one", true);
    let policies = directory(&module);
    fs::write(policies.path().join("s.toml"), "some").unwrap();
    let digest =
        |bytes: &[u8]| hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref()).to_uppercase();
    let pinned = |module: &str, settings: &str| {
        entry("m.wasm") + &format!("settings = \"s.toml\"\nsha256 = \"{module}\"\nsettings_sha256 = \"{settings}\"\n")
    };
    let manifest = policies.path().join("policies.toml");
    fs::write(&manifest, pinned(&digest(&module), &digest(b"some"))).unwrap();
    let server = server_with(&policies, UNWATCHED).await;
    let root = server.root();
    for (file, content, why) in
        [("m.wasm", speaking("two", true), "m.wasm has SHA-256"), ("s.toml", b"som".to_vec(), "s.toml has SHA-256")]
    {
        let before = fs::read(policies.path().join(file)).unwrap();
        fs::write(policies.path().join(file), content).unwrap();
        let (code, body) = reload(&root).await;
        assert_eq!(code, 422);
        assert!(body["error"]["details"]["errors"][0].as_str().unwrap().contains(why), "{body}");
        fs::write(policies.path().join(file), before).unwrap();
        assert_eq!(reload(&root).await.1["result"], "unchanged");
    }
}

#[tokio::test]
async fn a_volume_of_kubernetes_is_swapped_whole() {
    let volume = tempfile::tempdir().unwrap();
    let make = |name: &str, reason: &str| {
        let data = volume.path().join(name);
        fs::create_dir(&data).unwrap();
        fs::write(data.join("m.wasm"), speaking(reason, true)).unwrap();
        fs::write(data.join("policies.toml"), entry("m.wasm")).unwrap();
    };
    make("..2026_01", "one");
    symlink("..2026_01", volume.path().join("..data")).unwrap();
    for file in ["m.wasm", "policies.toml"] {
        symlink(Path::new("..data").join(file), volume.path().join(file)).unwrap();
    }
    let server = server_with(&volume, "").await;
    let root = server.root();
    assert_eq!(speaker(&root).await, "one");
    for (name, reason) in [("..2026_02", "two"), ("..2026_03", "three")] {
        make(name, reason);
        let before = fs::read_link(volume.path().join("..data")).unwrap();
        symlink(name, volume.path().join("..data_tmp")).unwrap();
        fs::rename(volume.path().join("..data_tmp"), volume.path().join("..data")).unwrap();
        fs::remove_dir_all(volume.path().join(before)).unwrap();
        speaks(&root, reason).await;
    }
    assert_eq!(status(&root).await["generation"], 3);
}

#[tokio::test]
async fn a_link_to_a_directory_is_followed() {
    let releases = tempfile::tempdir().unwrap();
    let (one, two) = (directory(&speaking("one", true)), directory(&speaking("two", true)));
    let current = releases.path().join("current");
    symlink(one.path(), &current).unwrap();
    let server = TestServer::start(Options { policies: Some(current.clone()), ..Options::default() }).await;
    let root = server.root();
    assert_eq!(speaker(&root).await, "one");
    symlink(two.path(), releases.path().join("next")).unwrap();
    fs::rename(releases.path().join("next"), &current).unwrap();
    speaks(&root, "two").await;
}

#[tokio::test]
async fn a_signal_reloads() {
    let policies = directory(&speaking("one", true));
    let process = Process::start(policies.path(), "info");
    let root = process.root();
    assert_eq!(speaker(&root).await, "one");
    replace(&policies.path().join("m.wasm"), &speaking("two", true));
    process.signal("HUP");
    speaks(&root, "two").await;
    fs::write(policies.path().join("m.wasm"), b"").unwrap();
    process.signal("HUP");
    let began = Instant::now();
    while status(&root).await["last_reload"]["result"] != "rejected" {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(speaker(&root).await, "two");
    assert!(process.log().contains("the policy directory is refused"), "{}", process.log());
}

#[tokio::test]
async fn after_a_restart_on_a_broken_directory_the_last_good_generation_serves() {
    let policies = directory(&speaking("one", true));
    let mut server = server_with(&policies, UNWATCHED).await;
    let root = server.root();
    replace(&policies.path().join("m.wasm"), &speaking("two", true));
    assert_eq!(reload(&root).await.0, 200);
    server.restart().await;
    let root = server.root();
    assert_eq!(status(&root).await["generation"], 2, "the same policies keep their number");

    fs::write(policies.path().join("m.wasm"), b"broken").unwrap();
    server.restart().await;
    let root = server.root();
    assert_eq!(speaker(&root).await, "two");
    let now = status(&root).await;
    assert_eq!(
        (&now["generation"], &now["up_to_date"], &now["last_reload"]["result"]),
        (&json!(2), &json!(false), &json!("rejected"))
    );
    assert!(now["last_reload"]["errors"][0].as_str().unwrap().contains("not WebAssembly"), "{now}");
    assert_eq!(server.whole_audit("&action=reload_policies").await[0]["code"], "policy_rejected");
    server.restart().await;
    assert_eq!(speaker(&server.root()).await, "two", "also the second time");

    fs::write(policies.path().join("m.wasm"), speaking("three", true)).unwrap();
    server.restart().await;
    let root = server.root();
    assert_eq!((speaker(&root).await.as_str(), &status(&root).await["generation"]), ("three", &json!(3)));
    fs::remove_dir_all(policies.path()).unwrap();
    server.restart().await;
    assert_eq!(speaker(&server.root()).await, "nobody", "a directory that is gone denies everything");
    fs::create_dir(policies.path()).unwrap();
    fs::write(policies.path().join("policies.toml"), "nonsense").unwrap();
    server.restart().await;
    assert_eq!(speaker(&server.root()).await, "three", "and is not what is kept");
}

/// The files that are kept below a data directory, of one kind.
fn kept(server: &TestServer, kind: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(server.data_dir.join("policies").join(kind)).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

#[tokio::test]
async fn what_is_kept_and_was_altered_is_refused() {
    let policies = directory(&speaking("one", true));
    let mut server = server_with(&policies, UNWATCHED).await;
    server.stop().await;
    fs::write(policies.path().join("m.wasm"), b"broken").unwrap();
    let files = kept(&server, "last-good");
    assert_eq!(files.len(), 2, "the index and the module: {files:?}");
    for file in files {
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let whole = fs::read(&file).unwrap();
        let mut altered = whole.clone();
        *altered.last_mut().unwrap() ^= 1;
        fs::write(&file, altered).unwrap();
        let options = || Options {
            policies: Some(policies.path().to_owned()),
            data_dir: Some(server.data_dir.clone()),
            ..Options::default()
        };
        assert!(TestServer::try_start(options()).await.is_err(), "{} was altered", file.display());
        fs::write(&file, whole).unwrap();
        TestServer::try_start(options()).await.unwrap().stop().await;
    }
}

#[tokio::test]
async fn what_was_compiled_once_is_not_compiled_again() {
    let policies = tempfile::tempdir().unwrap();
    rules_directory(policies.path(), None);
    let mut server = server_with(&policies, UNWATCHED).await;
    server.stop().await;
    let without_a_compiler = || Options {
        policies: Some(policies.path().to_owned()),
        data_dir: Some(server.data_dir.clone()),
        compiler: Some("/bin/false".into()),
        ..Options::default()
    };
    TestServer::try_start(without_a_compiler()).await.unwrap().stop().await;
    let code = kept(&server, "compiled");
    assert_eq!(code.len(), 1);
    let whole = fs::read(&code[0]).unwrap();
    for at in [0, 40, whole.len() / 2, whole.len() - 1] {
        let mut altered = whole.clone();
        altered[at] ^= 1;
        fs::write(&code[0], altered).unwrap();
        let refused = TestServer::try_start(without_a_compiler()).await.err().unwrap().to_string();
        assert!(refused.contains("its compilation broke off"), "{refused}");
    }
    let with_one = Options { compiler: None, ..without_a_compiler() };
    TestServer::try_start(with_one).await.unwrap().stop().await;
    assert_eq!(fs::read(&code[0]).unwrap().len(), whole.len(), "what was altered is written anew");
    // Other settings are another module.
    fs::write(policies.path().join("rules.toml"), "").unwrap();
    let server = TestServer::try_start(without_a_compiler()).await.unwrap();
    let now = status(&server.root()).await;
    assert!(now["last_reload"]["errors"][0].as_str().unwrap().contains("its compilation broke off"), "{now}");
}

/// A module of one function that is long work for a compiler.
fn compile_bomb() -> Vec<u8> {
    let step = "(local.set $n (i32.add (i32.mul (local.get $n) (local.get $n)) (i32.load (local.get $n))))\n";
    let own = format!("(func (param $n i32) (result i32) {} (local.get $n))", step.repeat(60_000));
    componentize(core_module_of(&own), "policy")
}

#[tokio::test]
async fn a_module_that_takes_too_long_or_too_much_to_compile_is_refused() {
    let policies = directory(&speaking("one", true));
    let config = "[policy_loading]\nwatch = false\ncompile_time = \"1ms\"\n";
    // What is quick enough is in the cache by then.
    let mut server = server_with(&policies, UNWATCHED).await;
    server.stop().await;
    fs::write(policies.path().join("bomb.wasm"), compile_bomb()).unwrap();
    let bomb = entry("bomb.wasm").replace("\"m\"", "\"bomb\"") + "configure_deadline = \"1ms\"\n";
    for (config, words) in [
        (config.to_owned(), "does not compile within 2ms"),
        (UNWATCHED.to_owned() + "compile_memory_mib = 40\n", "its compilation broke off (signal "),
    ] {
        let options = Options {
            policies: Some(policies.path().to_owned()),
            data_dir: Some(server.data_dir.clone()),
            config,
            ..Options::default()
        };
        fs::write(policies.path().join("policies.toml"), entry("m.wasm")).unwrap();
        let mut server = TestServer::start(options).await;
        let root = server.root();
        fs::write(policies.path().join("policies.toml"), entry("m.wasm") + &bomb).unwrap();
        let (code, body) = reload(&root).await;
        let told = body["error"]["details"]["errors"][0].as_str().unwrap_or_default().to_owned();
        assert!(code == 422 && told.contains(words), "{words}: {body}");
        assert_eq!(speaker(&root).await, "one", "the vault serves on");
        server.stop().await;
    }
}

#[tokio::test]
async fn what_cannot_be_put_on_record_does_not_come_into_force() {
    let policies = directory(&speaking("one", true));
    let server = server_with(&policies, UNWATCHED).await;
    let root = server.root();
    replace(&policies.path().join("m.wasm"), &speaking("two", true));
    let mut database = raw(&server.data_dir).await;
    execute(&mut database, "CREATE TRIGGER no BEFORE INSERT ON audit_log BEGIN SELECT RAISE(ABORT, 'no'); END").await;
    root.post("/v1/policies/reload", Value::Null).await.expect_error(503, "service_unavailable").await;
    execute(&mut database, "DROP TRIGGER no").await;
    assert_eq!(speaker(&root).await, "one");
    assert_eq!(status(&root).await["last_reload"]["result"], "unrecorded");
    assert_eq!(reload(&root).await.0, 200);
    assert_eq!(speaker(&root).await, "two");
}

#[tokio::test]
async fn reloads_wait_for_one_another() {
    let policies = directory(&speaking("one", true));
    let server = server_with(&policies, "").await;
    let root = server.root();
    for round in 0..5 {
        replace(&policies.path().join("m.wasm"), &speaking(&format!("round {round}"), true));
        let answers = futures_of(&root, 8).await;
        let loaded = answers.iter().filter(|(code, body)| *code == 200 && body["result"] == "loaded").count();
        assert!(loaded <= 1 && answers.iter().all(|(code, _)| *code == 200), "{answers:?}");
        assert_eq!(speaker(&root).await, format!("round {round}"));
        assert_eq!(status(&root).await["generation"], round + 2);
    }
}

async fn futures_of(root: &Client, number: usize) -> Vec<(u16, Value)> {
    let tasks: Vec<_> = (0..number)
        .map(|_| {
            tokio::spawn({
                let root = root.clone();
                async move { reload(&root).await }
            })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}
