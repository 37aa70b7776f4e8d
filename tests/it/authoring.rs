//! What authors and operators of policies have: vectors, the dry run, and the replay of the audit log.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use portcullis::domain::Scope;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    guests::{Directory, MODULES, below_their_names, labelled},
    support::{READER, ROOT_MAY_ALL, TestServer, metric, rules_directory},
};

const PATIENT: &str = "deadline = \"5s\"";

/// Runs `portcullis policy …`: its exit code, its output, its errors.
fn policy(args: &[&str], paths: &[&Path]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    let output = command.arg("policy").args(args).args(paths).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn vector(name: &str, path: &str, expect: &str) -> String {
    format!("[[vector]]\nname = {name:?}\npath = {path:?}\nexpect = {{ {expect} }}\n")
}

#[test]
fn the_shipped_rules_answer_their_vectors_and_a_wrong_one_is_told() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let scratch = TempDir::new().unwrap();
    rules_directory(scratch.path(), None);
    let (exit, stdout, _) = policy(&["test"], &[scratch.path()]);
    assert_eq!(exit, 1);
    assert!(stdout.starts_with("rules: no vectors: write ") && stdout.contains("rules.vectors.toml"), "{stdout}");

    let vectors = fs::read_to_string(shipped.join("rules.vectors.toml")).unwrap();
    let file = scratch.path().join("rules.vectors.toml");
    fs::write(&file, &vectors).unwrap();
    let count = vectors.matches("\n[[vector]]\n").count();
    let summary = format!("rules: {count} vectors, in order, shuffled and one by one: all as expected\n");
    assert_eq!(policy(&["test"], &[scratch.path()]), (0, summary, String::new()));
    let (exit, stdout, _) = policy(&["test", "--json"], &[scratch.path()]);
    let told: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((exit, &told[0]["vectors"], &told[0]["failures"]), (0, &json!(count), &json!([])));

    // One rule less: the vectors about it fail, and no others.
    let settings = scratch.path().join("rules.toml");
    let rules = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, rules.replace("require_mfa = \"15m\"", "# require_mfa = \"15m\"")).unwrap();
    let (exit, stdout, _) = policy(&["test"], &[scratch.path()]);
    let failures: Vec<_> = stdout.lines().filter(|line| line.contains(" was expected, ")).collect();
    assert_eq!((exit, failures.len()), (1, 3), "{stdout}");
    assert!(stdout.contains("rules: \"a developer without a second factor\": deny was expected, it answered allow"));
    assert!(stdout.ends_with("NOT as expected\n"), "{stdout}");

    // One module by itself, with settings and vectors from elsewhere.
    let (module, settings) = (shipped.join("rules.wasm"), shipped.join("rules.toml"));
    let args = |vectors: &Path| {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        vec!["test".to_owned(), text(&module), "--settings".into(), text(&settings), "--vectors".into(), text(vectors)]
    };
    let run = |vectors: &Path| {
        let args = args(vectors);
        policy(&args.iter().map(String::as_str).collect::<Vec<_>>(), &[])
    };
    let (exit, stdout, stderr) = run(&file);
    assert!(
        exit == 0 && stdout.ends_with("rules.wasm: 47 vectors, in order, shuffled and one by one: all as expected\n"),
        "{stdout}{stderr}"
    );
    fs::write(&file, vector("a", "a//b", "effect = \"allow\"") + "[[vector]]\n").unwrap();
    let (exit, stdout, stderr) = run(&file);
    assert_eq!((exit, stdout.as_str()), (1, ""));
    assert!(stderr.contains("vector 1: \"a\": path: ") && stderr.contains("vector 2: a `name`"), "{stderr}");
}

