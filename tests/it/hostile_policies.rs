//! Policy modules that misbehave: refused at load with every problem named, or denied at the path where they fail.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    child::Process,
    guests::{Directory, MODULES, assemble, below_their_names, componentize, core_module, labelled},
    support::TestServer,
};

/// The calls of a module by outcome, as the metrics show them; those that were seen.
pub async fn outcomes(server: &TestServer, policy: &str) -> BTreeMap<String, u64> {
    let text = server.http.get(format!("{}/v1/metrics", server.url)).send().await.unwrap().text().await.unwrap();
    let labels = format!("portcullis_policy_evaluations_total{{policy=\"{policy}\",outcome=\"");
    let counters = text.lines().filter_map(|line| line.strip_prefix(&labels)?.split_once("\"} "));
    let counted = counters.map(|(outcome, count)| (outcome.to_owned(), count.parse().unwrap()));
    counted.filter(|(_, count)| *count > 0).collect()
}

fn error_of<'a>(batch: &'a Value, path: &str) -> (&'a str, Option<&'a str>) {
    let error = &batch["errors"][path];
    (error["code"].as_str().unwrap_or("none"), error["details"]["reason"].as_str())
}

#[tokio::test]
async fn a_failure_denies_its_path_and_no_other() {
    let guests = labelled("outcome");
    let mut wrong = Vec::new();
    for some in guests.chunks(MODULES) {
        wrong.extend(failures_of(some).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What these guests do other than their labels say.
async fn failures_of(guests: &[(String, String)]) -> Vec<String> {
    let server = below_their_names(guests).server().await;
    let root = server.root();
    let mut wrong = Vec::new();
    for (guest, label) in guests {
        let outcome = label.split([',', '.']).next().unwrap();
        let always = guest.ends_with("_realloc");
        let (bad, good) = (format!("{guest}/ax"), format!("{guest}/ok"));
        if !always {
            root.store(&good, json!({"k": "v"})).await;
        }
        let before = outcomes(&server, guest).await;
        let batch = root.batch(&[&good, &bad, &format!("{guest}/also-ok")]).await;
        let after = outcomes(&server, guest).await;
        let met = (after.get(outcome).unwrap_or(&0) - before.get(outcome).unwrap_or(&0), error_of(&batch, &bad));
        let expected = match (outcome, always) {
            ("allow", _) => (3, ("secret_not_found", None)),
            (failure, true) => (3, ("policy_error", Some(failure))),
            (failure, false) => (1, ("policy_error", Some(failure))),
        };
        let others = always
            || (batch["secrets"][&good]["data"] == json!({"k": "v"})
                && error_of(&batch, &format!("{guest}/also-ok")).0 == "secret_not_found");
        if met != expected || !others {
            wrong.push(format!("{guest}: {met:?} instead of {expected:?}; {after:?}\n  {batch}"));
        }
    }
    wrong
}

#[tokio::test]
async fn what_cannot_be_taken_is_refused_at_load_by_name() {
    let mut directory = Directory::new().with_file("settings.toml", "some settings");
    let mut expected: Vec<(String, String)> = Vec::new();
    let component = assemble("allow");
    let shapes: [(&str, Vec<u8>, &str); 12] = [
        ("empty", Vec::new(), "it is not WebAssembly"),
        ("text", b"(component)".to_vec(), "it is not WebAssembly"),
        ("core", core_module("allow"), "it is a core module, not a component"),
        ("header", component[..8].to_vec(), "it does not export `configure`"),
        ("half", component[..component.len() / 2].to_vec(), "it is no whole component"),
        ("garbled", garbled(&component), "garbled.wasm: it"),
        ("trailing", [&component[..], b"more"].concat(), "it is no whole component"),
        ("curious", componentize(curious(), "curious"), "it imports `elsewhere:worlds/clock@0.1.0`"),
        ("mute", componentize(core_module("allow"), "mute"), "it does not export `evaluate`"),
        ("terse", componentize(core_module("allow"), "terse"), "`evaluate`"),
        ("numeric", componentize(numeric(), "numeric"), "its `configure` is not the contract's"),
        ("tags", with_a_tag(), "tags.wasm: it"),
    ];
    for (name, bytes, words) in shapes {
        directory = directory.with_bytes(name, &bytes, "");
        expected.push((name.to_owned(), words.to_owned()));
    }
    let inline = [
        ("wasi", "(component (import \"wasi:clocks/monotonic-clock@0.2.0\" (instance)))", "it imports `wasi:clocks"),
        ("root", "(component (import \"wild\" (func)))", "it imports `wild`"),
        ("resource", "(component (import \"thing\" (type (sub resource))))", "it imports `thing`"),
        (
            "newer",
            "(component (import \"portcullis:policy/principal@0.2.0\" (instance)))",
            "it imports `portcullis:policy",
        ),
        ("inner", "(component (component (import \"deep\" (func))))", "it does not export `evaluate`"),
        ("value", "(component (type string) (export \"evaluate\" (type 0)))", "it does not export `evaluate`"),
        ("escape", "(component (import \"a:b/c\" (instance)) (import \"a:b/d\" (instance)))", "it imports `a:b/d`"),
    ];
    for (name, text, words) in inline {
        directory = directory.with_bytes(name, &wat::parse_str(text).unwrap(), "");
        expected.push((name.to_owned(), words.to_owned()));
    }
    let pin = format!("sha256 = \"{}\"", "ab".repeat(32));
    directory = directory
        .with("allow", "mode = \"enforce\"")
        .named("pinned", "allow", &pin)
        .named("pinned-off", "allow", &format!("mode = \"off\"\n{pin}"))
        .named("unset", "allow", "settings = \"nowhere.toml\"");
    expected.push(("pinned".to_owned(), format!("the manifest pins {}", "ab".repeat(32))));
    expected.push(("unset".to_owned(), "nowhere.toml: No such file".to_owned()));
    directory = directory.named("gone", "allow", "");
    std::fs::remove_file(directory.path().join("gone.wasm")).unwrap();
    expected.push(("gone".to_owned(), "gone.wasm: No such file".to_owned()));

    let refusal = directory.refusal().await;
    let untold = untold(&expected, &refusal);
    assert!(untold.is_empty(), "{untold:#?}\nare not in\n{refusal}");
    let blameless = ["allow", "pinned-off"];
    assert!(!blameless.iter().any(|name| refusal.contains(&format!("policy `{name}`"))), "{refusal}");
}

#[tokio::test]
async fn guests_that_cannot_be_taken_are_refused_at_load() {
    for guests in labelled("refused").chunks(MODULES) {
        let mut directory = Directory::new().with_file("settings.toml", "some settings");
        let mut expected = Vec::new();
        for (guest, words) in guests {
            let deadline = if guest.ends_with("_loops") { "200ms" } else { "20s" };
            let lines = format!("settings = \"settings.toml\"\nconfigure_deadline = \"{deadline}\"");
            directory = directory.with(guest, &lines);
            expected.extend(words.split(" | ").map(|words| (guest.clone(), words.to_owned())));
        }
        let refusal = directory.refusal().await;
        let untold = untold(&expected, &refusal);
        assert!(untold.is_empty(), "{untold:#?}\nare not in\n{refusal}");
    }
}

/// Which of these words are not among the problems of the module that they are expected of.
fn untold<'e>(expected: &'e [(String, String)], refusal: &str) -> Vec<&'e (String, String)> {
    let told = |(name, words): &&(String, String)| {
        let prefix = format!("  - policy `{name}`: ");
        refusal.lines().any(|line| line.starts_with(&prefix) && line.contains(words.as_str()))
    };
    expected.iter().filter(|expected| !told(expected)).collect()
}

/// A component with a byte in the middle of its code turned.
fn garbled(component: &[u8]) -> Vec<u8> {
    let mut bytes = component.to_vec();
    let marker = bytes.windows(4).position(|four| four == [0x41, 0x80, 0x08, 0x41]).unwrap();
    bytes[marker] = 0xff;
    bytes
}

/// A core module that imports what is not offered.
pub fn curious() -> Vec<u8> {
    wat::parse_str(
        r#"(module (import "elsewhere:worlds/clock@0.1.0" "now" (func $now (result i64)))
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (drop (call $now)) (i32.const 8))
            (func (export "configure") (param i32 i32) (result i32) (i32.const 64))
            (func (export "evaluate") (param i32 i32 i32 i32) (result i32) (i32.const 64)))"#,
    )
    .unwrap()
}

