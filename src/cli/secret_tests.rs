//! The commands against a server of canned answers: what is sent, what is shown, how it ends.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    extract::Request,
    http::{StatusCode, header::AUTHORIZATION},
    response::{IntoResponse as _, Response},
};
use clap::{CommandFactory as _, Parser};

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    secret: SecretArgs,
}

type Seen = Arc<Mutex<Vec<String>>>;

/// A server that answers every request with what `answer` makes of its method and target, and what it was asked.
async fn server(answer: fn(&str) -> (u16, &'static str)) -> (String, Seen) {
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let app = Router::new().fallback(async move |request: Request| respond(&log, request, answer).await);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, seen)
}

async fn respond(seen: &Seen, request: Request, answer: fn(&str) -> (u16, &'static str)) -> Response {
    let (parts, body) = request.into_parts();
    assert_eq!(parts.headers.get(AUTHORIZATION).unwrap(), "Bearer t0ken");
    let target = format!("{} {}", parts.method, parts.uri);
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    seen.lock().unwrap().push(format!("{target} {}", String::from_utf8_lossy(&body)).trim_end().to_owned());
    let (status, text) = answer(&target);
    (StatusCode::from_u16(status).unwrap(), [("x-request-id", "req_1")], text).into_response()
}

/// Runs a command line (split at blanks) with a token file: status, output, lines for standard error.
async fn run_line(url: &str, token: &str, line: &str) -> (u8, String, Vec<String>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), token).unwrap();
    let mut words = vec!["portcullis", "--url", url, "--token-file", file.path().to_str().unwrap()];
    words.extend(line.split(' '));
    let args = Cli::try_parse_from(words).unwrap().secret;
    let report = execute(args).await.unwrap_or_else(|failure| Report { failures: vec![failure], ..Report::default() });
    (report.exit() as u8, report.text.to_string(), report.failures.iter().map(ToString::to_string).collect())
}

/// Standard output of a command that succeeds.
async fn shown(url: &str, line: &str) -> String {
    let (exit, text, failures) = run_line(url, "t0ken\n", line).await;
    assert_eq!((exit, failures), (0, vec![]), "{line}");
    text
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

const SECRET: &str = r#"{"path":"a/b","version":3,"data":{"user":"al\"ice","pin":[1,2.50],"key":"one\ntwo\n"},
"secret_type":"json","metadata":{"description":"d\u001b[2J","tags":["x","y"],"owner":null,"custom":{"k":"v"}},
"created_at":"2026-01-02T03:04:05.000000Z","created_by":"user:alice","updated_at":"2026-01-03T00:00:00.000000Z",
"updated_by":null,"expires_at":null,"new":{}}"#;

