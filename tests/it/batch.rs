//! The batch endpoints beyond what the reference document shows.

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use portcullis::domain::Scope;

use crate::support::{Client, Options, READER, ROOT_MAY_ALL, TestServer, keys, metric};

const BATCH: &str = "/v1/secrets/batch";
const METADATA: &str = "/v1/secrets/batch/metadata";

/// Codes of the errors by path.
fn codes(answer: &Value) -> Value {
    let code = |(path, error): (&String, &Value)| (path.clone(), error["code"].clone());
    answer["errors"].as_object().map(|errors| errors.iter().map(code).collect()).unwrap_or_default()
}

async fn post(client: &Client, target: &str, body: Value) -> Value {
    let text = body.to_string();
    let (status, answer) = client.post(target, body).await.json().await;
    assert_eq!(status, 200, "{text}: {answer}");
    answer
}

async fn evaluations(server: &TestServer) -> u64 {
    metric(server, "portcullis_policy_evaluations_total").await
}

#[tokio::test]
async fn what_is_no_batch_is_refused_before_anything_is_evaluated() {
    let server = TestServer::new().await;
    let root = server.root();
    let names = |count: usize| (0..count).map(|n| format!("a/{n}")).collect::<Vec<_>>();
    let before = evaluations(&server).await;
    for (body, named) in [
        (json!({"paths": []}), "1 to 100"),
        (json!({"paths": names(101)}), "1 to 100"),
        (json!({"paths": vec!["a"; 101]}), "1 to 100"),
        (json!({"paths": "a"}), "paths"),
        (json!({"paths": [5]}), "paths[0]"),
        (json!({"paths": ["a", null]}), "paths[1]"),
        (json!({}), "paths"),
        (json!(["a"]), "object"),
        (json!([["a"]]), "object"),
        (json!({"path": ["a"]}), "path"),
        (json!({"paths": ["a"], "options": {"failfast": true}}), "failfast"),
        (json!({"paths": ["a"], "options": {"fail_fast": "canary"}}), "fail_fast"),
        (json!({"paths": ["a"], "options": [true]}), "options"),
        (json!({"paths": ["a"], "options": {"version": 0}}), "version"),
        (json!({"paths": ["a"], "options": {"version": -1}}), "version"),
        (json!({"paths": ["a"], "options": {"version": 2_147_483_648_u32}}), "version"),
        (json!({"paths": ["a"], "options": {"version": "canary"}}), "version"),
        (json!({"paths": ["a"], "options": {"versions": {"a": 0}}}), "version"),
        (json!({"paths": ["a"], "options": {"versions": {"canary": 1}}}), "options.versions"),
        (json!({"paths": ["a"], "options": {"versions": ["canary"]}}), "versions"),
    ] {
        for target in [BATCH, METADATA] {
            if target == METADATA && body.get("options").is_some() {
                continue;
            }
            let message = root.post(target, body.clone()).await.expect_error(400, "invalid_request").await;
            assert!(message.contains(named) && !message.contains("canary"), "{body}: {message}");
        }
    }
    assert_eq!(evaluations(&server).await, before);
    for target in [BATCH, METADATA] {
        let request = root.request(Method::POST, target).body("{\"paths\":[\"a\"]}").send().await.unwrap();
        assert_eq!(request.status(), 415);
    }

    // A hundred absent ones are a good batch, and all of them are evaluated.
    let answer = post(&root, BATCH, json!({"paths": names(100)})).await;
    assert_eq!((&answer["retrieved"], &answer["failed"], &answer["secrets"]), (&json!(0), &json!(100), &json!({})));
    assert_eq!(answer["errors"]["a/99"]["code"], "secret_not_found");
    assert_eq!(evaluations(&server).await - before, 100);
    // With the most and the longest paths there can be, each pinned.
    let longest: Vec<_> = (0..100).map(|n| format!("{n:03}{}", "x".repeat(509))).collect();
    let versions: Value = longest.iter().map(|path| (path.clone(), json!(1))).collect();
    let answer = post(&root, BATCH, json!({"paths": longest, "options": {"versions": versions}})).await;
    assert_eq!(answer["failed"], 100);

    for (method, target) in [
        (Method::PUT, BATCH),
        (Method::PATCH, BATCH),
        (Method::GET, BATCH),
        (Method::DELETE, BATCH),
        (Method::PUT, METADATA),
        (Method::PATCH, METADATA),
        (Method::GET, METADATA),
    ] {
        let request = root.request(method.clone(), target).header("content-type", "application/json");
        let answer = crate::support::Answer(request.body("{\"secrets\":{}}").send().await.unwrap());
        assert_eq!(answer.header("allow").as_deref(), Some("POST"), "{method} {target}");
        let message = answer.expect_error(405, "method_not_allowed").await;
        let is_write = matches!(method, Method::PUT | Method::PATCH);
        assert_eq!(message.contains("loop over PUT"), is_write, "{method} {target}: {message}");
    }
}