#[test]
fn state_between_questions_is_unmasked() {
    let vectors = |reasons: [&str; 2]| {
        let other = "principal = { id = \"user:other\" }\n";
        let [first, second] = reasons.map(|reason| format!("effect = \"deny\", reason = {reason:?}"));
        vector("first", "a", &first) + &vector("second", "b", &second).replacen("path", &format!("{other}path"), 1)
    };
    let directory = Directory::new()
        .with("counting", PATIENT)
        .with_file("counting.vectors.toml", &vectors(["call-1"; 2]))
        .with("echo", PATIENT)
        .with_file("echo.vectors.toml", &vector("its path", "a/b", "effect = \"deny\", reason = \"a/b\""))
        // What is kept of the one principal that an instance ever serves is no state between questions.
        .with("remember", PATIENT)
        .with_file("remember.vectors.toml", &vectors(["user:test", "user:other"]))
        .with("unreachable", PATIENT)
        .with_file("unreachable.vectors.toml", &vector("a trap", "ax", "effect = \"deny\""));
    let (exit, stdout, stderr) = policy(&["test"], &[&directory.path()]);
    assert_eq!((exit, stderr.as_str()), (1, ""));
    for line in [
        "counting: \"first\" depends on what was asked before: alone deny with reason \"call-1\"; shuffled with seed 0x",
        "counting: \"second\" depends on what was asked before: ",
        "counting: 2 vectors, in order, shuffled and one by one: NOT as expected",
        "remember: 2 vectors, in order, shuffled and one by one: all as expected",
        "echo: 1 vector, in order, shuffled and one by one: all as expected",
        "unreachable: \"a trap\": deny was expected, but it failed (trap)",
    ] {
        assert!(stdout.lines().any(|told| told.starts_with(line)), "{line} in {stdout}");
    }
    assert_eq!(stdout, policy(&["test"], &[&directory.path()]).1, "the shuffle is always the same");
}

fn question(path: &str) -> Value {
    json!({"identity": {"id": "sa:reader"}, "action": "read", "path": path})
}

#[tokio::test]
async fn a_dry_run_tells_all_and_leaves_no_trace() {
    let directory = Directory::new()
        .with("allow", PATIENT)
        .named("no-payroll", "deny", "deadline = \"5s\"\npaths = [\"payroll/**\"]")
        .named("next", "echo", "deadline = \"5s\"\nmode = \"shadow\"")
        .named("test", "abstain", PATIENT);
    let server = directory.server().await;
    let root = server.root();
    let numbers = async || {
        let policies = root.get("/v1/policies").await.json().await.1["policies"].clone();
        let evaluations = metric(&server, "portcullis_policy_evaluations_total").await;
        let disagreements = metric(&server, "portcullis_policy_shadow_disagreements_total").await;
        let accesses = server.audit("").await.iter().filter(|event| !event["secret_path"].is_null()).count();
        (policies, evaluations, disagreements, accesses)
    };
    let before = numbers().await;
    let (status, open) = root.post("/v1/policies/test", question("open/a")).await.json().await;
    assert_eq!((status, &open["allowed"], &open["code"]), (200, &json!(true), &json!("ok")), "{open}");
    assert_eq!((&open["generation"], &open["module"]), (&json!(1), &json!("allow")));
    assert_eq!(open["combined"], "1 allows, 1 abstains: allowed");
    assert_eq!(open["dissent"], json!([{"module": "next", "would": "deny"}]));
    let said: Vec<_> =
        open["modules"].as_array().unwrap().iter().map(|one| (&one["module"], &one["outcome"])).collect();
    assert_eq!(json!(said), json!([["allow", "allow"], ["next", "deny"], ["test", "abstain"]]));
    assert_eq!(open["modules"][1]["reason"], "open/a");

    let (status, closed) = root.post("/v1/policies/test", question("payroll/x")).await.json().await;
    assert_eq!((status, &closed["allowed"], &closed["code"]), (200, &json!(false), &json!("access_denied")));
    assert_eq!(
        (&closed["combined"], &closed["module"]),
        (&json!("no-payroll denied; deny overrides"), &json!("no-payroll"))
    );
    assert_eq!(numbers().await, before, "nothing is counted and no access recorded");
    assert_eq!(server.audit("&action=test_policies").await.len(), 2, "that somebody tried is on record");

    let (_, named) = root.get("/v1/policies/test").await.json().await;
    assert_eq!(named["name"], "test");
    let stranger = server.client_with_token(server.token_with("user:x", "default", &[Scope::SecretsRead], &[]));
    stranger.post("/v1/policies/test", question("a")).await.expect_error(403, "insufficient_scope").await;
}

