//! The API's table of secrets, line by line.

use portcullis::domain::Timestamp;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Client, Options, READER, ROOT_MAY_ALL, TestServer, keys};

fn micros(instant: &Value) -> i64 {
    instant.as_str().unwrap().parse::<Timestamp>().unwrap().micros()
}

/// Numbers and states, as the list of versions has them.
async fn states(client: &Client, path: &str) -> Vec<(i64, String)> {
    let (status, body) = client.get(&format!("/v1/versions/{path}")).await.json().await;
    assert_eq!(status, 200, "{body}");
    let state = |version: &Value| (version["version"].as_i64().unwrap(), version["state"].as_str().unwrap().to_owned());
    body["versions"].as_array().unwrap().iter().map(state).collect()
}

fn paths(page: &Value) -> Vec<&str> {
    page["secrets"].as_array().unwrap().iter().map(|secret| secret["path"].as_str().unwrap()).collect()
}

/// Asks until the answer has this status: what expires does so by the server's own clock.
async fn until(client: &Client, method: Method, target: &str, body: &Value, status: u16) -> Value {
    for _ in 0..1_000 {
        let request = client.request(method.clone(), target).header("content-type", "application/json");
        let answer = request.body(body.to_string()).send().await.unwrap();
        if answer.status().as_u16() == status {
            return serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        }
    }
    panic!("{method} {target} never answered {status}");
}

#[tokio::test]
async fn a_put_is_always_a_new_version() {
    let server = TestServer::new().await;
    let root = server.root();
    let target = "/v1/secrets/app/db";
    let metadata = json!({"description": "d", "tags": ["t"], "owner": "o", "custom": {"k": "v"}});
    let body = json!({"data": {"n": 1}, "secret_type": "api_key", "metadata": metadata});
    let (status, first) = root.put(target, body).await.json().await;
    assert_eq!(status, 201);
    assert_eq!(keys(&first), ["created_at", "expires_at", "path", "secret_type", "version"]);
    assert_eq!((&first["path"], &first["version"]), (&json!("app/db"), &json!(1)));
    assert_eq!((&first["secret_type"], &first["expires_at"]), (&json!("api_key"), &Value::Null));

    // What is not said stays as it was.
    let (status, second) =
        root.put(target, json!({"data": {"n": 2, "deep": {"b": [1.50], "a": null}}})).await.json().await;
    assert_eq!((status, &second["version"], &second["secret_type"]), (200, &json!(2), &json!("api_key")));
    let (status, read) = root.get(target).await.json().await;
    let whole = [
        "created_at",
        "created_by",
        "data",
        "expires_at",
        "metadata",
        "path",
        "secret_type",
        "updated_at",
        "updated_by",
        "version",
    ];
    assert_eq!((status, keys(&read)), (200, whole.to_vec()));
    assert_eq!((&read["version"], &read["metadata"]), (&json!(2), &metadata));
    assert_eq!(read["data"], json!({"n": 2, "deep": {"b": [1.5], "a": null}}));
    assert_eq!((&read["created_at"], &read["updated_at"]), (&first["created_at"], &second["created_at"]));
    assert_eq!((&read["created_by"], &read["updated_by"]), (&json!("user:root"), &json!("user:root")));
    assert_eq!(root.get(&format!("{target}?version=1")).await.json().await.1["data"], json!({"n": 1}));
    assert_eq!(states(&root, "app/db").await, [(2, "active".to_owned()), (1, "active".to_owned())]);
    let (_, versions) = root.get("/v1/versions/app/db").await.json().await;
    assert_eq!(versions["versions"][1]["created_at"], first["created_at"]);
    assert_eq!(versions["versions"][1]["created_by"], "user:root");

    for (target, status, code) in [
        ("/v1/secrets/app/none", 404, "secret_not_found"),
        ("/v1/secrets/app/none?version=1", 404, "secret_not_found"),
        ("/v1/secrets/app/db?version=3", 404, "version_not_found"),
        ("/v1/secrets/app/db?version=0", 400, "invalid_request"),
        ("/v1/secrets/app/db?version=latest", 400, "invalid_request"),
        ("/v1/secrets/app/db?versoin=1", 400, "invalid_request"),
        ("/v1/versions/app/none", 404, "secret_not_found"),
        ("/v1/metadata/app/none", 404, "secret_not_found"),
        ("/v1/secrets/", 400, "invalid_path"),
        ("/v1/secrets/app/db/", 400, "invalid_path"),
        ("/v1/secrets/app//db", 400, "invalid_path"),
        ("/v1/secrets/app%2Fdb", 400, "invalid_path"),
        ("/v1/secrets/app/%64b", 400, "invalid_path"),
        ("/v1/secrets/app/.db", 400, "invalid_path"),
        ("/v1/secrets/a/b/c/d/e/f/g/h/i/j/k", 400, "invalid_path"),
    ] {
        root.get(target).await.expect_error(status, code).await;
    }
    assert_eq!(root.get("/v1/secrets/App/db").await.status(), 404, "paths are never folded");

    // expected_version: the newest version, 0 where there must be none.
    for (path, expected, outcome) in [
        ("app/db", 2, Ok((200, 3))),
        ("app/db", 2, Err(3)),
        ("app/db", 0, Err(3)),
        ("app/db", 4, Err(3)),
        ("app/new", 1, Err(0)),
        ("app/new", 0, Ok((201, 1))),
        ("app/new", 0, Err(1)),
    ] {
        let body = json!({"data": {}, "options": {"expected_version": expected}});
        let (status, body) = root.put(&format!("/v1/secrets/{path}"), body).await.json().await;
        match outcome {
            Ok((created, version)) => assert_eq!((status, &body["version"]), (created, &json!(version)), "{body}"),
            Err(newest) => {
                assert_eq!((status, &body["error"]["code"]), (409, &json!("version_conflict")));
                assert_eq!(body["error"]["details"], json!({"current_version": newest}));
            }
        }
    }
    assert_eq!(states(&root, "app/db").await.len(), 3, "a conflict writes nothing");
    assert_eq!(states(&root, "app/new").await.len(), 1);
}

