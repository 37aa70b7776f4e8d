//! The audit log: what is in it, and how it is asked.

use std::net::Ipv4Addr;

use portcullis::{
    domain::{Clock, Scope},
    server::SystemClock,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{ALL_SCOPES, Client, READER, ROOT_MAY_ALL, TestServer};

async fn sample_server() -> TestServer {
    TestServer::with_rules(&format!("{ROOT_MAY_ALL}{READER}")).await
}

fn text<'a>(entry: &'a Value, field: &str) -> &'a str {
    entry[field].as_str().unwrap_or_default()
}

/// Who asks, what, with which body, and the one event that it leaves: action, path, code.
type Row<'a> = (&'a Client, Method, &'a str, Value, &'a str, Option<&'a str>, &'a str);

/// What the codes begin with of requests that end before a policy is asked.
const UNDECIDED: [&str; 4] = ["invalid", "validation", "insufficient", "token"];

#[tokio::test]
async fn every_decision_leaves_an_event_and_every_refusal_too() {
    let server = sample_server().await;
    let (root, reader) = (server.root(), server.client("sa:reader"));
    let unscoped = server.client_with_token(server.token_with("sa:reader", "default", &[], &[]));
    let nobody = server.client_with_token("guess".to_owned());
    let some = json!({"data": {"v": "canary"}});
    let table: Vec<Row<'_>> = vec![
        (&root, Method::PUT, "/v1/secrets/open/a", some.clone(), "write", Some("open/a"), "ok"),
        (&root, Method::GET, "/v1/secrets/open/a", json!({}), "read", Some("open/a"), "ok"),
        (&root, Method::GET, "/v1/secrets/open/none", json!({}), "read", Some("open/none"), "secret_not_found"),
        (&root, Method::GET, "/v1/secrets/open/a?version=7", json!({}), "read", Some("open/a"), "version_not_found"),
        (
            &root,
            Method::PUT,
            "/v1/secrets/open/a",
            json!({"data": {}, "options": {"expected_version": 9}}),
            "write",
            Some("open/a"),
            "version_conflict",
        ),
        (&root, Method::GET, "/v1/metadata/open/a", json!({}), "list", Some("open/a"), "ok"),
        (&root, Method::GET, "/v1/metadata/open/none", json!({}), "list", Some("open/none"), "secret_not_found"),
        (&root, Method::PATCH, "/v1/metadata/open/a", json!({"owner": "o"}), "write", Some("open/a"), "ok"),
        (&root, Method::GET, "/v1/versions/open/a", json!({}), "list", Some("open/a"), "ok"),
        (&root, Method::POST, "/v1/rollback/open/a", json!({"version": 1}), "write", Some("open/a"), "ok"),
        (
            &root,
            Method::POST,
            "/v1/rollback/open/a",
            json!({"version": 9}),
            "write",
            Some("open/a"),
            "version_not_found",
        ),
        (&root, Method::POST, "/v1/destroy/open/a", json!({"versions": [1]}), "delete", Some("open/a"), "ok"),
        (&root, Method::GET, "/v1/secrets", json!({}), "list", Some("open/a"), "ok"),
        (&root, Method::DELETE, "/v1/secrets/open/a", json!({}), "delete", Some("open/a"), "ok"),
        (&root, Method::PUT, "/v1/secrets/open/a", some.clone(), "write", Some("open/a"), "secret_exists"),
        (&root, Method::POST, "/v1/restore/open/a", json!({}), "write", Some("open/a"), "ok"),
        (&root, Method::POST, "/v1/restore/open/a", json!({}), "write", Some("open/a"), "secret_not_found"),
        (&reader, Method::GET, "/v1/secrets/open/a", json!({}), "read", Some("open/a"), "ok"),
        (&reader, Method::GET, "/v1/secrets/closed/a", json!({}), "read", Some("closed/a"), "access_denied"),
        (&reader, Method::PUT, "/v1/secrets/open/a", some.clone(), "write", Some("open/a"), "access_denied"),
        (&reader, Method::DELETE, "/v1/secrets/open/a", json!({}), "delete", Some("open/a"), "access_denied"),
        (&reader, Method::GET, "/v1/metadata/closed/a", json!({}), "list", Some("closed/a"), "access_denied"),
        (
            &reader,
            Method::POST,
            "/v1/secrets/batch",
            json!({"paths": ["closed/a"]}),
            "read",
            Some("closed/a"),
            "access_denied",
        ),
        (
            &reader,
            Method::POST,
            "/v1/secrets/batch/metadata",
            json!({"paths": ["closed/a"]}),
            "list",
            Some("closed/a"),
            "access_denied",
        ),
        (
            &reader,
            Method::POST,
            "/v1/secrets/batch/metadata",
            json!({"paths": ["open/*"], "expand_wildcards": true}),
            "list",
            Some("open/a"),
            "ok",
        ),
        // What never came to a decision.
        (&root, Method::GET, "/v1/secrets/a//canary", json!({}), "read", None, "invalid_path"),
        (&root, Method::DELETE, "/v1/secrets/can%61ry", json!({}), "delete", None, "invalid_path"),
        (
            &root,
            Method::PUT,
            "/v1/secrets/open/a",
            json!({"data": "canary"}),
            "write",
            Some("open/a"),
            "invalid_request",
        ),
        (
            &root,
            Method::PUT,
            "/v1/secrets/open/a",
            json!({"data": {}, "secret_type": "canary"}),
            "write",
            Some("open/a"),
            "invalid_secret_type",
        ),
        (
            &root,
            Method::PATCH,
            "/v1/metadata/open/a",
            json!({"tags": [""]}),
            "write",
            Some("open/a"),
            "validation_error",
        ),
        (&root, Method::POST, "/v1/secrets/batch", json!({"paths": []}), "read", None, "invalid_request"),
        (
            &root,
            Method::POST,
            "/v1/secrets/batch/metadata",
            json!({"paths": ["a**"], "expand_wildcards": true}),
            "list",
            None,
            "invalid_glob",
        ),
        (&root, Method::GET, "/v1/secrets?cursor=AAAA", json!({}), "list", None, "invalid_cursor"),
        (
            &root,
            Method::POST,
            "/v1/secrets/batch/metadata",
            json!({"paths": ["a*"], "expand_wildcards": true,
            "options": {"cursor": "AAAA"}}),
            "list",
            None,
            "invalid_cursor",
        ),
        (&root, Method::GET, "/v1/audit/logs?cursor=AAAA", json!({}), "query_audit_log", None, "invalid_cursor"),
        (&root, Method::GET, "/v1/audit/logs?from=canary", json!({}), "query_audit_log", None, "invalid_request"),
        (&root, Method::GET, "/v1/policies/canary", json!({}), "describe_policy", None, "policy_not_found"),
        (&unscoped, Method::GET, "/v1/secrets/open/a", json!({}), "read", Some("open/a"), "insufficient_scope"),
        (&unscoped, Method::GET, "/v1/audit/logs", json!({}), "query_audit_log", None, "insufficient_scope"),
        (&unscoped, Method::GET, "/v1/policies", json!({}), "list_policies", None, "insufficient_scope"),
        (&nobody, Method::GET, "/v1/secrets/open/a", json!({}), "read", Some("open/a"), "token_invalid"),
        (&nobody, Method::GET, "/v1/auth/whoami", json!({}), "whoami", None, "token_invalid"),
        (&root, Method::DELETE, "/v1/secrets/open/a?permanent=true", json!({}), "delete", Some("open/a"), "ok"),
    ];
    for (client, method, target, body, action, path, code) in table {
        let request = client.request(method.clone(), target).header("content-type", "application/json");
        let answer = request.header("user-agent", "audit-test/1").body(body.to_string()).send().await.unwrap();
        let status = answer.status().as_u16();
        let request_id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        let events = server.audit(&format!("&request_id={request_id}")).await;
        assert_eq!(events.len(), 1, "{method} {target}: {events:?}");
        let event = &events[0];
        let told = (text(event, "action"), event["secret_path"].as_str(), text(event, "code"));
        assert_eq!(told, (action, path, code), "{method} {target}");
        let batch = target.starts_with("/v1/secrets/batch");
        assert_eq!(event["success"], json!(code == "ok"), "{method} {target}");
        assert!(batch || (status < 300) == (code == "ok"), "{method} {target}: {status}");
        let who = if code == "token_invalid" {
            (Value::Null, Value::Null)
        } else {
            (json!("default"), event["identity_id"].clone())
        };
        assert_eq!((event["tenant_id"].clone(), event["identity_id"].clone()), who);
        assert_eq!((text(event, "source_ip"), text(event, "user_agent")), ("127.0.0.1", "audit-test/1"));
        assert!(event["duration_ms"].as_f64().unwrap() > 0.0 && text(event, "timestamp").ends_with('Z'));
        // Where policies were asked, the event says what they said.
        let decided = path.is_some() && UNDECIDED.iter().all(|prefix| !code.starts_with(prefix));
        assert_eq!(event["decision"].is_object(), decided, "{method} {target}");
        if decided && code != "access_denied" {
            assert_eq!((text(&event["decision"], "module"), &event["decision"]["generation"]), ("rules", &json!(1)));
            assert_eq!(text(&event["decision"], "digest").len(), 64);
        }
    }
    let log = json!(server.audit("").await).to_string();
    assert!(!log.contains("canary") && !log.contains(&root.token) && !log.contains("guess"), "no value, no token");
}