#[tokio::test]
async fn each_path_of_a_batch_has_its_own_outcome() {
    let server = TestServer::with_rules(&format!("{ROOT_MAY_ALL}{READER}")).await;
    let (root, reader) = (server.root(), server.client("sa:reader"));
    for n in 1..=3 {
        let body = format!(r#"{{"data": {{"z":{n},"a":{n}}}, "secret_type": "json", "metadata": {{"owner": "o"}}}}"#);
        let request = root.request(Method::PUT, "/v1/secrets/open/three").header("content-type", "application/json");
        assert!(request.body(body).send().await.unwrap().status().is_success());
    }
    for n in 1..=2 {
        root.store("open/two", json!({ "n": n })).await;
    }
    root.store("open/deleted", json!({})).await;
    root.delete("/v1/secrets/open/deleted").await;
    root.store("open/expired", json!({})).await;
    root.put("/v1/secrets/open/expired", json!({"data": {}, "options": {"expires_in": "1ms"}})).await;
    root.store("open/destroyed", json!({})).await;
    root.post("/v1/destroy/open/destroyed", json!({"versions": [1]})).await;
    root.store("closed/x", json!({"v": "canary"})).await;
    let mut tries = 0..1_000;
    while reader.get("/v1/secrets/open/expired").await.status() != 404 && tries.next().is_some() {}

    let paths = json!([
        "open/two",
        "open/none",
        "closed/x",
        "a//b",
        "open/three",
        "open/deleted",
        "open/two",
        "open/expired",
        "open/destroyed",
        "a//b",
        "open/*",
        "closed/none"
    ]);
    let before = evaluations(&server).await;
    let raw = reader.post(BATCH, json!({ "paths": paths })).await;
    assert!(raw.header("x-policy-generation").is_some() && raw.header("cache-control").unwrap() == "no-store");
    let request_id = raw.header("x-request-id").unwrap();
    let text = raw.0.text().await.unwrap();
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(keys(&answer), ["errors", "failed", "retrieved", "secrets"]);
    assert_eq!((&answer["retrieved"], &answer["failed"]), (&json!(2), &json!(8)));
    assert_eq!(answer["secrets"]["open/two"], json!({"data": {"n": 2}, "version": 2, "secret_type": "kv"}));
    assert!(text.find("open/two").unwrap() < text.find("open/three").unwrap(), "in the order of the request: {text}");
    assert!(text.contains(r#"{"z":3,"a":3}"#), "a value is told as it was written: {text}");
    let expected = json!({
        "a//b": "invalid_path",
        "closed/none": "access_denied",
        "closed/x": "access_denied",
        "open/*": "invalid_path",
        "open/deleted": "secret_not_found",
        "open/destroyed": "secret_not_found",
        "open/expired": "secret_not_found",
        "open/none": "secret_not_found",
    });
    assert_eq!(codes(&answer), expected);
    let denied = json!({"code": "access_denied", "message": "No policy permits read on this path"});
    assert_eq!((&answer["errors"]["closed/x"], &answer["errors"]["closed/none"]), (&denied, &denied));
    assert_eq!(evaluations(&server).await - before, 8, "one for each distinct path");
    // Ten distinct entries, ten events, in the order of the request; the path that is none is not repeated.
    let mut events = server.audit(&format!("&request_id={request_id}")).await;
    events.reverse();
    let told: Vec<_> = events.iter().map(|e| (e["secret_path"].as_str(), e["code"].as_str().unwrap())).collect();
    assert_eq!(
        told[..4],
        [
            (Some("open/two"), "ok"),
            (Some("open/none"), "secret_not_found"),
            (Some("closed/x"), "access_denied"),
            (None, "invalid_path"),
        ]
    );
    assert_eq!(events.len(), 10);
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event["batch"], json!({"index": index, "size": 10}));
        assert_eq!(event["action"], "read");
    }

    // Every path at one version, but those that are pinned; with what is known of them.
    for (options, secrets, errors) in [
        (json!({"version": 1}), json!({"open/three": 1, "open/two": 1}), json!({})),
        (json!({"version": 3}), json!({"open/three": 3}), json!({"open/two": "version_not_found"})),
        (json!({"version": 3, "versions": {"open/two": 2}}), json!({"open/three": 3, "open/two": 2}), json!({})),
        (json!({"versions": {"open/three": 2}}), json!({"open/three": 2, "open/two": 2}), json!({})),
        (json!({"versions": {"open/two": 9}}), json!({"open/three": 3}), json!({"open/two": "version_not_found"})),
        (json!({}), json!({"open/three": 3, "open/two": 2}), json!({})),
    ] {
        let body = json!({"paths": ["open/three", "open/two"], "options": options});
        let answer = post(&reader, BATCH, body).await;
        let version = |(path, secret): (&String, &Value)| (path.clone(), secret["version"].clone());
        let versions: Value = answer["secrets"].as_object().unwrap().iter().map(version).collect();
        assert_eq!((versions, codes(&answer)), (secrets, errors), "{options}");
    }
    let answer = post(&reader, BATCH, json!({"paths": ["open/destroyed"], "options": {"version": 1}})).await;
    assert_eq!(codes(&answer), json!({"open/destroyed": "version_not_found"}));
    let body = json!({"paths": ["open/three"], "options": {"include_metadata": true, "version": 2}});
    let answer = post(&reader, BATCH, body).await;
    let secret = &answer["secrets"]["open/three"];
    let whole = ["created_at", "data", "expires_at", "metadata", "secret_type", "updated_at", "version"];
    assert_eq!((keys(secret), &secret["metadata"]), (whole.to_vec(), &json!({"owner": "o"})));

    // Fast failure: the status of the first that fails, in the order of the request.
    for (paths, status, code, culprit) in [
        (["open/two", "closed/x", "open/none"], 403, "access_denied", "closed/x"),
        (["open/two", "open/none", "closed/x"], 404, "secret_not_found", "open/none"),
        (["open/two", "a//b", "closed/x"], 400, "invalid_path", "a//b"),
        (["open/deleted", "open/two", "closed/x"], 404, "secret_not_found", "open/deleted"),
    ] {
        let before = evaluations(&server).await;
        let answer = reader.post(BATCH, json!({"paths": paths, "options": {"fail_fast": true}})).await;
        let request_id = answer.header("x-request-id").unwrap();
        let (got, body) = answer.json().await;
        assert_eq!((got, &body["error"]["code"]), (status, &json!(code)), "{paths:?}");
        assert_eq!((&body["error"]["details"]["path"], keys(&body)), (&json!(culprit), vec!["error"]));
        let events = server.audit(&format!("&request_id={request_id}")).await;
        let place = paths.iter().position(|path| *path == culprit).unwrap();
        assert_eq!((events.len(), &events[0]["code"]), (place + 1, &json!(code)), "{paths:?}");
        assert!(events[1..].iter().all(|event| event["code"] == "withheld" && event["success"] == json!(false)));
        let unparsed = u64::from(code == "invalid_path");
        assert_eq!(evaluations(&server).await - before, place as u64 + 1 - unparsed, "{paths:?}");
    }
    let body = json!({"paths": ["open/three"], "options": {"fail_fast": true, "version": 9}});
    let (status, body) = reader.post(BATCH, body).await.json().await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("version_not_found")));
}