#[tokio::test]
async fn what_is_deleted_can_be_restored_and_what_is_destroyed_cannot() {
    let server = TestServer::new().await;
    let root = server.root();
    let target = "/v1/secrets/app/db";
    for n in 1..=3 {
        root.store("app/db", json!({ "n": n })).await;
    }
    let (status, deleted) = root.delete(target).await.json().await;
    assert_eq!((status, keys(&deleted)), (200, vec!["deleted_at", "path", "recoverable_until"]));
    let month = 30 * 86_400 * 1_000_000;
    assert_eq!(micros(&deleted["recoverable_until"]) - micros(&deleted["deleted_at"]), month);

    // Deleted, it is absent to everyone but a restore, and its path is taken.
    let one = json!({"version": 1});
    for (method, target, body, status, code) in [
        (Method::GET, target, json!({}), 404, "secret_not_found"),
        (Method::GET, "/v1/secrets/app/db?version=1", json!({}), 404, "secret_not_found"),
        (Method::GET, "/v1/metadata/app/db", json!({}), 404, "secret_not_found"),
        (Method::GET, "/v1/versions/app/db", json!({}), 404, "secret_not_found"),
        (Method::DELETE, target, json!({}), 404, "secret_not_found"),
        (Method::PATCH, "/v1/metadata/app/db", json!({"owner": "x"}), 404, "secret_not_found"),
        (Method::POST, "/v1/rollback/app/db", one.clone(), 404, "secret_not_found"),
        (Method::POST, "/v1/destroy/app/db", json!({"versions": [1]}), 404, "secret_not_found"),
        (Method::PUT, target, json!({"data": {}}), 409, "secret_exists"),
        (Method::PUT, target, json!({"data": {}, "options": {"expected_version": 0}}), 409, "secret_exists"),
    ] {
        let (got, answer) = send(&root, &method, target, &body).await;
        assert_eq!((got, answer["error"]["code"].as_str()), (status, Some(code)), "{method} {target}");
    }
    assert_eq!(root.get("/v1/secrets").await.json().await.1["secrets"], json!([]));

    let (status, restored) = root.post("/v1/restore/app/db", json!({})).await.json().await;
    assert_eq!((status, &restored["version"], &restored["path"]), (200, &json!(3), &json!("app/db")));
    root.post("/v1/restore/app/db", json!({})).await.expect_error(404, "secret_not_found").await;
    assert_eq!(root.get(target).await.json().await.1["data"], json!({"n": 3}));
    assert_eq!(root.get("/v1/secrets/app/db?version=1").await.json().await.1["data"], json!({"n": 1}));

    // A rollback is a new version with the old one's value and type.
    let body = json!({"data": {"n": 4}, "secret_type": "json"});
    root.put(target, body).await;
    let (status, rolled) = root.post("/v1/rollback/app/db", one).await.json().await;
    assert_eq!((status, &rolled["version"], &rolled["secret_type"]), (200, &json!(5), &json!("kv")));
    assert_eq!(root.get(target).await.json().await.1["data"], json!({"n": 1}));
    let (_, fourth) = root.get("/v1/secrets/app/db?version=4").await.json().await;
    assert_eq!((&fourth["secret_type"], &fourth["data"]), (&json!("json"), &json!({"n": 4})));

    // A destroyed version keeps its number and loses its value.
    let (status, gone) = root.post("/v1/destroy/app/db", json!({"versions": [3, 1, 3]})).await.json().await;
    assert_eq!((status, gone), (200, json!({"path": "app/db", "destroyed": [1, 3]})));
    let expected = [(5, "active"), (4, "active"), (3, "destroyed"), (2, "active"), (1, "destroyed")];
    assert_eq!(states(&root, "app/db").await, expected.map(|(number, state)| (number, state.to_owned())));
    root.get("/v1/secrets/app/db?version=1").await.expect_error(404, "version_not_found").await;
    for (target, body, status, code) in [
        ("/v1/rollback/app/db", json!({"version": 1}), 404, "version_not_found"),
        ("/v1/rollback/app/db", json!({"version": 9}), 404, "version_not_found"),
        ("/v1/rollback/app/db", json!({"version": 0}), 400, "invalid_request"),
        ("/v1/rollback/app/db", json!({}), 400, "invalid_request"),
        ("/v1/rollback/app/none", json!({"version": 1}), 404, "secret_not_found"),
        ("/v1/destroy/app/db", json!({"versions": [2, 9]}), 404, "version_not_found"),
        ("/v1/destroy/app/db", json!({"versions": []}), 400, "invalid_request"),
        ("/v1/destroy/app/none", json!({"versions": [1]}), 404, "secret_not_found"),
        ("/v1/restore/app/none", json!({}), 404, "secret_not_found"),
    ] {
        root.post(target, body).await.expect_error(status, code).await;
    }
    assert_eq!(states(&root, "app/db").await[3], (2, "active".to_owned()), "all the versions named, or none");
    root.post("/v1/destroy/app/db", json!({"versions": [5]})).await;
    root.get(target).await.expect_error(404, "secret_not_found").await;
    assert_eq!(root.store("app/db", json!({"n": 6})).await, 6);

    // For good: deleted before or not, and the path begins anew.
    for deleted_before in [true, false] {
        if deleted_before {
            assert_eq!(root.delete(target).await.status(), 200);
        }
        let answer = root.delete(&format!("{target}?permanent=true")).await;
        assert_eq!((answer.status(), answer.0.text().await.unwrap()), (204, String::new()));
        root.get(target).await.expect_error(404, "secret_not_found").await;
        root.post("/v1/restore/app/db", json!({})).await.expect_error(404, "secret_not_found").await;
        root.delete(&format!("{target}?permanent=true")).await.expect_error(404, "secret_not_found").await;
        assert_eq!(root.put(target, json!({"data": {"n": 1}})).await.status(), 201);
    }
    root.delete(&format!("{target}?permanent=1")).await.expect_error(400, "invalid_request").await;
}