#[tokio::test]
async fn a_dry_run_sees_what_the_body_says() {
    let rules = r#"
[[policy]]
name = "developers"
bindings = ["group:developers"]
[[policy.rules]]
path_pattern = "app/**"
permissions = ["read"]
[policy.rules.conditions]
ip_ranges = ["10.0.0.0/8"]
require_mfa = "15m"
time_window = { days = ["mon-fri"] }
tags = ["app"]
only_fields = ["user"]
"#;
    let server = TestServer::with_rules(rules).await;
    let client = server.client_with_token(server.token_with("user:root", "acme", &[Scope::PoliciesRead], &[]));
    let good = json!({
        "identity": {"id": "user:dan", "groups": ["developers"]}, "action": "read", "path": "app/db",
        "context": {"source_ip": "10.1.2.3", "mfa": true, "time": "2026-03-02T09:00:00Z"},
        "secret": {"tags": ["app"]},
    });
    for (pointer, value, code) in [
        ("/path", json!("app/db"), "ok"),
        ("/secret", json!(null), "access_denied"),
        ("/secret", json!({}), "access_denied"),
        ("/identity/groups", json!([]), "access_denied"),
        ("/action", json!("write"), "access_denied"),
        ("/context/source_ip", json!("203.0.113.9"), "ip_not_allowed"),
        ("/context/mfa", json!(false), "mfa_required"),
        ("/context/time", json!("2026-03-07T09:00:00Z"), "time_window_violation"),
    ] {
        let mut body = good.clone();
        *body.pointer_mut(pointer).unwrap() = value;
        let (status, told) = client.post("/v1/policies/test", body.clone()).await.json().await;
        assert_eq!((status, &told["code"]), (200, &json!(code)), "{body}: {told}");
    }
    let (_, told) = client.post("/v1/policies/test", good.clone()).await.json().await;
    assert_eq!(told["obligations"], json!({"only_fields": ["user"], "without_fields": []}));
    let duty = json!([{"kind": "only-fields", "args": ["user"], "critical": true}]);
    assert_eq!((&told["modules"][0]["obligations"], &told["rules"]), (&duty, &json!(["developers/1"])));
    let inputs = &told["modules"][0]["inputs"];
    assert_eq!((&inputs["secret.tags"], &inputs["context.source-ip"]), (&json!(["app"]), &json!("10.1.2.3")));
    assert_eq!(&told["inputs"], inputs, "one module: all that was read");

    let mut misspelt = good;
    misspelt["identity"]["tenant"] = json!("default");
    let message = client.post("/v1/policies/test", misspelt).await.expect_error(400, "invalid_request").await;
    assert!(message.contains("`tenant`"), "the tenant is the caller's: {message}");
}

#[tokio::test]
async fn hostile_guests_are_denied_in_a_dry_run_too() {
    for guests in labelled("outcome").chunks(MODULES) {
        hostile_guests_are_denied(guests).await;
    }
}