fn numeric() -> Vec<u8> {
    wat::parse_str(
        r#"(module (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8))
            (func (export "configure") (param i32) (result i32) (i32.const 64))
            (func (export "evaluate") (param i32 i32 i32 i32) (result i32) (i32.const 64)))"#,
    )
    .unwrap()
}

/// A component of the right exports with a module that imports a tag, at which the snapshot's tool panics.
fn with_a_tag() -> Vec<u8> {
    wat::parse_str(
        r#"(component
            (core module (import "a" "b" (tag)))
            (core module $m (func (export "f")))
            (core instance $i (instantiate $m))
            (func (export "configure") (canon lift (core func $i "f")))
            (func (export "evaluate") (canon lift (core func $i "f"))))"#,
    )
    .unwrap()
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_stops_the_start() {
    let table = [
        ("[[policy]]\nname = \"a\"\nmodule = \"gone.wasm\"\n", "policy `a`: gone.wasm: No such file"),
        ("[[policy]]\nname = \"a\"\nmodule = \"../a.wasm\"\n", "module: the name of a file beside the manifest"),
        ("[[policy]]\nname = \"a\"\nmodule = \"a.wasm\"\nmode = \"open\"\n", "mode"),
        ("[[policy]]\nname = \"a\"\nmodule = \"a.wasm\"\ndefault = \"allow\"\n", "default"),
        ("policy = 1", "policies.toml"),
        ("\u{0}", "policies.toml"),
    ];
    for (manifest, words) in table {
        let refusal = Directory::new().with_file("policies.toml", manifest).refusal().await;
        assert!(refusal.contains(words), "{manifest:?}: {refusal}");
    }
}