#[tokio::test]
async fn a_batch_costs_one_batch_and_a_read_for_each_secret() {
    let config = "[rate_limits]\nread = 5\nbatch_read = 5\nwrite = 0\nbatch_metadata = 2\naudit_query = 0\n".to_owned();
    let server = TestServer::start(Options { config, ..Options::default() }).await;
    let root = server.root();
    for path in ["a/1", "a/2", "a/3"] {
        root.store(path, json!({})).await;
    }
    // Each row: what is asked, the status, and what is left: batches, or the reads of which there were too few.
    let absent = ["n/1", "n/2", "n/3"];
    for (paths, status, left) in [
        (&["a/1", "a/1", "a/2", "n/1"][..], 200, "4"),
        (&["a/1", "a/2", "a/3", "n/1"], 429, "3"),
        (&absent, 200, "2"),
        (&["a/1", "a/2", "a//b"], 200, "1"),
        (&["a/1", "a/2"], 429, "1"),
        (&["a/1"], 429, "0"),
    ] {
        let before = evaluations(&server).await;
        let answer = root.post(BATCH, json!({ "paths": paths })).await;
        assert_eq!(answer.header("x-ratelimit-limit").as_deref(), Some("5"));
        assert_eq!(answer.header("x-ratelimit-remaining").as_deref(), Some(left), "{paths:?}");
        let retry_after = answer.header("retry-after").map(|seconds| seconds.parse::<u64>().unwrap());
        assert_eq!(retry_after.is_some_and(|seconds| (1..=60).contains(&seconds)), status == 429);
        if status == 429 {
            let message = answer.expect_error(429, "rate_limited").await;
            let category = if paths.len() == 1 { "batch_read" } else { "read" };
            assert!(message.contains(&format!("`{category}`")), "{message}");
            assert_eq!(evaluations(&server).await, before, "nothing is evaluated");
        } else {
            assert_eq!(answer.status(), 200, "{paths:?}");
        }
    }
    // Of five reads four were secrets returned: one is left, whatever the batches drew in between.
    let answer = root.get("/v1/secrets/a/1").await;
    assert_eq!((answer.status(), answer.header("x-ratelimit-remaining").as_deref()), (200, Some("0")));
    let reset: i64 = answer.header("x-ratelimit-reset").unwrap().parse().unwrap();
    assert!(reset > 1_600_000_000, "seconds since the epoch: {reset}");
    root.get("/v1/secrets/a/1").await.expect_error(429, "rate_limited").await;
    for status in [200, 200, 429] {
        assert_eq!(root.post(METADATA, json!({"paths": ["a/1", "a/2", "a/3"]})).await.status(), status);
    }
    assert_eq!(server.client("user:other").get("/v1/secrets/a/1").await.status(), 403, "others have their own");
}