async fn send(client: &Client, method: &Method, target: &str, body: &Value) -> (u16, Value) {
    let request = client.request(method.clone(), target).header("content-type", "application/json");
    let answer = request.body(body.to_string()).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
}

#[tokio::test]
async fn versions_end_and_old_ones_are_pruned() {
    let config = "[secrets]\nrecoverable_for = \"1ms\"\n".to_owned();
    let server = TestServer::start(Options { config, ..Options::default() }).await;
    let root = server.root();
    let target = "/v1/secrets/app/token";
    let body = json!({"data": {"n": 1}, "options": {"expires_in": "90d"}});
    let (_, written) = root.put(target, body).await.json().await;
    assert_eq!(micros(&written["expires_at"]) - micros(&written["created_at"]), 90 * 86_400 * 1_000_000);
    assert_eq!(root.get(target).await.json().await.1["expires_at"], written["expires_at"]);

    root.put(target, json!({"data": {"n": 2}, "options": {"expires_in": "1ms"}})).await;
    until(&root, Method::GET, target, &json!({}), 404).await;
    root.get("/v1/metadata/app/token").await.expect_error(404, "secret_not_found").await;
    root.get("/v1/secrets/app/token?version=2").await.expect_error(404, "version_not_found").await;
    assert_eq!(root.get("/v1/secrets").await.json().await.1["secrets"], json!([]));
    assert_eq!(states(&root, "app/token").await, [(2, "expired".to_owned()), (1, "active".to_owned())]);
    assert_eq!(root.get("/v1/secrets/app/token?version=1").await.json().await.1["data"], json!({"n": 1}));
    // An end is a version's own: the next one has none unless it is given one.
    let (status, third) = root.put(target, json!({"data": {"n": 3}})).await.json().await;
    assert_eq!((status, &third["version"], &third["expires_at"]), (200, &json!(3), &Value::Null));
    assert_eq!(root.get(target).await.json().await.1["data"], json!({"n": 3}));

    for bad in ["", "15", "0s", "1w", "-1s", "1.5h", " 1h", "36501d", "99999999999999999999d"] {
        let body = json!({"data": {}, "options": {"expires_in": bad}});
        root.put(target, body).await.expect_error(400, "invalid_duration").await;
    }

    // Ten versions are kept where nobody said; what is said is kept in mind.
    for _ in 4..=12 {
        root.store("app/token", json!({})).await;
    }
    let kept = |states: Vec<(i64, String)>| states.into_iter().map(|(number, _)| number).collect::<Vec<_>>();
    assert_eq!(kept(states(&root, "app/token").await), (3..=12).rev().collect::<Vec<_>>());
    root.put(target, json!({"data": {}, "options": {"max_versions": 2}})).await;
    assert_eq!(kept(states(&root, "app/token").await), [13, 12]);
    root.store("app/token", json!({})).await;
    assert_eq!(kept(states(&root, "app/token").await), [14, 13]);
    root.get("/v1/secrets/app/token?version=12").await.expect_error(404, "version_not_found").await;

    // Once a deleted secret cannot be restored any more, its path is free.
    assert_eq!(root.delete(target).await.status(), 200);
    let written = until(&root, Method::PUT, target, &json!({"data": {"n": 1}}), 201).await;
    assert_eq!(written["version"], 1);
    assert_eq!(kept(states(&root, "app/token").await), [1]);
}