#[tokio::test]
async fn no_policies_deny_everything_and_the_server_starts() {
    let empty = Directory::new();
    let missing = Directory::new();
    std::fs::remove_dir(missing.path()).unwrap();
    let nothing = Directory::new().with_file("policies.toml", "");
    let off = Directory::new().with("allow", "mode = \"off\"");
    for directory in [empty, missing, nothing, off] {
        let server = directory.server().await;
        let root = server.root();
        let put = root.put("/v1/secrets/a/b", json!({"data": {"k": "v"}})).await;
        assert_eq!(put.expect_error(403, "access_denied").await, "No policy permits write on this path");
        root.get("/v1/secrets/a/b").await.expect_error(403, "access_denied").await;
        assert_eq!(root.batch(&["a/b", "c"]).await["failed"], 2);
        let (status, list) = root.get("/v1/secrets").await.json().await;
        assert_eq!((status, &list["secrets"]), (200, &json!([])));
        let events = server.audit("&action=write").await;
        assert_eq!(
            (events.len(), &events[0]["code"], &events[0]["decision"]["reason"]),
            (1, &json!("access_denied"), &json!("no_policy"))
        );
    }
}

#[tokio::test]
async fn a_module_is_revived_a_few_times_then_given_up() {
    let server = Directory::new().with("unreachable", "deadline = \"5s\"").server().await;
    let batch = server.root().batch(&["ax", "b", "cx", "dx", "ex", "f", "gx"]).await;
    let reasons = ["ax", "cx", "dx", "ex", "f", "gx"].map(|path| error_of(&batch, path).1.unwrap_or("none").to_owned());
    assert_eq!(reasons, ["trap", "trap", "trap", "trap", "given_up", "given_up"]);
    assert_eq!(error_of(&batch, "b").0, "secret_not_found");
    let counted = outcomes(&server, "unreachable").await;
    assert_eq!(counted, BTreeMap::from([("allow".into(), 1), ("given_up".into(), 2), ("trap".into(), 4)]));
    assert_eq!(server.root().batch(&["f"]).await["errors"]["f"]["code"], "secret_not_found", "the next request is new");
}

#[tokio::test]
async fn a_refused_growth_explains_only_the_call_that_it_was_in() {
    let server = Directory::new().with("grow_then_trap_later", "deadline = \"5s\"").server().await;
    let batch = server.root().batch(&["fine", "ax"]).await;
    assert_eq!((error_of(&batch, "fine").0, error_of(&batch, "ax").1), ("secret_not_found", Some("trap")));
}

#[tokio::test]
async fn a_deadline_holds_by_the_clock() {
    const SLACK: Duration = Duration::from_millis(50);
    for (guest, millis) in [("loop", 20), ("fill", 100), ("loop", 1_000), ("post_return_loop", 100)] {
        let server = Directory::new().with(guest, &format!("deadline = \"{millis}ms\"")).server().await;
        let root = server.root();
        let deadline = Duration::from_millis(millis);
        let mut took = Vec::new();
        // The machine may be busy with other things once, or twice.
        for _ in 0..5 {
            let start = Instant::now();
            let refused = root.get("/v1/secrets/ax").await;
            took.push(start.elapsed());
            refused.expect_error(403, "policy_error").await;
            if took.iter().any(|took| *took < deadline + SLACK) {
                break;
            }
        }
        let best = *took.iter().min().unwrap();
        assert!(best >= deadline && best < deadline + SLACK, "{guest} {millis} ms: {took:?}");
    }
}

#[tokio::test]
async fn no_instance_outlives_its_request() {
    let server = Directory::new().with("remember", "deadline = \"5s\"").server().await;
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..60 {
        let subject = format!("user:u{}", number % 7);
        let client = server.client(&subject);
        asking.spawn(async move { (subject, client.batch(&["a", "b", "c"]).await) });
    }
    while let Some(answered) = asking.join_next().await {
        let (subject, batch) = answered.unwrap();
        for path in ["a", "b", "c"] {
            assert_eq!(error_of(&batch, path), ("access_denied", Some(subject.as_str())));
        }
    }
}

