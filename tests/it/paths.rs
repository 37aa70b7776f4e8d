//! Every odd spelling of a path, on every route that has one: refused, recorded, and nothing done. One reading of a path
//! for policy, store, audit and answer (CVE-2026-3605, CVE-2025-32431 and their many kin: security.md, 2a).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    guests::Directory,
    raw::{exchange, request},
    support::TestServer,
};

/// The secret that spellings are spellings of.
pub const SECRET: &str = "team/app/key";

/// Every route with a path, and a body that it would take.
const ROUTES: [(&str, &str, Option<&str>); 9] = [
    ("GET", "/v1/secrets/", None),
    ("PUT", "/v1/secrets/", Some(r#"{"data":{"k":"overwritten"}}"#)),
    ("DELETE", "/v1/secrets/", None),
    ("GET", "/v1/metadata/", None),
    ("PATCH", "/v1/metadata/", Some(r#"{"owner":"mallory"}"#)),
    ("GET", "/v1/versions/", None),
    ("POST", "/v1/restore/", None),
    ("POST", "/v1/rollback/", Some(r#"{"version":1}"#)),
    ("POST", "/v1/destroy/", Some(r#"{"versions":[1]}"#)),
];

/// Segments and characters that are not allowed, each to be put into every place of a path.
const ODD_SEGMENTS: [&str; 24] = [
    ".",
    "..",
    "...",
    "%2e",
    "%2E",
    "%2e%2e",
    ".%2e",
    "%2E.",
    "%252e%252e",
    "%25%32%65",
    "..;",
    "..%00",
    "..%2f",
    "..%5c",
    ".hidden",
    "-dash",
    "",
    "%20",
    "%00",
    "~",
    "*",
    "**",
    "%2f",
    "%5c",
];
const ODD_TEXTS: [&str; 63] = [
    "!",
    "\"",
    "$",
    "&",
    "'",
    "(",
    ")",
    "*",
    "+",
    ",",
    ":",
    ";",
    "=",
    "@",
    "[",
    "\\",
    "]",
    "^",
    "{",
    "|",
    "}",
    "~",
    "%",
    "%2",
    "%zz",
    "%%",
    "%2f",
    "%2F",
    "%252f",
    "%252F",
    "%5c",
    "%5C",
    "%61",
    "%41",
    "%6B",
    "%00",
    "%2500",
    "%01",
    "%0a",
    "%0d%0a",
    "%09",
    "%20",
    "%7f",
    "%3f",
    "%23",
    "%3b",
    "%2a",
    "%c0%af",
    "%c0%ae",
    "%e2%88%95",
    "%ef%bc%8f",
    "%ef%bc%8e",
    "%u2215",
    "%ff",
    ";v=1",
    ";jsessionid=1",
    "::$DATA",
    "ä",
    "／",
    "．．",
    "а",
    "\u{200b}",
    "😀",
];

/// Spellings that a request's target can carry, without the query and the fragment.
pub fn spellings() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for odd in ODD_SEGMENTS {
        for at in 0..=3 {
            let mut segments: Vec<&str> = SECRET.split('/').collect();
            segments.insert(at, odd);
            all.insert(segments.join("/"));
        }
        all.insert(odd.to_owned());
        all.insert(format!("team/nowhere/{odd}/app/key"));
    }
    for odd in ODD_TEXTS {
        for place in [0, 4, 5, 12] {
            let (before, after) = SECRET.split_at(place);
            all.insert(format!("{before}{odd}{after}"));
        }
    }
    let lengths = ["a".repeat(513), "a".repeat(2_000), ["a"; 11].join("/"), ["ab"; 300].join("/")];
    all.extend(lengths);
    all.extend(
        ["/", "//", "///", "/team/app/key", "//team/app/key", "team/app/key/", "team/app/key//"].map(str::to_owned),
    );
    all.extend(["team//app/key", "team///app/key", "team/app/../../team/app/key"].map(str::to_owned));
    all
}

async fn store_of(server: &TestServer) -> (Value, Value, Value) {
    let root = server.root();
    let secret = root.get(&format!("/v1/secrets/{SECRET}")).await.json().await.1;
    let versions = root.get(&format!("/v1/versions/{SECRET}")).await.json().await.1;
    (root.get("/v1/secrets?limit=1000").await.json().await.1, versions, secret)
}

#[tokio::test]
async fn an_odd_spelling_is_refused_on_every_route_and_recorded() {
    let server = TestServer::new().await;
    server.root().store(SECRET, json!({"k": "v"})).await;
    let before = store_of(&server).await;
    let spellings = spellings();
    assert!(spellings.len() >= 350, "{}", spellings.len());
    let token = server.token("user:root");
    let mut wrong = Vec::new();
    let mut refused = 0;
    for (method, prefix, body) in ROUTES {
        for spelling in &spellings {
            let target = format!("{prefix}{spelling}");
            let bytes = request(method, target.as_bytes(), &token, body.map(str::as_bytes));
            let outcome = exchange(&server, &bytes).await.outcome();
            if outcome == (400, "invalid_path".to_owned()) {
                refused += 1;
            } else {
                wrong.push(format!("{method} {target:?}: {outcome:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(store_of(&server).await, before, "nothing was changed");
    let events = server.audit("").await;
    let recorded: Vec<_> = events.iter().filter(|event| event["code"] == "invalid_path").collect();
    assert_eq!(recorded.len(), refused);
    for event in recorded {
        assert_eq!((&event["secret_path"], &event["success"]), (&Value::Null, &json!(false)), "{event}");
        assert_eq!(event["identity_id"], "user:root");
    }
}

#[tokio::test]
async fn what_is_no_request_target_at_all_is_refused_by_the_protocol() {
    let server = TestServer::new().await;
    server.root().store(SECRET, json!({"k": "v"})).await;
    let before = store_of(&server).await;
    let token = server.token("user:root");
    let texts: [&[u8]; 12] =
        [b"<", b">", b"`", b" ", b"\0", b"\t", b"\x7f", b"\r", b"\n", b"\x01", b" HTTP/1.0", b"\r\nx: y"];
    for (method, prefix, body) in ROUTES {
        for odd in texts {
            let target = [prefix.as_bytes(), b"team/app", odd, b"/key"].concat();
            let answer = exchange(&server, &request(method, &target, &token, body.map(str::as_bytes))).await;
            assert!(answer.status == 400 && answer.body.is_empty(), "{method} {odd:?}: {answer:?}");
        }
    }
    assert_eq!(store_of(&server).await, before);
}

/// The same address in words of another kind leads to the same reading, or nowhere.
#[tokio::test]
async fn a_route_has_one_spelling() {
    let server = TestServer::new().await;
    server.root().store(SECRET, json!({"k": "v"})).await;
    let token = server.token("user:root");
    let table = [
        ("http://vault/v1/secrets/team/app/key", 200, ""),
        ("http://evil.example:99/v1/secrets/team/app/key", 200, ""),
        ("http://user:password@vault/v1/secrets/team/app/key", 200, ""),
        ("http://vault/v1/secrets/../secrets/team/app/key", 400, "invalid_path"),
        ("http://vault/v1/secrets//team/app/key", 400, "invalid_path"),
        ("http://vault/v1/secrets/team/app/key/", 400, "invalid_path"),
        ("http://vault/v1/secrets/team%2fapp%2fkey", 400, "invalid_path"),
        ("http://vault//v1/secrets/team/app/key", 404, "not_found"),
        ("//v1/secrets/team/app/key", 404, "not_found"),
        ("/v1//secrets/team/app/key", 404, "not_found"),
        ("/v1/./secrets/team/app/key", 404, "not_found"),
        ("/x/../v1/secrets/team/app/key", 404, "not_found"),
        ("/V1/secrets/team/app/key", 404, "not_found"),
        ("/v1/Secrets/team/app/key", 404, "not_found"),
        ("/v1/secrets%2fteam/app/key", 404, "not_found"),
        ("/v1%2fsecrets/team/app/key", 404, "not_found"),
        ("/v1/%73ecrets/team/app/key", 404, "not_found"),
        ("/v1/secrets;v=1/team/app/key", 404, "not_found"),
        ("/v1/metadata/../secrets/team/app/key", 400, "invalid_path"),
        ("/v1/health/../secrets/team/app/key", 404, "not_found"),
        ("v1/secrets/team/app/key", 400, ""),
        ("vault:80", 404, "not_found"),
        ("*", 404, "not_found"),
        ("/v1/secrets/team/app/Key", 404, "secret_not_found"),
        ("/v1/secrets/TEAM/app/key", 404, "secret_not_found"),
        ("/v1/secrets/team/app/key?version=1", 200, ""),
        ("/v1/secrets/team/app/key?", 200, ""),
        ("/v1/secrets/team/app?/key", 400, "invalid_request"),
        ("/v1/secrets/team/app/key?/../other", 400, "invalid_request"),
        ("/v1/secrets/team/app/key?version=1&version=2", 400, "invalid_request"),
        ("/v1/secrets/team/app/key?version=1&path=other", 400, "invalid_request"),
        ("/v1/secrets/team/app/key?version=", 400, "invalid_request"),
        ("/v1/secrets/team/app/key?version=%00", 400, "invalid_request"),
        ("/v1/secrets/team/app/key?version=1%23", 400, "invalid_request"),
        ("/v1/secrets/team/app/key?version=-1", 400, "invalid_request"),
        ("/v1/secrets/team/app/key?version=4294967297", 400, "invalid_request"),
        // A request target has no fragment (RFC 9112, 3.2). The HTTP library cuts it off before anyone can see it, so
        // that at least all who see the path see the same.
        ("/v1/secrets/team/app/key#fragment", 200, ""),
        ("/v1/secrets/team/app/key#/../other", 200, ""),
        ("/v1/secrets/team/app#/key", 404, "secret_not_found"),
        ("/v1/secrets/team/app/#key", 400, "invalid_path"),
        ("/v1/secrets/#team/app/key", 400, "invalid_path"),
        ("/v1/secrets/team/app/key?version=1#x", 200, ""),
        ("/v1/secrets/team/app/key?version=1%23x", 400, "invalid_request"),
    ];
    let mut wrong = Vec::new();
    for (target, status, code) in table {
        let outcome = exchange(&server, &request("GET", target.as_bytes(), &token, None)).await.outcome();
        if outcome != (status, code.to_owned()) {
            wrong.push(format!("{target}: {outcome:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn an_address_that_takes_no_query_refuses_one() {
    let server = TestServer::new().await;
    server.root().store(SECRET, json!({"k": "v"})).await;
    let before = store_of(&server).await;
    let token = server.token("user:root");
    let others = [
        ("POST", "/v1/secrets/batch", Some(r#"{"paths":["a"]}"#)),
        ("POST", "/v1/secrets/batch/metadata", Some(r#"{"paths":["a"]}"#)),
        ("GET", "/v1/auth/whoami", None),
    ];
    let with_path = ROUTES.iter().map(|(method, prefix, body)| (*method, format!("{prefix}{SECRET}"), *body));
    let others = others.into_iter().map(|(method, target, body)| (method, target.to_owned(), body));
    for (method, target, body) in with_path.chain(others) {
        for query in ["?x=1", "?expected_version=1", "?/../other", "?access_token=t"] {
            let bytes = request(method, format!("{target}{query}").as_bytes(), &token, body.map(str::as_bytes));
            let outcome = exchange(&server, &bytes).await.outcome();
            assert_eq!(outcome, (400, "invalid_request".to_owned()), "{method} {target}{query}");
        }
    }
    assert_eq!(store_of(&server).await, before);
}

#[tokio::test]
async fn an_odd_spelling_in_a_batch_is_an_entry_of_its_own() {
    let server = TestServer::new().await;
    let root = server.root();
    root.store(SECRET, json!({"k": "v"})).await;
    let mut all: Vec<String> = spellings().into_iter().collect();
    let in_json =
        ["", " ", "a b", "a?b", "a#b", "a<b", "a`b", "\0", "a\0b", "a\nb", "\r\n", "\t", "\u{7f}", "\u{feff}a", "null"];
    all.extend(in_json[..14].iter().map(|&text| text.to_owned()));
    for chunk in all.chunks(90) {
        let paths: Vec<&str> = chunk.iter().map(String::as_str).chain([SECRET]).collect();
        let batch = root.batch(&paths).await;
        assert_eq!(batch["secrets"].as_object().unwrap().keys().collect::<Vec<_>>(), [SECRET]);
        for path in chunk {
            assert_eq!(batch["errors"][path]["code"], "invalid_path", "{path:?}");
        }
        for expand in [false, true] {
            let body = json!({"paths": paths, "expand_wildcards": expand});
            let (status, answer) = root.post("/v1/secrets/batch/metadata", body).await.json().await;
            if expand && chunk.iter().any(|path| path.contains(['*', '?'])) {
                assert!(status == 200 || answer["error"]["code"] == "invalid_glob", "{answer}");
                continue;
            }
            assert_eq!(status, 200, "{answer}");
            assert_eq!(answer["metadata"].as_object().unwrap().keys().collect::<Vec<_>>(), [SECRET]);
            for path in chunk {
                assert_eq!(answer["errors"][path]["code"], "invalid_path", "{path:?}");
            }
        }
        let body = json!({"paths": [SECRET, chunk[0]], "options": {"fail_fast": true}});
        let error = root.post("/v1/secrets/batch", body).await.json().await.1;
        assert_eq!(
            (&error["error"]["code"], &error["error"]["details"]["path"]),
            (&json!("invalid_path"), &json!(chunk[0]))
        );
        let body = json!({"paths": [SECRET], "options": {"versions": {(chunk[0].as_str()): 1}}});
        root.post("/v1/secrets/batch", body).await.expect_error(400, "invalid_request").await;
    }
    let recorded = server.audit("&success=false").await;
    let invalid = recorded.iter().filter(|event| event["code"] == "invalid_path");
    assert!(invalid.clone().count() >= 2 * all.len());
    assert!(invalid.clone().all(|event| event["secret_path"].is_null()));
}

/// Paths that are allowed, ordinary and at the edges of the grammar.
pub fn valid_paths() -> Vec<String> {
    let edges = [
        "a",
        "_",
        "0",
        "A",
        "a.b",
        "a..b",
        "a...",
        "a-",
        "a.-_",
        "_.",
        "__",
        "batch0",
        "metadata",
        "secrets/batch",
        "v1/secrets/x",
        "nul",
        "con",
        "0x41",
        "a/b/c/d/e/f/g/h/i/j",
        "team/Key",
        "team/key",
        "TEAM/key",
        "x/1/2",
        "x/12",
        "true",
        "null",
    ];
    let mut paths: Vec<String> = edges.map(str::to_owned).to_vec();
    // A generator with a seed, so that a failure can be repeated.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |most: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % most
    };
    let alphabet: Vec<char> = ('a'..='z').chain('A'..='Z').chain('0'..='9').chain(['_', '.', '-']).collect();
    for _ in 0..40 {
        let segments: Vec<String> = (0..=next(9))
            .map(|_| (0..=next(9)).map(|at| alphabet[next(if at == 0 { 63 } else { 65 })]).collect())
            .collect();
        paths.push(segments.join("/"));
    }
    paths
}

#[tokio::test]
async fn policy_audit_and_answer_see_the_same_path() {
    let echo = Directory::new().with("echo", "deadline = \"5s\"").server().await;
    let token = echo.token("user:root");
    for path in valid_paths() {
        for (method, prefix, body) in ROUTES {
            let target = format!("{prefix}{path}");
            let answer = exchange(&echo, &request(method, target.as_bytes(), &token, body.map(str::as_bytes))).await;
            let error = &answer.json()["error"];
            assert_eq!(error["details"]["reason"], json!(path), "the policy saw another path: {method} {target}");
            let request_id = error["request_id"].as_str().unwrap();
            let events = echo.audit(&format!("&request_id={request_id}")).await;
            assert_eq!((events.len(), &events[0]["secret_path"]), (1, &json!(path)), "{method} {target}");
        }
    }
    let paths = valid_paths();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let batch = echo.root().batch(&paths).await;
    for path in paths {
        assert_eq!(batch["errors"][path]["details"]["reason"], json!(path));
    }
}

#[tokio::test]
async fn what_is_stored_is_found_at_its_own_spelling_alone() {
    let server = TestServer::new().await;
    let root = server.root();
    let long = format!("{}/{}", "a".repeat(255), "b".repeat(256));
    let mut paths = valid_paths();
    paths.push(long);
    for (number, path) in paths.iter().enumerate() {
        root.store(path, json!({"number": number})).await;
    }
    for (number, path) in paths.iter().enumerate() {
        let (status, secret) = root.get(&format!("/v1/secrets/{path}")).await.json().await;
        assert_eq!((status, &secret["path"], &secret["data"]["number"]), (200, &json!(path), &json!(number)));
    }
    let listed = root.get("/v1/secrets?limit=1000").await.json().await.1;
    let listed: BTreeSet<_> =
        listed["secrets"].as_array().unwrap().iter().map(|one| one["path"].as_str().unwrap()).collect();
    assert_eq!(listed, paths.iter().map(String::as_str).collect());
}