#[tokio::test]
async fn batch_metadata_pages_and_shows_what_may_be_listed() {
    let server = TestServer::with_rules(&format!("{ROOT_MAY_ALL}{READER}")).await;
    let root = server.root();
    let token = server.token_with("sa:reader", "default", &[Scope::SecretsList], &[]);
    let reader = server.client_with_token(token);
    for path in ["closed/x", "open/a", "open/b", "open/b/c", "open/c", "open/d/ssl/cert", "zz/last"] {
        let metadata = json!({"owner": "o", "tags": [path], "custom": {"k": "v"}, "description": "d"});
        let body = json!({"data": {"v": "canary"}, "secret_type": "json", "metadata": metadata});
        root.put(&format!("/v1/secrets/{path}"), body).await;
    }
    reader.get("/v1/secrets/open/a").await.expect_error(403, "insufficient_scope").await;
    for (paths, expand, found, errors) in [
        (
            json!(["open/a", "closed/x", "closed/none", "open/none"]),
            false,
            vec!["open/a"],
            json!({"closed/none": "access_denied", "closed/x": "access_denied", "open/none": "secret_not_found"}),
        ),
        (json!(["open/*"]), false, vec![], json!({"open/*": "invalid_path"})),
        (json!(["open//x", "open/a"]), true, vec!["open/a"], json!({"open//x": "invalid_path"})),
        (json!(["open/*"]), true, vec!["open/a", "open/b", "open/c"], json!({})),
        (json!(["**"]), true, vec!["open/a", "open/b", "open/b/c", "open/c", "open/d/ssl/cert"], json!({})),
        (json!(["closed/*", "zz/**"]), true, vec![], json!({})),
        (
            json!(["open/?", "open/b/**", "**/ssl/*", "open/a", "open/a"]),
            true,
            vec!["open/a", "open/b", "open/b/c", "open/c", "open/d/ssl/cert"],
            json!({}),
        ),
        (json!(["open/*", "closed/x"]), true, vec!["open/a", "open/b", "open/c"], json!({"closed/x": "access_denied"})),
    ] {
        let answer = post(&reader, METADATA, json!({"paths": paths, "expand_wildcards": expand})).await;
        assert_eq!(
            (keys(&answer["metadata"]), codes(&answer)),
            (found, if errors == json!({}) { Value::Null } else { errors }),
            "{paths}"
        );
        assert_eq!((&answer["cursor"], &answer["has_more"]), (&Value::Null, &json!(false)));
        assert!(!answer.to_string().contains("canary"));
    }
    let answer = post(&reader, METADATA, json!({"paths": ["open/a"]})).await;
    let entry = &answer["metadata"]["open/a"];
    let whole = ["created_at", "custom", "description", "owner", "secret_type", "tags", "updated_at", "version"];
    assert_eq!((keys(entry), &entry["tags"]), (whole.to_vec(), &json!(["open/a"])));

    for bad in ["open/a**", "**a/b", "open//*", "*\u{e4}", "open/[ab]*"] {
        let body = json!({"paths": ["open/a", bad], "expand_wildcards": true});
        reader.post(METADATA, body).await.expect_error(400, "invalid_glob").await;
    }
    for (limit, cursor, code) in
        [(0, None, "invalid_request"), (1_001, None, "invalid_request"), (5, Some("AAAA"), "invalid_cursor")]
    {
        let body =
            json!({"paths": ["open/*"], "expand_wildcards": true, "options": {"limit": limit, "cursor": cursor}});
        reader.post(METADATA, body).await.expect_error(400, code).await;
    }

    // Page by page, names and patterns mixed: everything once, never more than asked for.
    let paths = json!(["open/c", "open/none", "zz/last", "open/b", "open/**"]);
    let expected = ["open/a", "open/b", "open/b/c", "open/c", "open/d/ssl/cert"];
    for limit in 1..=6 {
        let (mut found, mut errors, mut cursor) = (Vec::new(), Vec::new(), Value::Null);
        loop {
            let options = json!({"limit": limit, "cursor": cursor});
            let body = json!({"paths": paths, "expand_wildcards": true, "options": options});
            let page = post(&reader, METADATA, body).await;
            let names = keys(&page["metadata"]);
            assert!(names.len() <= limit, "limit {limit}: {page}");
            found.extend(names.iter().map(|name| (*name).to_owned()));
            errors.extend(page["errors"].as_object().into_iter().flatten().map(|(name, _)| name.clone()));
            cursor = page["cursor"].clone();
            assert_eq!(page["has_more"], json!(!cursor.is_null()));
            if cursor.is_null() {
                break;
            }
        }
        found.sort();
        errors.sort();
        assert_eq!(
            (found, errors),
            (expected.map(String::from).to_vec(), vec!["open/none".into(), "zz/last".into()]),
            "limit {limit}"
        );
    }
    // A cursor serves its own question.
    let first =
        post(&reader, METADATA, json!({"paths": ["open/**"], "expand_wildcards": true, "options": {"limit": 1}})).await;
    let body = json!({"paths": ["open/*"], "expand_wildcards": true, "options": {"cursor": first["cursor"]}});
    reader.post(METADATA, body).await.expect_error(400, "invalid_cursor").await;
}