/// A filter of the query, and what it is to let through.
type Filter<'a> = (String, Box<dyn Fn(&Value) -> bool + 'a>);

/// Collects the log page by page. No page is empty, and none is longer than asked for.
async fn paged(auditor: &Client, limit: usize, query: &str) -> Vec<Value> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let target = format!("/v1/audit/logs?limit={limit}{query}{cursor}");
        let (status, page) = auditor.get(&target).await.json().await;
        assert_eq!(status, 200, "{page}");
        assert_eq!(page["has_more"].as_bool().unwrap(), page["cursor"].is_string());
        let entries = page["logs"].as_array().unwrap();
        assert!(entries.len() <= limit && !entries.is_empty(), "limit {limit}: {page}");
        found.extend(entries.clone());
        let Some(next) = page["cursor"].as_str() else { return found };
        cursor = format!("&cursor={next}");
    }
}

#[tokio::test]
async fn the_log_is_filtered_and_paged_and_each_tenants_own() {
    let server = sample_server().await;
    let (root, reader) = (server.root(), server.client("sa:reader"));
    for path in ["open/a", "open/b", "closed/a"] {
        root.store(path, json!({})).await;
    }
    let elsewhere = reqwest::Client::builder().no_proxy().local_address(Some(Ipv4Addr::new(127, 0, 0, 2).into()));
    let mut far = reader.clone();
    far.http = elsewhere.build().unwrap();
    let batch = far.post("/v1/secrets/batch", json!({"paths": ["open/a", "open/b", "closed/a", "open/none"]})).await;
    let request_id = batch.header("x-request-id").unwrap();
    reader.get("/v1/secrets/open/a").await;
    root.get("/v1/secrets").await;
    root.delete("/v1/secrets/open/b").await;
    server.client_with_token("guess".to_owned()).get("/v1/secrets/open/a").await;
    let acme = server.client_with_token(server.token_with("user:root", "acme", &ALL_SCOPES, &[]));
    acme.store("open/a", json!({})).await;

    // What follows leaves events of its own.
    let until = format!("&to={}", SystemClock.now());
    let all = server.audit("").await;
    assert_eq!(all.len(), 13, "three writes, four reads in a batch, a read, three listed, a delete, a guess");
    assert!(all.windows(2).all(|pair| text(&pair[0], "timestamp") >= text(&pair[1], "timestamp")), "newest first");
    let ids: std::collections::BTreeSet<_> = all.iter().map(|entry| text(entry, "id")).collect();
    assert_eq!(ids.len(), all.len());
    let middle = text(&all[6], "timestamp").to_owned();
    let (by_root, by_far) =
        (|e: &Value| text(e, "identity_id") == "user:root", |e: &Value| text(e, "source_ip") == "127.0.0.2");
    let filters: Vec<Filter<'_>> = vec![
        (format!("from={middle}"), Box::new(|e| text(e, "timestamp") >= middle.as_str())),
        (format!("to={middle}"), Box::new(|e| text(e, "timestamp") < middle.as_str())),
        (
            format!("from={middle}&to=2999-01-01T00:00:00%2B01:00"),
            Box::new(|e| text(e, "timestamp") >= middle.as_str()),
        ),
        ("action=read".to_owned(), Box::new(|e| text(e, "action") == "read")),
        ("action=write,delete".to_owned(), Box::new(|e| ["write", "delete"].contains(&text(e, "action")))),
        ("identity_id=user:root".to_owned(), Box::new(by_root)),
        ("identity_type=service_account".to_owned(), Box::new(|e| text(e, "identity_type") == "service_account")),
        ("path_prefix=open/".to_owned(), Box::new(|e| text(e, "secret_path").starts_with("open/"))),
        ("success=true".to_owned(), Box::new(|e| e["success"] == json!(true))),
        ("success=false".to_owned(), Box::new(|e| e["success"] == json!(false))),
        ("source_ip=127.0.0.2".to_owned(), Box::new(by_far)),
        (format!("request_id={request_id}"), Box::new(|e| text(e, "request_id") == request_id)),
        (
            "identity_id=user:root&action=list&path_prefix=open".to_owned(),
            Box::new(|e| by_root(e) && text(e, "action") == "list" && text(e, "secret_path").starts_with("open")),
        ),
    ];
    for (query, wanted) in filters {
        let expected: Vec<_> = all.iter().filter(|entry| wanted(entry)).cloned().collect();
        assert!(!expected.is_empty() && expected.len() < all.len(), "{query} selects some");
        assert_eq!(server.audit(&format!("&{query}")).await, expected, "{query}");
    }
    for query in
        ["identity_id=user:nobody", "action=none", "request_id=req_none", "path_prefix=zz", "from=2999-01-01T00:00:00Z"]
    {
        assert_eq!(server.audit(&format!("&{query}")).await, Vec::<Value>::new(), "{query}");
    }
    // A batch is as many events as paths, of one request.
    let events = server.audit(&format!("&request_id={request_id}")).await;
    let places: Vec<_> =
        events.iter().map(|e| (e["batch"]["index"].as_u64().unwrap(), text(e, "secret_path"))).collect();
    assert_eq!(places, [(3, "open/none"), (2, "closed/a"), (1, "open/b"), (0, "open/a")]);
    assert_eq!(all.iter().filter(|entry| entry.get("batch").is_some()).count(), 4);

    // Page by page, also where a page ends within a batch, and with filters.
    let auditor = server.client_with_token(server.token_with("user:auditor", "default", &[Scope::AuditRead], &[]));
    let seen: Vec<_> = all.iter().filter(|entry| entry["tenant_id"] == "default").cloned().collect();
    assert_eq!(seen.len(), 12, "what belongs to no tenant is for administrators");
    for (limit, query) in [(1, ""), (2, ""), (3, ""), (5, "&success=true"), (12, ""), (1_000, "")] {
        let wanted = |entry: &&Value| query.is_empty() || entry["success"] == json!(true);
        assert_eq!(
            paged(&auditor, limit, &format!("{query}{until}")).await,
            seen.iter().filter(wanted).cloned().collect::<Vec<_>>(),
            "limit {limit}{query}"
        );
    }
    let (_, page) = auditor.get("/v1/audit/logs?limit=1").await.json().await;
    let cursor = page["cursor"].as_str().unwrap();
    let root_cursor = format!("/v1/audit/logs?cursor={cursor}");
    root.get(&root_cursor).await.expect_error(400, "invalid_cursor").await;
    for (query, named) in [
        (format!("cursor={cursor}&success=true"), "cursor"),
        ("cursor=AAAA".to_owned(), "cursor"),
        ("limit=0".to_owned(), "limit"),
        ("limit=1001".to_owned(), "limit"),
        ("from=yesterday".to_owned(), "from"),
        ("to=2026-01-01".to_owned(), "to"),
        ("success=maybe".to_owned(), "query"),
        ("path=a".to_owned(), "query"),
    ] {
        let code = if named == "cursor" { "invalid_cursor" } else { "invalid_request" };
        let message = auditor.get(&format!("/v1/audit/logs?{query}")).await.expect_error(400, code).await;
        assert!(message.contains(named), "{query}: {message}");
    }

    // Another tenant has another log.
    let auditor = server.client_with_token(server.token_with("user:auditor", "acme", &[Scope::Admin], &[]));
    let (_, page) = auditor.get(&format!("/v1/audit/logs?{}", &until[1..])).await.json().await;
    assert_eq!(page["logs"].as_array().unwrap().len(), 1);
    assert_eq!((text(&page["logs"][0], "tenant_id"), text(&page["logs"][0], "action")), ("acme", "write"));
    let by_id = format!("/v1/audit/logs?request_id={request_id}");
    assert_eq!(auditor.get(&by_id).await.json().await.1["logs"], json!([]));
}