#[tokio::test]
async fn each_module_is_asked_exactly_once_for_each_distinct_path() {
    let directory = Directory::new()
        .named("first", "abstain", "deadline = \"5s\"")
        .named("second", "counting", "deadline = \"5s\"")
        .named("watching", "counting", "mode = \"shadow\"\ndeadline = \"5s\"")
        .named("unasked", "allow", "deadline = \"5s\"");
    let server = directory.server().await;
    let root = server.root();
    for round in 1..=3 {
        let batch = root.batch(&["p/1", "p/2", "p/1", "p/3", "p/2", "p/1", "../p", "p/4"]).await;
        let reasons = ["p/1", "p/2", "p/3", "p/4"].map(|path| error_of(&batch, path).1.unwrap().to_owned());
        assert_eq!(reasons, ["call-1", "call-2", "call-3", "call-4"], "one instance, one call for each path");
        assert_eq!(batch["failed"], 5);
        for (policy, outcome) in [("first", "abstain"), ("second", "deny"), ("watching", "deny")] {
            let expected = BTreeMap::from([(outcome.to_owned(), round * 4)]);
            assert_eq!(outcomes(&server, policy).await, expected, "{policy}");
        }
        assert!(outcomes(&server, "unasked").await.is_empty(), "after a denial nobody else is asked");
    }
}

#[tokio::test]
async fn a_denial_has_the_codes_of_the_api_or_a_reason_of_its_own() {
    let table = [
        ("deny", "access_denied", Some("outside-office-hours"), "Come back in the morning"),
        ("deny_mfa", "mfa_required", None, "A policy denies this access"),
        ("deny_as_host", "access_denied", Some("policy_error"), "A policy denies this access"),
        ("unknown_duty", "policy_error", Some("unknown_obligation"), "sing-a-song"),
    ];
    for (guest, code, reason, message) in table {
        let server = Directory::new().with(guest, "deadline = \"5s\"").server().await;
        let root = server.root();
        let (status, refused) = root.get("/v1/secrets/ax").await.json().await;
        let error = &refused["error"];
        assert_eq!((status, error["code"].as_str()), (403, Some(code)), "{guest}");
        assert_eq!(error["details"]["reason"].as_str(), reason, "{guest}");
        assert!(error["message"].as_str().unwrap().contains(message), "{guest}: {error}");
        assert_eq!(error_of(&root.batch(&["ax"]).await, "ax"), (code, reason), "{guest}");
        let event = &server.audit("&path_prefix=ax").await[0];
        assert_eq!((event["code"].as_str(), event["decision"]["module"].as_str()), (Some(code), Some(guest)));
    }
    let server = Directory::new().with("unknown_wish", "deadline = \"5s\"").server().await;
    server.root().get("/v1/secrets/ax").await.expect_error(404, "secret_not_found").await;
}

#[tokio::test]
async fn memory_that_guests_took_comes_back() {
    let policies = Directory::new().with("hoard", "deadline = \"5s\"");
    let process = Process::start(&policies.path(), "info");
    let root = process.root();
    let ask = async |requests: usize| {
        for _ in 0..requests {
            let batch = root.batch(&["a", "bx"]).await;
            assert_eq!((error_of(&batch, "a").0, error_of(&batch, "bx").1), ("secret_not_found", Some("trap")));
        }
    };
    ask(10).await;
    let before = process.resident();
    ask(150).await;
    let grown = process.resident().saturating_sub(before);
    assert!(grown < 24 * 1024 * 1024, "150 requests took 24 MB each and left {grown} bytes");
}

#[tokio::test]
async fn a_request_takes_no_more_than_its_time() {
    let server = Directory::new().with("slow_allow", "deadline = \"5s\"").server().await;
    let root = server.root();
    let paths: Vec<String> = (0..100).map(|index| format!("slow/{index}")).collect();
    let began = Instant::now();
    let (status, body) = root.post("/v1/secrets/batch", json!({ "paths": paths })).await.json().await;
    let took = began.elapsed();
    assert_eq!(status, 200, "{body}");
    let codes: Vec<_> = paths.iter().map(|path| error_of(&body, path)).collect();
    let answered = codes.iter().filter(|code| **code == ("secret_not_found", None)).count();
    assert!(answered > 0 && answered < 100, "{answered} of 100 were asked in {took:?}");
    let rest = codes.iter().skip(answered).all(|code| *code == ("policy_error", Some("given_up")));
    assert!(rest && took < Duration::from_secs(15), "{took:?}: {codes:?}");
}