#[tokio::test]
async fn metadata_is_patched_by_the_rules_of_a_merge_patch() {
    let server = TestServer::new().await;
    let root = server.root();
    let metadata = json!({"description": "d", "tags": ["a", "b"], "owner": "o", "custom": {"k": "v", "l": "w"}});
    root.put("/v1/secrets/app/db", json!({"data": {"n": "canary"}, "metadata": metadata})).await;
    let target = "/v1/metadata/app/db";
    let (status, before) = root.get(target).await.json().await;
    assert_eq!((status, &before["metadata"], before.get("data")), (200, &metadata, None));
    assert!(!before.to_string().contains("canary"));
    for (patch, metadata) in [
        (json!({}), metadata.clone()),
        (json!({"owner": null}), json!({"description": "d", "tags": ["a", "b"], "custom": {"k": "v", "l": "w"}})),
        (json!({"tags": ["c"]}), json!({"description": "d", "tags": ["c"], "custom": {"k": "v", "l": "w"}})),
        (
            json!({"custom": {"k": null, "m": "x"}}),
            json!({"description": "d", "tags": ["c"], "custom": {"l": "w", "m": "x"}}),
        ),
        (json!({"custom": null, "owner": "p"}), json!({"description": "d", "tags": ["c"], "owner": "p"})),
        (json!({"tags": null, "description": null}), json!({"owner": "p"})),
    ] {
        let (status, after) = root.patch(target, patch.clone()).await.json().await;
        assert_eq!((status, &after["metadata"]), (200, &metadata), "{patch}");
        assert_eq!(root.get(target).await.json().await.1["metadata"], metadata);
    }
    assert_eq!(states(&root, "app/db").await.len(), 1, "a patch is no new version");
    assert!(micros(&root.get(target).await.json().await.1["updated_at"]) > micros(&before["updated_at"]));
    root.patch("/v1/metadata/app/none", json!({"owner": "x"})).await.expect_error(404, "secret_not_found").await;
    for (patch, named) in [(json!({"ower": "x"}), "ower"), (json!({"tags": "x"}), "tags"), (json!([]), "object")] {
        assert!(root.patch(target, patch).await.expect_error(400, "invalid_request").await.contains(named));
    }

    // Each limit by its field's name, in a PUT and in a PATCH.
    let many = |count: usize| (0..count).map(|n| (format!("k{n}"), json!("v"))).collect::<serde_json::Map<_, _>>();
    for (metadata, field) in [
        (json!({"description": "x".repeat(1_025)}), "metadata.description"),
        (json!({"tags": vec!["t"; 51]}), "metadata.tags"),
        (json!({"tags": [""]}), "metadata.tags"),
        (json!({"tags": ["t".repeat(129)]}), "metadata.tags"),
        (json!({"owner": "o".repeat(257)}), "metadata.owner"),
        (json!({"custom": many(51)}), "metadata.custom"),
        (json!({"custom": {"k": "v".repeat(1_025)}}), "metadata.custom"),
    ] {
        let put = root.put("/v1/secrets/app/db", json!({"data": {}, "metadata": metadata})).await.json().await;
        let patched = root.patch(target, metadata).await.json().await;
        for (status, body) in [put, patched] {
            assert_eq!((status, &body["error"]["code"]), (422, &json!("validation_error")));
            assert_eq!(keys(&body["error"]["details"]["fields"]), [field]);
        }
    }
    // A patch that is within the limits can still lead beyond them.
    assert_eq!(root.patch(target, json!({"custom": many(50)})).await.status(), 200);
    let (status, body) = root.patch(target, json!({"custom": {"one-more": "v"}})).await.json().await;
    assert_eq!((status, &body["error"]["code"]), (422, &json!("validation_error")));
    assert_eq!(keys(&body["error"]["details"]["fields"]), ["metadata.custom"]);
    assert_eq!(root.get(target).await.json().await.1["metadata"]["custom"], json!(many(50)));
}