/// A second connection to a stopped server's database.
async fn database(server: &TestServer) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(server.data_dir.join("portcullis.db"));
    SqliteConnection::connect_with(&options).await.unwrap()
}

#[tokio::test]
async fn long_listings_come_in_full_pages_behind_any_number_of_hidden_entries() {
    let mut server = TestServer::with_rules(&format!("{ROOT_MAY_ALL}{READER}")).await;
    server.root().store("open/0", json!({})).await;
    server.stop().await;
    let mut rows = database(&server).await;
    // 600 that are hidden, in two groups around 1,200 that are not.
    sqlx::query(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1800)
         INSERT INTO secrets SELECT tenant, CASE WHEN i % 6 = 0 THEN 'closed/' WHEN i % 6 = 1 THEN 'zz/' ELSE 'open/' END
                || printf('%04d', i), latest, secret_type, metadata, created_at, created_by, updated_at, updated_by,
                expires_at, deleted_at, recoverable_until, max_versions FROM n, secrets",
    )
    .execute(&mut rows)
    .await
    .unwrap();
    rows.close().await.unwrap();
    server.restart().await;
    let reader = server.client("sa:reader");
    let (_, first) = reader.get("/v1/secrets?limit=1000").await.json().await;
    assert_eq!(first["secrets"].as_array().unwrap().len(), 1_000);
    let next = format!("/v1/secrets?limit=1000&cursor={}", first["cursor"].as_str().unwrap());
    let (_, second) = reader.get(&next).await.json().await;
    assert_eq!((second["secrets"].as_array().unwrap().len(), &second["has_more"]), (201, &json!(false)));

    let body = |cursor: &Value| json!({"paths": ["**"], "expand_wildcards": true, "options": {"cursor": cursor}});
    let first = post(&reader, METADATA, body(&Value::Null)).await;
    assert_eq!(keys(&first["metadata"]).len(), 1_000, "1,000 at most");
    let second = post(&reader, METADATA, body(&first["cursor"])).await;
    assert_eq!((keys(&second["metadata"]).len(), &second["has_more"]), (201, &json!(false)));
}

