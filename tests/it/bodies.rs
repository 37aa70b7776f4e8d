//! Bodies that are not what a route takes: refused with a code, nothing written, and nothing of them told anywhere.

use std::fs;

use serde_json::{Value, json};

use crate::{
    child::Process,
    guests::Directory,
    raw::{RawAnswer, exchange, request},
    support::TestServer,
};

const SECRET: &str = "team/app/key";
const CANARY: &str = "c4n4ry-hunter2";

/// Every route with a body, and a body that it takes.
const ROUTES: [(&str, &str, &str); 7] = [
    (
        "PUT",
        "/v1/secrets/team/app/key",
        r#"{"data":{"user":"u","deep":{"list":[1,true,null,"x"]}},"secret_type":"json","metadata":{"description":"d","tags":["t"],"owner":"o","custom":{"k":"v"}},"options":{"max_versions":5,"expires_in":"9d","expected_version":7}}"#,
    ),
    (
        "PATCH",
        "/v1/metadata/team/app/key",
        r#"{"description":"d","tags":["t"],"owner":null,"custom":{"k":"v","gone":null}}"#,
    ),
    ("POST", "/v1/rollback/team/app/key", r#"{"version":9}"#),
    ("POST", "/v1/destroy/team/app/key", r#"{"versions":[9,10]}"#),
    (
        "POST",
        "/v1/secrets/batch",
        r#"{"paths":["team/app/key"],"options":{"include_metadata":true,"fail_fast":false,"version":1,"versions":{"team/app/key":1}}}"#,
    ),
    (
        "POST",
        "/v1/secrets/batch/metadata",
        r#"{"paths":["team/*"],"expand_wildcards":true,"options":{"limit":5,"cursor":"c"}}"#,
    ),
    (
        "POST",
        "/v1/policies/test",
        r#"{"identity":{"id":"user:u","groups":["g"],"scopes":["admin"],"claims":{"k":1},"authenticated_at":"2026-01-01T00:00:00Z","authentication_methods":["pwd"]},"action":"read","path":"team/app/key","context":{"source_ip":"10.0.0.1","mfa":true,"time":"2026-01-01T00:00:00Z"},"secret":{"exists":true,"tags":["t"],"custom":{"k":"v"},"version":1,"expires_at":null},"written_fields":["f"]}"#,
    ),
];

/// Each field (by JSON pointer) of each route's body, with the types that it may have: of `n`ull, `b`ool, `i`nteger,
/// `s`tring, `a`rray, `o`bject.
const FIELDS: [(usize, &str, &str); 56] = [
    (0, "", "o"),
    (0, "/data", "o"),
    (0, "/secret_type", "ns"),
    (0, "/metadata", "no"),
    (0, "/metadata/description", "ns"),
    (0, "/metadata/tags", "a"),
    (0, "/metadata/tags/0", "s"),
    (0, "/metadata/owner", "ns"),
    (0, "/metadata/custom", "o"),
    (0, "/metadata/custom/k", "s"),
    (0, "/options", "o"),
    (0, "/options/max_versions", "ni"),
    (0, "/options/expires_in", "ns"),
    (0, "/options/expected_version", "ni"),
    (1, "", "o"),
    (1, "/description", "ns"),
    (1, "/tags", "na"),
    (1, "/tags/0", "s"),
    (1, "/owner", "ns"),
    (1, "/custom", "no"),
    (1, "/custom/k", "ns"),
    (2, "", "o"),
    (2, "/version", "i"),
    (3, "", "o"),
    (3, "/versions", "a"),
    (3, "/versions/0", "i"),
    (4, "", "o"),
    (4, "/paths", "a"),
    (4, "/paths/0", "s"),
    (4, "/options", "o"),
    (4, "/options/include_metadata", "b"),
    (4, "/options/fail_fast", "b"),
    (4, "/options/version", "ni"),
    (4, "/options/versions", "o"),
    (4, "/options/versions/team~1app~1key", "i"),
    (5, "/paths/0", "s"),
    (6, "", "o"),
    (6, "/identity", "o"),
    (6, "/identity/id", "s"),
    (6, "/identity/groups", "a"),
    (6, "/identity/groups/0", "s"),
    (6, "/identity/scopes/0", "s"),
    (6, "/identity/claims", "o"),
    (6, "/identity/authenticated_at", "ns"),
    (6, "/identity/authentication_methods", "a"),
    (6, "/action", "s"),
    (6, "/path", "s"),
    (6, "/context", "o"),
    (6, "/context/source_ip", "ns"),
    (6, "/context/mfa", "b"),
    (6, "/context/time", "ns"),
    (6, "/secret", "no"),
    (6, "/secret/exists", "nb"),
    (6, "/secret/tags/0", "s"),
    (6, "/secret/custom/k", "s"),
    (6, "/written_fields", "a"),
];

const VALUES: [(char, &str); 14] = [
    ('n', "null"),
    ('b', "true"),
    ('i', "3"),
    ('f', "1.5"),
    ('f', "1e3"),
    ('f', "-0.0"),
    ('h', "18446744073709551616"),
    ('h', "-9223372036854775809"),
    ('h', "1e999"),
    ('h', "123456789012345678901234567890123456789012345678901234567890"),
    ('s', "\"c4n4ry-hunter2\""),
    ('a', "[[\"c4n4ry-hunter2\"]]"),
    ('a', "[]"),
    ('o', "{\"c4n4ry hunter2\":[\"c4n4ry-hunter2\"]}"),
];

async fn server() -> TestServer {
    let server = Directory::new().with("allow", "deadline = \"5s\"").server().await;
    server.root().store(SECRET, json!({"user": "kept"})).await;
    server
}

async fn send(server: &TestServer, (method, target, _): (&str, &str, &str), body: &[u8]) -> RawAnswer {
    exchange(server, &request(method, target.as_bytes(), &server.token("user:root"), Some(body))).await
}

/// The secret, its versions and all metadata, which no refused body may change.
async fn state(server: &TestServer) -> (Value, Value) {
    let root = server.root();
    let secret = root.get(&format!("/v1/secrets/{SECRET}")).await.json().await.1;
    (secret, root.get(&format!("/v1/versions/{SECRET}")).await.json().await.1)
}

#[track_caller]
fn assert_refused(answer: &RawAnswer, what: &str) {
    let text = String::from_utf8_lossy(&answer.body).to_ascii_lowercase();
    assert!((400..500).contains(&answer.status), "{what}: {} {text}", answer.status);
    assert_ne!(answer.outcome().1, "", "{what}: {text}");
    assert!(!text.contains("c4n4ry") && !answer.head.contains("c4n4ry"), "{what}: {text}");
}

#[tokio::test]
async fn a_field_of_a_wrong_type_is_refused() {
    let server = server().await;
    let before = state(&server).await;
    let mut tried = 0;
    for (route, pointer, allowed) in FIELDS {
        for (kind, value) in VALUES {
            if allowed.contains(kind) {
                continue;
            }
            let mut body: Value = serde_json::from_str(ROUTES[route].2).unwrap();
            *body.pointer_mut(pointer).unwrap() = json!("@");
            let body = body.to_string().replace("\"@\"", value);
            let what = format!("{} {} {body}", ROUTES[route].0, ROUTES[route].1);
            let answer = send(&server, ROUTES[route], body.as_bytes()).await;
            assert_refused(&answer, &what);
            assert_eq!(answer.outcome(), (400, "invalid_request".to_owned()), "{what}");
            tried += 1;
        }
    }
    assert!(tried > 350, "{tried}");
    assert_eq!(state(&server).await, before);
}

#[tokio::test]
async fn a_field_beyond_its_limits_is_refused() {
    let server = server().await;
    let before = state(&server).await;
    let long = CANARY.repeat(100);
    let many: Vec<String> = (0..51).map(|number| format!("{CANARY}{number}")).collect();
    let (put, patch) = (0, 1);
    let table = [
        (put, json!({"data": {}, "secret_type": CANARY}), (400, "invalid_secret_type")),
        (put, json!({"data": {}, "secret_type": "KV"}), (400, "invalid_secret_type")),
        (put, json!({"data": {}, "options": {"expires_in": CANARY}}), (400, "invalid_duration")),
        (put, json!({"data": {}, "options": {"expires_in": "0s"}}), (400, "invalid_duration")),
        (put, json!({"data": {}, "options": {"expires_in": "99999999999999999999d"}}), (400, "invalid_duration")),
        (put, json!({"data": {}, "options": {"max_versions": 0}}), (422, "validation_error")),
        (put, json!({"data": {}, "options": {"max_versions": 1001}}), (422, "validation_error")),
        (put, json!({"data": {}, "options": {"max_versions": -1}}), (400, "invalid_request")),
        (put, json!({"data": {}, "options": {"expected_version": -1}}), (422, "validation_error")),
        (put, json!({"data": {}, "options": {"expected_version": i64::MAX}}), (409, "version_conflict")),
        (put, json!({"data": {}, "metadata": {"description": long}}), (422, "validation_error")),
        (put, json!({"data": {}, "metadata": {"owner": long}}), (422, "validation_error")),
        (put, json!({"data": {}, "metadata": {"tags": many}}), (422, "validation_error")),
        (put, json!({"data": {}, "metadata": {"tags": ["c4n4ry\u{0}"]}}), (422, "validation_error")),
        (put, json!({"data": {}, "metadata": {"custom": {(&long): "v"}}}), (422, "validation_error")),
        (put, json!({"data": {}, "metadata": {"custom": {"k": long}}}), (422, "validation_error")),
        (put, json!({"data": {"k": "x".repeat(1024 * 1024)}}), (413, "payload_too_large")),
        (put, json!({}), (400, "invalid_request")),
        (patch, json!({"description": long}), (422, "validation_error")),
        (patch, json!({"tags": many}), (422, "validation_error")),
        (2, json!({"version": 0}), (400, "invalid_request")),
        (2, json!({"version": i64::MIN}), (400, "invalid_request")),
        (2, json!({"version": 4_294_967_297_i64}), (400, "invalid_request")),
        (3, json!({"versions": []}), (400, "invalid_request")),
        (3, json!({"versions": [0]}), (400, "invalid_request")),
        (3, json!({"versions": (1..=1_001).collect::<Vec<_>>()}), (400, "invalid_request")),
        (4, json!({"paths": []}), (400, "invalid_request")),
        (4, json!({"paths": (0..101).map(|n| format!("p{n}")).collect::<Vec<_>>()}), (400, "invalid_request")),
        (4, json!({"paths": vec!["same"; 101]}), (400, "invalid_request")),
        (4, json!({"paths": ["a"], "options": {"versions": {"b": 1}}}), (400, "invalid_request")),
        (5, json!({"paths": ["a"], "options": {"limit": 0}}), (400, "invalid_request")),
        (5, json!({"paths": ["a"], "options": {"limit": 1001}}), (400, "invalid_request")),
        (5, json!({"paths": ["a"], "options": {"cursor": CANARY}}), (400, "invalid_cursor")),
        (5, json!({"paths": ["a[b]*"], "expand_wildcards": true}), (400, "invalid_glob")),
        (6, json!({"identity": {"id": "user:u"}, "action": "read", "path": "a//c4n4ry"}), (400, "invalid_path")),
        (6, json!({"identity": {"id": "user:u"}, "action": CANARY, "path": "a"}), (422, "validation_error")),
        (6, json!({"identity": {"id": CANARY}, "action": "read", "path": "a"}), (422, "validation_error")),
        (
            6,
            json!({"identity": {"id": "user:u", "tenant": CANARY}, "action": "read", "path": "a"}),
            (400, "invalid_request"),
        ),
        (
            6,
            json!({"identity": {"id": "user:u"}, "action": "read", "path": "a", "context": {"time": CANARY}}),
            (400, "invalid_request"),
        ),
        (
            6,
            json!({"identity": {"id": "user:u"}, "action": "read", "path": "a", "context": {"source_ip": CANARY}}),
            (400, "invalid_request"),
        ),
        (
            6,
            json!({"identity": {"id": "user:u"}, "action": "read", "path": "a", "secret": {"tags": many}}),
            (422, "validation_error"),
        ),
    ];
    for (route, body, expected) in table {
        let answer = send(&server, ROUTES[route], body.to_string().as_bytes()).await;
        let what = format!("{} {}", ROUTES[route].1, body.to_string().get(..80).unwrap_or("short"));
        assert_refused(&answer, &what);
        assert_eq!(answer.outcome(), (expected.0, expected.1.to_owned()), "{what}");
    }
    assert_eq!(state(&server).await, before);
}

/// Each place in a body where something can stand: before, within and after every token.
fn places(body: &str) -> Vec<usize> {
    (0..=body.len()).collect()
}

#[tokio::test]
async fn malformed_json_is_refused_and_not_repeated() {
    let server = server().await;
    let before = state(&server).await;
    for route in ROUTES {
        let body = route.2;
        for at in places(body) {
            // Raw text outside a string breaks the syntax; a quote within one does.
            for broken in [format!("{}{CANARY}\"{}", &body[..at], &body[at..]), format!("{}\"{CANARY}", &body[..at])] {
                if serde_json::from_str::<Value>(&broken).is_ok() {
                    continue;
                }
                let answer = send(&server, route, broken.as_bytes()).await;
                assert_refused(&answer, &broken);
                assert_eq!(answer.outcome(), (400, "invalid_request".to_owned()), "{broken}");
            }
        }
    }
    assert_eq!(state(&server).await, before);
}

#[tokio::test]
async fn duplicate_keys_depth_and_bytes_that_are_no_text_are_refused() {
    let server = server().await;
    let before = state(&server).await;
    let deep = |depth: usize| format!("{}1{}", "{\"d\":".repeat(depth), "}".repeat(depth));
    let put: Vec<Vec<u8>> = vec![
        br#"{"data":{"a":1},"data":{"b":"c4n4ry"}}"#.to_vec(),
        br#"{"data":{"c4n4ry":1,"c4n4ry":2}}"#.to_vec(),
        br#"{"data":{"a":{"b":[{"c":1,"c":2}]}}}"#.to_vec(),
        br#"{"data":{"a":1,"\u0061":2}}"#.to_vec(),
        br#"{"data":{},"\u0064ata":{"b":1}}"#.to_vec(),
        br#"{"data":{},"metadata":{"owner":"a","owner":"b"}}"#.to_vec(),
        br#"{"data":{},"metadata":{"custom":{"k":"a","k":"b"}}}"#.to_vec(),
        br#"{"data":{},"options":{"expected_version":0,"expected_version":1}}"#.to_vec(),
        format!("{{\"data\":{}}}", deep(32)).into_bytes(),
        format!("{{\"data\":{}}}", deep(5_000)).into_bytes(),
        "[".repeat(100_000).into_bytes(),
        "{\"data\":".repeat(50_000).into_bytes(),
        b"{\"data\":{\"k\":\"\xff\xfe\"}}".to_vec(),
        b"{\"data\":{\"\xc0\xaf\":1}}".to_vec(),
        b"{\"data\":{\"k\":\"\xed\xa0\x80\"}}".to_vec(),
        b"\xef\xbb\xbf{\"data\":{}}".to_vec(),
        b"\xff\xfe{\x00}\x00".to_vec(),
        br#"{"data":{"k":"\ud800"}}"#.to_vec(),
        br#"{"data":{"k":"\udc00\ud800"}}"#.to_vec(),
        b"{\"data\":{\"k\":\"a\x00b\"}}".to_vec(),
        b"{\"data\":{\"k\":\"a\nb\"}}".to_vec(),
        b"{\"data\":{\"k\":NaN}}".to_vec(),
        b"{\"data\":{\"k\":01}}".to_vec(),
        b"{\"data\":{\"k\":1e400}}".to_vec(),
        format!("{{\"data\":{{\"k\":{}}}}}", "9".repeat(400)).into_bytes(),
        b"{\"data\":{}} {}".to_vec(),
        b"{\"data\":{}}\0".to_vec(),
        b"{\"data\":{},}".to_vec(),
        b"{'data':{}}".to_vec(),
        b"/* c4n4ry */{\"data\":{}}".to_vec(),
        Vec::new(),
        b" ".to_vec(),
        b"null".to_vec(),
    ];
    for body in put {
        let what = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let answer = send(&server, ROUTES[0], &body).await;
        assert_refused(&answer, &what);
        assert_eq!(answer.outcome(), (400, "invalid_request".to_owned()), "{what}");
    }
    for body in [r#"{"paths":["a"],"paths":["b"]}"#, r#"{"paths":["a"],"options":{"versions":{"a":1,"a":2}}}"#] {
        assert_eq!(send(&server, ROUTES[4], body.as_bytes()).await.outcome(), (400, "invalid_request".to_owned()));
    }
    assert_eq!(state(&server).await, before);
    let fits = send(&server, ROUTES[0], format!("{{\"data\":{}}}", deep(31)).as_bytes()).await;
    assert_eq!(fits.status, 200, "depth 32 is taken");
}

#[tokio::test]
async fn an_unknown_field_is_refused_by_its_name() {
    let server = server().await;
    let table = [
        (0, r#"{"data":{},"datum":1}"#, Some("datum")),
        (0, r#"{"data":{},"metadata":{"tag":"c4n4ry"}}"#, Some("tag")),
        (0, r#"{"data":{},"options":{"expectedVersion":1}}"#, Some("expectedVersion")),
        (0, r#"{"data":{},"c4n4ry hunter2":1}"#, None),
        (1, r#"{"custom_metadata":{}}"#, Some("custom_metadata")),
        (2, r#"{"version":1,"force":true}"#, Some("force")),
        (3, r#"{"versions":[1],"all":true}"#, Some("all")),
        (4, r#"{"paths":["a"],"option":{}}"#, Some("option")),
        (4, r#"{"paths":["a"],"options":{"failFast":true}}"#, Some("failFast")),
        (5, r#"{"paths":["a"],"options":{"offset":1}}"#, Some("offset")),
    ];
    for (route, body, named) in table {
        let answer = send(&server, ROUTES[route], body.as_bytes()).await;
        assert_refused(&answer, body);
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(named.is_none_or(|name| message.contains(&format!("`{name}`"))), "{body}: {message}");
    }
}

#[tokio::test]
async fn a_body_too_long_is_told_so_however_it_comes() {
    let server = server().await;
    let before = state(&server).await;
    let token = server.token("user:root");
    let filler = "x".repeat(2 * 1024 * 1024);
    for (method, target, _) in ROUTES {
        let body = format!("{{\"data\":{{\"k\":\"{filler}\"}}}}");
        let whole = request(method, target.as_bytes(), &token, Some(body.as_bytes()));
        let chunked = [
            head(method, target, &token, "Transfer-Encoding: chunked\r\n").as_bytes(),
            format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).as_bytes(),
        ]
        .concat();
        for bytes in [whole, chunked] {
            let answer = exchange(&server, &bytes).await;
            assert_eq!(answer.outcome(), (413, "payload_too_large".to_owned()), "{method} {target}");
        }
    }
    assert_eq!(state(&server).await, before);
}

fn head(method: &str, target: &str, token: &str, more: &str) -> String {
    format!(
        "{method} {target} HTTP/1.1\r\nHost: vault\r\nConnection: close\r\nAuthorization: Bearer \
         {token}\r\nContent-Type: application/json\r\n{more}\r\n"
    )
}

#[tokio::test]
async fn a_body_that_is_framed_wrongly_writes_nothing() {
    let server = server().await;
    let before = state(&server).await;
    let token = server.token("user:root");
    let body = r#"{"data":{"k":"c4n4ry"}}"#;
    let size = body.len();
    let chunked = "Transfer-Encoding: chunked\r\n";
    let table = [
        (chunked, format!("zz\r\n{body}\r\n0\r\n\r\n")),
        (chunked, format!("-1\r\n{body}\r\n0\r\n\r\n")),
        (chunked, format!("{:x}\r\n{body}", size + 5)),
        (chunked, format!("{size:x}\r\n{body}")),
        (chunked, format!("{size:x}\r\n{body}\r\n")),
        (chunked, format!("{size:x}\r\n{body}xx0\r\n\r\n")),
        (chunked, format!("ffffffffffffffffff\r\n{body}\r\n0\r\n\r\n")),
        (chunked, format!("0x{size:x}\r\n{body}\r\n0\r\n\r\n")),
        ("Transfer-Encoding: gzip\r\n", body.to_owned()),
        ("Transfer-Encoding: chunked, identity\r\n", format!("{size:x}\r\n{body}\r\n0\r\n\r\n")),
        ("Content-Length: 99999\r\n", body.to_owned()),
        ("Content-Length: -5\r\n", body.to_owned()),
        ("Content-Length: +23\r\n", body.to_owned()),
        ("Content-Length: 0x17\r\n", body.to_owned()),
        ("Content-Length: 23, 24\r\n", body.to_owned()),
        ("Content-Length: 23\r\nContent-Length: 22\r\n", body.to_owned()),
        ("Content-Length: 22\r\n", body.to_owned()),
        ("Content-Length: 0\r\n", body.to_owned()),
        ("", body.to_owned()),
    ];
    for (headers, body) in table {
        let bytes = [head("PUT", ROUTES[0].1, &token, headers), body.clone()].concat();
        let address = server.url.strip_prefix("http://").unwrap().to_owned();
        let status = half_closed(&address, bytes.as_bytes()).await;
        assert!(status.is_none_or(|status| (400..500).contains(&status)), "{headers:?} {body:?}: {status:?}");
    }
    assert_eq!(state(&server).await, before);
}

/// Sends bytes, then the end of the stream; the status of the answer, where there is one.
async fn half_closed(address: &str, bytes: &[u8]) -> Option<u16> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.ok();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(!text.contains("c4n4ry"), "{text}");
    text.split(' ').nth(1).map(|status| status.parse().unwrap())
}

#[tokio::test]
async fn only_json_is_taken() {
    let server = server().await;
    let token = server.token("user:root");
    let accepted =
        ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/merge-patch+json"];
    let refused = [
        "",
        "text/plain",
        "text/json",
        "application/jsonx",
        "application/json-seq",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json, text/plain",
        "json",
        "application/ json",
        "\u{e4}",
    ];
    for (method, target, body) in ROUTES {
        for (kinds, is_refused) in [(&accepted[..], false), (&refused[..], true)] {
            for kind in kinds {
                let plain =
                    String::from_utf8(request(method, target.as_bytes(), &token, Some(body.as_bytes()))).unwrap();
                let typed = plain.replace("Content-Type: application/json", &format!("Content-Type: {kind}"));
                let outcome = exchange(&server, typed.as_bytes()).await.outcome();
                assert_eq!(
                    outcome == (415, "unsupported_media_type".to_owned()),
                    is_refused,
                    "{kind:?} {target} {outcome:?}"
                );
            }
        }
        let plain = String::from_utf8(request(method, target.as_bytes(), &token, Some(body.as_bytes()))).unwrap();
        let untyped = plain.replace("Content-Type: application/json\r\n", "");
        assert_eq!(exchange(&server, untyped.as_bytes()).await.status, 415);
    }
}

#[tokio::test]
async fn heads_beyond_the_limits_are_refused_and_the_server_is_well() {
    let server = server().await;
    let token = server.token("user:root");
    let many = (0..200).map(|number| format!("X-{number}: c4n4ry\r\n")).collect::<Vec<_>>().concat();
    let table = [
        (many, 431),
        (format!("X-Long: {}\r\n", "c".repeat(40_000)), 431),
        (format!("Authorization: Bearer {token}\r\n"), 401),
        (format!("authorization: bearer {token}\r\n"), 401),
        ("Authorization: Basic dXNlcjpwYXNz\r\n".to_owned(), 401),
        ("X Y: bad\r\n".to_owned(), 400),
        ("X-Bad: a\0b\r\n".to_owned(), 400),
        (" folded\r\n".to_owned(), 400),
    ];
    for (headers, status) in table {
        let bytes = head("GET", "/v1/secrets/team/app/key", &token, &headers);
        let answer = exchange(&server, bytes.as_bytes()).await;
        assert_eq!(answer.status, status, "{}", &headers[..headers.len().min(60)]);
        assert!(!String::from_utf8_lossy(&answer.body).contains("kept"));
    }
    let in_the_address =
        [format!("?access_token={token}"), format!("?token={token}"), format!("?authorization=Bearer%20{token}")];
    for query in in_the_address {
        let bytes = format!("GET /v1/secrets/team/app/key{query} HTTP/1.1\r\nHost: vault\r\nConnection: close\r\n\r\n");
        let answer = exchange(&server, bytes.as_bytes()).await;
        assert_eq!(answer.outcome(), (401, "authentication_required".to_owned()));
    }
    assert_eq!(server.root().get("/v1/secrets/team/app/key").await.status(), 200);
}

/// Values that come in by every door and may come out by none (CVE-2025-4166, GHSA-444v-8vxr-p36h).
#[tokio::test]
async fn no_value_is_told_to_the_log_the_audit_or_the_disk() {
    let policies = Directory::new().with("allow", "deadline = \"5s\"");
    let process = Process::start(&policies.path(), "trace");
    let root = process.root();
    root.store(SECRET, json!({"password": CANARY, "c4n4ry-field": 1})).await;
    assert_eq!(root.get(&format!("/v1/secrets/{SECRET}")).await.json().await.1["data"]["password"], CANARY);
    assert_eq!(root.batch(&[SECRET]).await["retrieved"], 1);
    for (method, target, body) in ROUTES {
        let method: reqwest::Method = method.parse().unwrap();
        for at in places(body).into_iter().step_by(3) {
            let broken = format!("{}{CANARY}\"{}", &body[..at], &body[at..]);
            let sent = root.request(method.clone(), target).header("content-type", "application/json").body(broken);
            let answer = sent.send().await.unwrap().text().await.unwrap();
            assert!(!answer.contains("c4n4ry"), "{answer}");
        }
        let typed = root.request(method.clone(), target).header("content-type", "text/plain").body(CANARY);
        assert!(!typed.send().await.unwrap().text().await.unwrap().contains("c4n4ry"));
    }
    for header in ["authorization", "cookie", "x-vault-token", "if-none-match"] {
        let sent =
            root.http.get(format!("{}/v1/secrets/{SECRET}", process.url)).header(header, format!("Bearer {CANARY}"));
        assert!(!sent.send().await.unwrap().text().await.unwrap().contains("c4n4ry"));
    }
    root.get(&format!("/v1/secrets/{SECRET}?access_token={CANARY}")).await.expect_error(400, "invalid_request").await;

    let (status, audit) = root.get("/v1/audit/logs?limit=1000").await.json().await;
    assert_eq!(status, 200);
    assert!(audit["logs"].as_array().unwrap().len() > 100);
    assert!(!audit.to_string().contains("c4n4ry"), "the audit tells it");
    let log = process.log();
    assert!(log.contains("\"message\":\"request\"") && log.contains("\"level\":\"DEBUG\""), "the log talks");
    let telling: Vec<_> = log.lines().filter(|line| line.contains("c4n4ry") || line.contains(&root.token)).collect();
    assert!(telling.is_empty(), "the log tells it: {telling:#?}");
    let mut looked_at = 0;
    for file in fs::read_dir(&process.data_dir).unwrap() {
        let path = file.unwrap().path();
        if !path.is_file() {
            // What is kept of the policies, which tests of those look into, and the operator's socket.
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        looked_at += 1;
        assert!(!bytes.windows(6).any(|six| six == b"c4n4ry"), "{} holds it", path.display());
        assert!(!bytes.windows(root.token.len()).any(|token| token == root.token.as_bytes()), "{}", path.display());
    }
    assert!(looked_at >= 3, "database, its log, the root key");
}