async fn hostile_guests_are_denied(guests: &[(String, String)]) {
    let server = below_their_names(guests).server().await;
    let root = server.root();
    let mut wrong = Vec::new();
    for (guest, label) in guests {
        let outcome = label.split([',', '.']).next().unwrap();
        let (status, told) = root.post("/v1/policies/test", question(&format!("{guest}/ax"))).await.json().await;
        let met = (status, told["code"].as_str(), told["modules"][0]["outcome"].as_str());
        let code = if outcome == "allow" { "ok" } else { "policy_error" };
        if met != (200, Some(code), Some(outcome)) {
            wrong.push(format!("{guest}: {met:?} instead of {outcome}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(metric(&server, "portcullis_policy_evaluations_total").await, 0);
}

/// What `sa:reader` may do tomorrow, and `user:root`.
const TOMORROW: &str = r#"
[[policy]]
name = "root"
bindings = ["user:root"]
[[policy.rules]]
path_pattern = "**"
permissions = ["read", "delete", "list"]
[[policy.rules]]
path_pattern = "**"
permissions = ["write"]
[policy.rules.conditions]
without_fields = ["root_password"]

[[policy]]
name = "reader"
bindings = ["sa:reader"]
[[policy.rules]]
path_pattern = "open/**"
permissions = ["read", "list"]
[[policy.rules]]
path_pattern = "open/less"
permissions = ["read"]
[policy.rules.conditions]
only_fields = ["user"]
[[policy.rules]]
path_pattern = "open/gone"
permissions = ["read"]
effect = "deny"
[[policy.rules]]
path_pattern = "closed/b"
permissions = ["read"]
[[policy.rules]]
path_pattern = "closed/far"
permissions = ["read"]
[policy.rules.conditions]
ip_ranges = ["10.0.0.0/8"]
[[policy.rules]]
path_pattern = "tagged/**"
permissions = ["read"]
[policy.rules.conditions]
tags = ["shared"]
"#;

fn json_lines(events: &[Value]) -> String {
    events.iter().map(Value::to_string).collect::<Vec<_>>().join("\n") + "\n"
}

/// A day of a server: a little of everything.
async fn day(server: &TestServer) {
    let (root, reader) = (server.root(), server.client("sa:reader"));
    for path in ["open/a", "open/less", "open/gone", "closed/b", "tagged/t"] {
        root.store(path, json!({"user": "u", "password": "p"})).await;
    }
    reader.batch(&["open/a", "open/gone", "open/none", "closed/b", "closed/far", "not//a/path"]).await;
    for path in ["open/less", "tagged/t"] {
        reader.get(&format!("/v1/secrets/{path}")).await;
    }
    reader.get("/v1/secrets").await;
    reader.get("/v1/policies/none").await.expect_error(404, "policy_not_found").await;
}

#[tokio::test]
async fn a_day_is_replayed_against_the_policies_of_tomorrow() {
    let today = format!("{ROOT_MAY_ALL}{READER}");
    let server = TestServer::with_rules(&today).await;
    day(&server).await;
    let events = server.audit("").await;
    let scratch = TempDir::new().unwrap();
    let (same, tomorrow) = (scratch.path().join("same"), scratch.path().join("tomorrow"));
    rules_directory(&same, Some(&today));
    rules_directory(&tomorrow, Some(TOMORROW));
    let lines = json_lines(&events);
    let page = json!({"logs": events, "cursor": null, "has_more": false});
    let exports = [
        ("lines", format!("\n{lines}\n")),
        ("pretty", serde_json::to_string_pretty(&page).unwrap()),
        ("pages", format!("[{}]{page}", json!({"logs": []}))),
    ];
    let replay = |file: &Path, against: &Path| {
        policy(&["replay", "--json", "--from", file.to_str().unwrap(), "--against"], &[against])
    };
    for (name, text) in exports {
        let file = scratch.path().join(name);
        fs::write(&file, text).unwrap();
        let (exit, stdout, _) = replay(&file, &tomorrow);
        let report: Value = serde_json::from_str(&stdout).unwrap();
        let paths = |kind: &str| {
            let of = report[kind].as_array().unwrap().iter();
            let mut paths: Vec<_> = of.map(|one| format!("{} {}", one["action"], one["path"])).collect();
            paths.sort();
            paths.join(", ").replace('"', "")
        };
        assert_eq!(exit, 3, "{name}");
        assert_eq!(paths("deny_to_allow"), "read closed/b");
        assert_eq!(paths("allow_to_deny"), "read open/gone");
        assert_eq!(paths("other_fields"), "read open/less");
        let unknown = "read tagged/t, write closed/b, write open/a, write open/gone, write open/less, write tagged/t";
        assert_eq!(paths("unjudged"), unknown);
        let tagged = report["unjudged"].as_array().unwrap().iter().find(|one| one["action"] == "read").unwrap();
        assert_eq!(tagged["missing"], json!(["secret.tags"]));
        assert_eq!(
            report["unjudged"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|one| one["missing"] == json!(["secret.written-fields"]))
                .count(),
            5
        );
        let counted = ["same", "no_policy_action", "undecided"].map(|kind| report[kind].as_u64().unwrap());
        assert_eq!(counted.iter().sum::<u64>() + 3 + 6, events.len() as u64, "{stdout}");
        assert_eq!(report["events"], events.len());
    }

    let file = scratch.path().join("lines");
    let (exit, stdout, _) = policy(&["replay", "--from", file.to_str().unwrap(), "--against"], &[&tomorrow]);
    let kinds: Vec<_> = stdout.lines().map(|line| line.split("  ").next().unwrap()).collect();
    let expected = [["DENY -> ALLOW", "ALLOW -> DENY", "OTHER FIELDS"], ["COULD NOT BE JUDGED"; 3]].concat();
    assert_eq!((exit, &kinds[..6]), (3, &expected[..]), "{stdout}");
    assert!(
        stdout.contains("read closed/b: access_denied (no module: no_policy) -> ok (rules: allowed_by_rule)"),
        "{stdout}"
    );
    assert!(stdout.contains("-> ok (rules: allowed_by_rule, only user)"), "{stdout}");
    assert!(
        stdout
            .lines()
            .last()
            .unwrap()
            .contains("1 deny -> allow, 1 allow -> deny, 1 with other fields, 6 could not be judged")
    );

    let (exit, stdout, stderr) = replay(&file, &same);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((exit, stderr.as_str(), &report["unjudged"]), (0, "", &json!([])), "{stdout}");
    assert_eq!((&report["no_policy_action"], &report["undecided"]), (&json!(1), &json!(1)), "{stdout}");
    assert_eq!(report["same"].as_u64().unwrap() + 2, events.len() as u64, "{stdout}");

    // Nothing permits anything: all that was allowed flips, and all is judged.
    let (exit, stdout, stderr) = replay(&file, &scratch.path().join("none"));
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((exit, &report["deny_to_allow"], &report["unjudged"]), (3, &json!([]), &json!([])));
    assert!(stderr.contains("no module is in force"), "{stderr}");

    let quick = Directory::new().with("allow", PATIENT);
    for (text, named) in [
        (format!("{lines}{{\"half\": \n"), format!("line {}: it is no JSON", events.len() + 1)),
        (format!("{lines}{{}}\n"), format!("line {}: it is no audit event: missing field", events.len() + 1)),
        (format!("{{}}\n{lines}"), "line 1: ".to_owned()),
        (lines.replace("sa:reader", "reader"), ": it cannot be rebuilt: principal.id".to_owned()),
        ("{\"logs\": 1}".to_owned(), "line 1: `logs` is no list".to_owned()),
    ] {
        fs::write(&file, text).unwrap();
        let (exit, stdout, stderr) = replay(&file, &quick.path());
        assert_eq!((exit, stdout.as_str()), (1, ""), "{named}");
        assert!(stderr.contains(&named), "{named}: {stderr}");
    }
    assert_eq!(replay(&scratch.path().join("no-file"), &quick.path()).0, 1);
}

#[tokio::test]
async fn what_failed_and_who_wrote_is_replayed_as_it_was() {
    // A trap then is a denial then; another module now lets it through, or asks the same and stays.
    let server = Directory::new().with("unreachable", PATIENT).server().await;
    let root = server.root();
    root.get("/v1/secrets/ax").await.expect_error(403, "policy_error").await;
    root.get("/v1/secrets/ok").await.expect_error(404, "secret_not_found").await;
    let scratch = TempDir::new().unwrap();
    let file = scratch.path().join("audit");
    let lines = json_lines(&server.audit("").await);
    fs::write(&file, lines).unwrap();
    for (guest, exit, counts) in [
        ("unreachable", 0, [2, 0, 0, 0]),
        ("allow", 3, [1, 1, 0, 0]),
        ("counting", 3, [1, 0, 1, 0]),
        ("unknown_duty", 0, [2, 0, 0, 0]),
    ] {
        let against = Directory::new().with(guest, PATIENT);
        let args = ["replay", "--json", "--from", file.to_str().unwrap(), "--against"];
        let (code, stdout, _) = policy(&args, &[&against.path()]);
        let report: Value = serde_json::from_str(&stdout).unwrap();
        let length = |kind: &str| report[kind].as_array().unwrap().len() as u64;
        let met = [
            report["same"].as_u64().unwrap(),
            length("deny_to_allow"),
            length("allow_to_deny"),
            length("other_fields") + length("unjudged"),
        ];
        assert_eq!((code, met), (exit, counts), "{guest}: {stdout}");
    }
}