#[tokio::test]
async fn a_record_that_was_tampered_with_is_never_a_value() {
    let mut server = TestServer::new().await;
    for path in ["app/a", "app/b", "app/c", "app/sound"] {
        server.root().store(path, json!({"v": format!("canary-{path}")})).await;
    }
    server.stop().await;
    // Two records change places, whole; one loses a bit.
    let mut rows = database(&server).await;
    for change in [
        "UPDATE versions SET path = 'tmp' WHERE path = 'app/a'",
        "UPDATE versions SET path = 'app/a' WHERE path = 'app/b'",
        "UPDATE versions SET path = 'app/b' WHERE path = 'tmp'",
        "UPDATE versions SET ciphertext = CAST(substr(ciphertext, 2) || x'00' AS BLOB) WHERE path = 'app/c'",
    ] {
        assert_eq!(sqlx::query(change).execute(&mut rows).await.unwrap().rows_affected(), 1);
    }
    rows.close().await.unwrap();
    server.restart().await;
    let root = server.root();
    assert_eq!(metric(&server, "portcullis_unreadable_records_total").await, 0);
    let answer = root.post(BATCH, json!({"paths": ["app/a", "app/b", "app/c", "app/sound"]})).await;
    let request_id = answer.header("x-request-id").unwrap();
    let (status, answer) = answer.json().await;
    assert_eq!(status, 200);
    assert_eq!(codes(&answer), json!({"app/a": "unreadable", "app/b": "unreadable", "app/c": "unreadable"}));
    assert_eq!(answer["secrets"]["app/sound"]["data"], json!({"v": "canary-app/sound"}));
    assert!(!["canary-app/a", "canary-app/b", "canary-app/c"].iter().any(|value| answer.to_string().contains(value)));
    assert_eq!(metric(&server, "portcullis_unreadable_records_total").await, 3);
    let events = server.audit(&format!("&request_id={request_id}&success=false")).await;
    assert!(events.len() == 3 && events.iter().all(|event| event["code"] == "unreadable"));

    let body = json!({"paths": ["app/sound", "app/a"], "options": {"fail_fast": true}});
    for answer in [root.get("/v1/secrets/app/a").await, root.post(BATCH, body).await] {
        assert_eq!(answer.header("etag"), None);
        let message = answer.expect_error(500, "unreadable").await;
        assert_eq!(message, "The vault failed; its log says how");
    }
    root.post("/v1/rollback/app/a", json!({"version": 1})).await.expect_error(500, "unreadable").await;
    // What can be known without the value still can, and a new version mends it.
    assert_eq!(root.get("/v1/metadata/app/a").await.status(), 200);
    assert_eq!(root.store("app/a", json!({"v": "new"})).await, 2);
    assert_eq!(root.get("/v1/secrets/app/a").await.status(), 200);
}