#[tokio::test]
async fn get_shows_columns_json_or_one_field() {
    let (url, seen) = server(|_| (200, SECRET)).await;
    let columns = "path         a/b
version      3
type         json
created      2026-01-02T03:04:05.000000Z by user:alice
updated      2026-01-03T00:00:00.000000Z
description  d\\u{1b}[2J
tags         x, y
custom.k     v

key   one
      two
pin   [1,2.50]
user  al\"ice
";
    assert_eq!(shown(&url, "get a/b").await, columns);
    assert_eq!(shown(&url, "get a/b --version 3 --json").await, format!("{SECRET}\n"));
    assert_eq!(shown(&url, "get a/b --field pin --json").await, "[1,2.50]\n");
    let field = shown(&url, "get a/b --field key").await;
    assert_eq!(field.trim_end(), "one\ntwo");
    assert_eq!(seen.lock().unwrap()[..2], ["GET /v1/secrets/a/b", "GET /v1/secrets/a/b?version=3"]);

    let (exit, text, failures) = run_line(&url, "t0ken", "get a/b --field pass").await;
    assert_eq!((exit, text.as_str()), (4, ""));
    assert!(failures[0].contains("no field \"pass\" in version 3"), "{failures:?}");
}

#[tokio::test]
async fn put_sends_what_was_given_and_nothing_else() {
    let (url, seen) = server(|_| (201, r#"{"path":"a/b","version":1,"secret_type":"kv","expires_at":"E"}"#)).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "{\"n\": 1.50, \"n\": 2}\n").unwrap();
    for (line, body) in [
        ("user=a=b pass=".to_owned(), r#"{"data":{"pass":"","user":"a=b"}}"#),
        (r#"--data {"a":{"b":1}} --type json"#.to_owned(), r#"{"data":{"a":{"b":1}},"secret_type":"json"}"#),
        (format!("--file {}", file.path().display()), r#"{"data":{"n": 1.50, "n": 2}}"#),
        (
            "k=v --description d --tag x --tag y --owner o --custom a=b".to_owned(),
            r#"{"data":{"k":"v"},"metadata":{"description":"d","tags":["x","y"],"owner":"o","custom":{"a":"b"}}}"#,
        ),
        (
            "k=v --expires-in 90d --expected-version 0 --max-versions 5".to_owned(),
            r#"{"data":{"k":"v"},"options":{"expires_in":"90d","expected_version":0,"max_versions":5}}"#,
        ),
    ] {
        assert_eq!(shown(&url, &format!("put a/b {line}")).await, "a/b version 1 written, expires E\n");
        assert_eq!(seen.lock().unwrap().pop().unwrap(), format!("PUT /v1/secrets/a/b {body}"));
    }
}

#[tokio::test]
async fn what_cannot_be_meant_is_never_sent() {
    let (url, seen) = server(|_| (500, "")).await;
    for line in [
        "get /a",
        "get a/../b",
        "get a%2fb",
        "get a?b",
        "put a=b k=v",
        "delete a//b",
        "versions a/",
        "batch a b#c",
        "list a%",
        "put a noequals",
        "put a =v",
        "put a k=1 k=2",
        "put a --data [1]",
        "put a --data {\"s3cret\"",
        "put a k=v --custom x",
        "put a --file /nonexistent",
    ] {
        let (exit, text, failures) = run_line(&url, "t0ken", line).await;
        assert_eq!((exit, text.as_str()), (5, ""), "{line}");
        assert!(failures.len() == 1 && failures[0].contains("; next: "), "{failures:?}");
        assert!(!failures[0].contains("s3cret"), "{failures:?}");
    }
    assert_eq!(run_line(&url, " \n", "get a").await.0, 2);
    assert_eq!(run_line(&url, "two\nlines", "get a").await.0, 2);
    assert_eq!(seen.lock().unwrap().len(), 0);
    for url in ["localhost", "ftp://x", "http://u:p@x", "http://x/?q"] {
        assert_eq!(run_line(url, "t0ken", "get a").await.0, 5, "{url}");
    }
}

#[tokio::test]
async fn list_follows_cursors() {
    const FIRST: &str = r#"{"secrets":[{"path":"a/b","version":12,"secret_type":"kv","updated_at":"T","tags":["x"]},
        {"path":"a/long","version":1}],"cursor":"c+/= &","has_more":true}"#;
    const LAST: &str = r#"{"secrets":[{"path":"c","version":2}],"cursor":null,"has_more":false}"#;
    let (url, seen) = server(|target| (200, if target.contains("cursor") { LAST } else { FIRST })).await;
    let all = "PATH    VERSION  TYPE  UPDATED  TAGS\na/b     12       kv    T        x\n";
    assert!(shown(&url, "list a/").await.starts_with(all));
    assert_eq!(
        std::mem::take(&mut *seen.lock().unwrap()),
        ["GET /v1/secrets?prefix=a/", "GET /v1/secrets?prefix=a/&cursor=c%2B%2F%3D%20%26"]
    );
    let json: serde_json::Value = serde_json::from_str(&shown(&url, "list --json").await).unwrap();
    assert_eq!(json["secrets"].as_array().unwrap().len(), 3);
    assert_eq!(shown(&url, "list --limit 1").await.lines().count(), 2);
    assert_eq!(seen.lock().unwrap().pop().unwrap(), "GET /v1/secrets?prefix=&limit=1");
}

#[tokio::test]
async fn versions_and_delete() {
    let (url, seen) = server(|target| match target {
        "GET /v1/versions/a/b" => {
            (200, r#"{"path":"a/b","versions":[{"version":2,"state":"live","created_at":"T","created_by":"sa:x"}]}"#)
        }
        "DELETE /v1/secrets/a/b" => (200, r#"{"path":"a/b","deleted_at":"T","recoverable_until":"U"}"#),
        _ => (204, ""),
    })
    .await;
    assert_eq!(shown(&url, "versions a/b").await, "VERSION  STATE  CREATED  BY\n2        live   T        sa:x\n");
    assert_eq!(shown(&url, "delete a/b").await, "a/b deleted, recoverable until U\n");
    assert_eq!(shown(&url, "delete a/b --permanent").await, "a/b destroyed\n");
    assert_eq!(shown(&url, "delete a/b --permanent --json").await, "{\"path\":\"a/b\",\"destroyed\":true}\n");
    assert_eq!(seen.lock().unwrap().pop().unwrap(), "DELETE /v1/secrets/a/b?permanent=true");
}

#[tokio::test]
async fn a_batch_shows_both_parts_and_ends_with_the_first_error() {
    const REPLY: &str = r#"{"secrets":{"c":{"data":{"k":"v"},"version":7,"secret_type":"json"}},"errors":
        {"a":{"code":"secret_not_found","message":"none"},"b":{"code":"access_denied","message":"No policy"}},
        "retrieved":1,"failed":2}"#;
    let (url, seen) = server(|_| (200, REPLY)).await;
    let (exit, text, failures) = run_line(&url, "t0ken", "batch b c a c --version 7").await;
    assert_eq!((exit, text.as_str()), (3, "path     c\nversion  7\ntype     json\n\nk  v\n"));
    assert!(failures[0].starts_with("b: No policy (access_denied, request req_1); next: ask"), "{failures:?}");
    assert!(failures[1].starts_with("a: none (secret_not_found, request req_1); next: see"), "{failures:?}");
    assert_eq!(
        seen.lock().unwrap().pop().unwrap(),
        r#"POST /v1/secrets/batch {"paths":["b","c","a","c"],"options":{"include_metadata":false,"fail_fast":false,"version":7}}"#
    );
    assert_eq!(run_line(&url, "t0ken", "batch a b --json").await.0, 4);
    assert_eq!(shown(&url, "batch c --json").await, format!("{REPLY}\n"));
}

#[tokio::test]
async fn every_status_has_its_number_and_every_failure_one_line() {
    let (url, _) = server(|target| {
        let status = target.rsplit('/').next().unwrap().parse().unwrap();
        (status, r#"{"error":{"code":"c\u001b","message":"m\nn","details":{"path":"p/q"},"request_id":"req_2"}}"#)
    })
    .await;
    for (status, expected) in [
        (400, 5),
        (401, 2),
        (403, 3),
        (404, 4),
        (405, 1),
        (409, 5),
        (413, 5),
        (415, 5),
        (422, 5),
        (429, 1),
        (500, 1),
        (503, 1),
        (302, 1),
    ] {
        let (exit, text, failures) = run_line(&url, "t0ken", &format!("get {status}")).await;
        assert_eq!((exit, text.as_str()), (expected, ""), "{status}");
        assert!(failures[0].starts_with("p/q: m n (c\\u{1b}, request req_2); next: "), "{failures:?}");
    }
}

#[tokio::test]
async fn strangers_and_silence_are_failures() {
    let (url, _) = server(|_| (200, "<html>s3cret")).await;
    let (exit, _, failures) = run_line(&url, "t0ken", "get a").await;
    assert_eq!(exit, 1);
    assert!(failures[0].contains("request req_1") && !failures[0].contains("s3cret"), "{failures:?}");
    let (url, _) = server(|_| (502, "<html>")).await;
    assert!(run_line(&url, "t0ken", "get a").await.2[0].starts_with("the server answered 502 Bad Gateway"));
    let (exit, _, failures) = run_line("http://127.0.0.1:1", "t0ken", "get a").await;
    assert_eq!(exit, 1);
    assert!(failures[0].contains("http://127.0.0.1:1 cannot be reached: Connection refused"), "{failures:?}");
}