#[tokio::test]
async fn a_list_shows_what_the_caller_may_list_and_nothing_else() {
    let server = TestServer::with_rules(&format!("{ROOT_MAY_ALL}{READER}")).await;
    let root = server.root();
    for path in ["open/c", "closed/x", "open/a", "open/b/c", "open/b", "open-hidden", "zz/last"] {
        let body = json!({"data": {"v": "canary"}, "secret_type": "json", "metadata": {"tags": [path]}});
        root.put(&format!("/v1/secrets/{path}"), body).await;
    }
    let (status, all) = root.get("/v1/secrets").await.json().await;
    assert_eq!((status, &all["cursor"], &all["has_more"]), (200, &Value::Null, &json!(false)));
    // In the order of the bytes: `-` is before `/`.
    assert_eq!(paths(&all), ["closed/x", "open-hidden", "open/a", "open/b", "open/b/c", "open/c", "zz/last"]);
    let entry = &all["secrets"][2];
    assert_eq!(keys(entry), ["path", "secret_type", "tags", "updated_at", "version"]);
    assert_eq!((&entry["version"], &entry["tags"]), (&json!(1), &json!(["open/a"])));
    assert!(!all.to_string().contains("canary"));
    for (prefix, expected) in [
        ("open/b", vec!["open/b", "open/b/c"]),
        ("open/b/", vec!["open/b/c"]),
        ("ope", vec!["open-hidden", "open/a", "open/b", "open/b/c", "open/c"]),
        ("none", vec![]),
    ] {
        let (_, page) = root.get(&format!("/v1/secrets?prefix={prefix}")).await.json().await;
        assert_eq!(paths(&page), expected, "{prefix}");
    }

    // Pages, with hidden entries before, between and after: none of them shows, in a page or in a cursor.
    let reader = server.client("sa:reader");
    for limit in 1..=5 {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let (status, page) = reader.get(&format!("/v1/secrets?limit={limit}{cursor}")).await.json().await;
            assert_eq!(status, 200, "{page}");
            let shown = paths(&page);
            assert!(shown.len() <= limit);
            assert_eq!(page["has_more"].as_bool().unwrap(), page["cursor"].is_string());
            assert!(!shown.is_empty() || page["cursor"].is_null(), "an empty page is the last");
            seen.extend(shown.iter().map(|path| (*path).to_owned()));
            let Some(next) = page["cursor"].as_str() else { break };
            assert!(!reveals(next, "closed") && !reveals(next, "zz/last") && !reveals(next, "open"));
            cursor = format!("&cursor={next}");
        }
        assert_eq!(seen, ["open/a", "open/b", "open/b/c", "open/c"], "limit {limit}");
    }

    // A cursor serves the caller, the list and the prefix that it was made for.
    let cursor_of = |page: &Value| page["cursor"].as_str().unwrap().to_owned();
    let mine = cursor_of(&reader.get("/v1/secrets?limit=1").await.json().await.1);
    let of_root = cursor_of(&root.get("/v1/secrets?limit=1").await.json().await.1);
    let prefixed = cursor_of(&reader.get("/v1/secrets?limit=1&prefix=open").await.json().await.1);
    let flipped = mine.replacen(&mine[9..10], if &mine[9..10] == "A" { "B" } else { "A" }, 1);
    for cursor in [of_root.as_str(), &prefixed, &flipped, &mine[..mine.len() - 4], "AAAA", "open%2Fa", ""] {
        let refused = reader.get(&format!("/v1/secrets?cursor={cursor}")).await;
        refused.expect_error(400, "invalid_cursor").await;
    }
    assert_eq!(reader.get(&format!("/v1/secrets?cursor={mine}&limit=3")).await.status(), 200, "any page size will do");
    for (query, code) in [
        ("limit=0", "invalid_request"),
        ("limit=1001", "invalid_request"),
        ("limit=x", "invalid_request"),
        ("prefx=a", "invalid_request"),
        ("prefix=a%20b", "invalid_path"),
    ] {
        root.get(&format!("/v1/secrets?{query}")).await.expect_error(400, code).await;
    }
}

/// Whether a text is found in a cursor, as it is or decoded.
fn reveals(cursor: &str, text: &str) -> bool {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    let decoded = BASE64_URL_SAFE_NO_PAD.decode(cursor).unwrap();
    cursor.contains(text) || String::from_utf8_lossy(&decoded).contains(text)
}

#[tokio::test]
async fn who_has_a_value_already_gets_304_and_the_audit_knows() {
    let server = TestServer::new().await;
    let root = server.root();
    root.store("app/db", json!({"n": 1})).await;
    let target = "/v1/secrets/app/db";
    let tag = root.get(target).await.header("etag").unwrap();
    let conditional = |tag: String| {
        let request = root.request(Method::GET, target).header("if-none-match", tag);
        async move { request.send().await.unwrap() }
    };
    for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
        let answer = conditional(known.clone()).await;
        assert_eq!(answer.status(), StatusCode::NOT_MODIFIED, "{known}");
        assert_eq!(answer.headers()["etag"], tag.as_str());
        let request_id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        assert_eq!(answer.text().await.unwrap(), "");
        let events = server.audit(&format!("&request_id={request_id}")).await;
        assert_eq!((events.len(), &events[0]["code"]), (1, &json!("not_modified")));
        assert_eq!((&events[0]["success"], &events[0]["version"]), (&json!(true), &json!(1)));
    }
    assert_eq!(conditional("\"other\"".to_owned()).await.status(), StatusCode::OK);
    assert_eq!(conditional(tag.trim_matches('"').to_owned()).await.status(), StatusCode::OK, "a tag has quotes");
    // Whatever the answer shows changes the tag: the value, and the metadata.
    root.patch("/v1/metadata/app/db", json!({"owner": "o"})).await;
    let patched = conditional(tag.clone()).await;
    assert_eq!(patched.status(), StatusCode::OK);
    let patched = patched.headers()["etag"].to_str().unwrap().to_owned();
    root.store("app/db", json!({"n": 2})).await;
    assert_eq!(conditional(patched).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_denial_is_the_same_whether_or_not_there_is_a_secret() {
    let server = TestServer::with_rules(&format!("{ROOT_MAY_ALL}{READER}")).await;
    let (root, reader) = (server.root(), server.client("sa:reader"));
    root.store("closed/present", json!({"v": "canary"})).await;
    root.store("closed/deleted", json!({"v": "canary"})).await;
    root.delete("/v1/secrets/closed/deleted").await;
    for (method, kind, query, body) in [
        (Method::GET, "secrets", "", json!({})),
        (Method::GET, "secrets", "?version=1", json!({})),
        (Method::GET, "secrets", "?version=9", json!({})),
        (Method::PUT, "secrets", "", json!({"data": {}})),
        (Method::PUT, "secrets", "", json!({"data": {}, "options": {"expected_version": 7}})),
        (Method::DELETE, "secrets", "", json!({})),
        (Method::DELETE, "secrets", "?permanent=true", json!({})),
        (Method::GET, "metadata", "", json!({})),
        (Method::PATCH, "metadata", "", json!({"owner": "o"})),
        (Method::GET, "versions", "", json!({})),
        (Method::POST, "restore", "", json!({})),
        (Method::POST, "rollback", "", json!({"version": 1})),
        (Method::POST, "rollback", "", json!({"version": 9})),
        (Method::POST, "destroy", "", json!({"versions": [1]})),
    ] {
        let mut answers = Vec::new();
        for name in ["present", "deleted", "absent"] {
            let target = format!("/v1/{kind}/closed/{name}{query}");
            let (status, mut answer) = send(&reader, &method, &target, &body).await;
            assert_eq!((status, &answer["error"]["code"]), (403, &json!("access_denied")), "{method} {target}");
            answer["error"]["request_id"].take();
            answers.push(answer);
        }
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{method} {kind}{query}: {answers:?}");
    }
    assert_eq!(root.get("/v1/secrets/closed/present").await.json().await.1["version"], 1, "nothing was done");
    // What may be read may still not be changed.
    root.store("open/a", json!({})).await;
    assert_eq!(reader.get("/v1/secrets/open/a").await.status(), 200);
    reader.delete("/v1/secrets/open/a").await.expect_error(403, "access_denied").await;
    reader.put("/v1/secrets/open/a", json!({"data": {}})).await.expect_error(403, "access_denied").await;
}

#[tokio::test]
async fn a_put_takes_what_it_documents_and_names_what_it_does_not() {
    let server = TestServer::new().await;
    let root = server.root();
    let target = "/v1/secrets/app/db";
    for kind in ["kv", "json", "certificate", "ssh_key", "api_key"] {
        let (_, written) = root.put(target, json!({"data": {}, "secret_type": kind})).await.json().await;
        assert_eq!(written["secret_type"], kind);
        assert_eq!(root.get(target).await.json().await.1["secret_type"], kind);
    }
    for (body, status, code, named) in [
        (json!({"data": {}, "secret_type": "password"}), 400, "invalid_secret_type", "api_key"),
        (json!({"data": {}, "secret_type": "KV"}), 400, "invalid_secret_type", "kv"),
        (json!({"data": {}, "secret_type": 5}), 400, "invalid_request", "secret_type"),
        (json!({"data": "canary"}), 400, "invalid_request", "data"),
        (json!({"data": ["canary"]}), 400, "invalid_request", "data"),
        (json!({"data": null}), 400, "invalid_request", "data"),
        (json!({}), 400, "invalid_request", "data"),
        (json!(["canary"]), 400, "invalid_request", "object"),
        // A struct's fields in an array, in their order, are no object.
        (json!([{}]), 400, "invalid_request", "object"),
        (json!({"data": {}, "options": []}), 400, "invalid_request", "options"),
        (json!({"data": {}, "metadata": []}), 400, "invalid_request", "metadata"),
        (json!({"data": {}, "value": "canary"}), 400, "invalid_request", "value"),
        (json!({"data": {}, "options": {"ttl": "canary"}}), 400, "invalid_request", "ttl"),
        (json!({"data": {}, "metadata": {"tag": "canary"}}), 400, "invalid_request", "tag"),
        (json!({"data": {}, "metadata": {"tags": "canary"}}), 400, "invalid_request", "tags"),
        (json!({"data": {}, "options": {"max_versions": "canary"}}), 400, "invalid_request", "max_versions"),
        (json!({"data": {}, "options": {"max_versions": 0}}), 422, "validation_error", "max_versions"),
        (json!({"data": {}, "options": {"max_versions": 1_001}}), 422, "validation_error", "max_versions"),
        (json!({"data": {}, "options": {"expected_version": -1}}), 422, "validation_error", "expected_version"),
        (json!({"data": {}, "options": {"expires_in": 15}}), 400, "invalid_request", "expires_in"),
    ] {
        let text = body.to_string();
        let message = root.put(target, body).await.expect_error(status, code).await;
        assert!(message.contains(named) && !message.contains("canary"), "{text}: {message}");
    }
    let (_, unprocessable) = root.put(target, json!({"data": {}, "options": {"max_versions": 0}})).await.json().await;
    assert_eq!(keys(&unprocessable["error"]["details"]["fields"]), ["options.max_versions"]);

    let nested = format!("{{\"data\":{{\"x\":{}{}}}}}", "[".repeat(31), "]".repeat(31));
    let put = |kind: &'static str, body: String| {
        let request = root.request(Method::PUT, target).header("content-type", kind).body(body);
        async move { crate::support::Answer(request.send().await.unwrap()) }
    };
    for (kind, body, status, code) in [
        ("application/json", "{\"data\":{\"canary\":1,\"canary\":2}}".to_owned(), 400, "invalid_request"),
        ("application/json", "{\"data\":{}, \"data\":{}}".to_owned(), 400, "invalid_request"),
        ("application/json", "{\"data\":{\"canary\":".to_owned(), 400, "invalid_request"),
        ("application/json", nested, 400, "invalid_request"),
        ("application/json", String::new(), 400, "invalid_request"),
        ("text/plain", "{\"data\":{}}".to_owned(), 415, "unsupported_media_type"),
    ] {
        let message = put(kind, body).await.expect_error(status, code).await;
        assert!(!message.contains("canary"), "{message}");
    }
    assert_eq!(put("Application/JSON; charset=utf-8", "{\"data\":{}}".to_owned()).await.status(), 200);

    // 1 MiB as JSON is taken, a byte more is not, whether the value or the whole body is too long.
    let mebibyte = 1024 * 1024;
    let of_size = |size: usize| json!({"data": {"v": "x".repeat(size - "{\"v\":\"\"}".len())}}).to_string();
    assert_eq!(put("application/json", of_size(mebibyte)).await.status(), 200);
    assert_eq!(root.get(target).await.json().await.1["data"]["v"].as_str().unwrap().len(), mebibyte - 8);
    for too_much in [mebibyte + 1, 2 * mebibyte] {
        put("application/json", of_size(too_much)).await.expect_error(413, "payload_too_large").await;
    }
    let (_, versions) = root.get("/v1/versions/app/db").await.json().await;
    assert_eq!(versions["versions"][0]["version"], 7, "what is refused writes nothing");
}
