//! What the server says of itself: health, metrics, the OpenAPI document, and what is on every answer.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, Options, TestServer, metric};

/// Every route: the path, and its methods in the order of the alphabet.
const ROUTES: [(&str, &str); 29] = [
    ("/v1/audit/export", "POST"),
    ("/v1/audit/logs", "GET"),
    ("/v1/auth/whoami", "GET"),
    ("/v1/destroy/{path}", "POST"),
    ("/v1/health", "GET"),
    ("/v1/health/ready", "GET"),
    ("/v1/keys", "GET"),
    ("/v1/keys/rewrap", "POST"),
    ("/v1/keys/rotate", "POST"),
    ("/v1/keys/rotate-root", "POST"),
    ("/v1/metadata/{path}", "GET PATCH"),
    ("/v1/metrics", "GET"),
    ("/v1/openapi.json", "GET"),
    ("/v1/policies", "GET"),
    ("/v1/policies/reload", "POST"),
    ("/v1/policies/status", "GET"),
    ("/v1/policies/test", "POST"),
    ("/v1/seal", "POST"),
    ("/v1/policies/{name}", "GET"),
    ("/v1/restore/{path}", "POST"),
    ("/v1/rollback/{path}", "POST"),
    ("/v1/secrets", "GET"),
    ("/v1/secrets/batch", "POST"),
    ("/v1/secrets/batch/metadata", "POST"),
    ("/v1/secrets/{path}", "DELETE GET PUT"),
    ("/v1/version", "GET"),
    ("/v1/versions/{path}", "GET"),
    // The same routes with nothing behind the slash are not documented: there is no such path.
    ("/v1/secrets/", "DELETE GET PUT"),
    ("/v1/metadata/", "GET PATCH"),
];
const UNDOCUMENTED: usize = 2;

async fn anonymous(server: &TestServer, method: &str, target: &str) -> Answer {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    Answer(server.http.request(method, format!("{}{target}", server.url)).send().await.unwrap())
}

#[tokio::test]
async fn the_server_tells_how_it_is_and_marks_every_answer() {
    let server = TestServer::new().await;
    let root = server.root();
    root.store("app/db", json!({})).await;
    for (target, expected) in [
        ("/v1/health", json!({"status": "ok"})),
        ("/v1/health/ready", json!({"status": "ready", "failing": []})),
        ("/v1/version", json!({"name": "portcullis", "version": env!("CARGO_PKG_VERSION")})),
    ] {
        assert_eq!(anonymous(&server, "GET", target).await.json().await, (200, expected));
    }
    let metrics = anonymous(&server, "GET", "/v1/metrics").await;
    assert!(metrics.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    assert!(metrics.0.text().await.unwrap().ends_with("# EOF\n"));

    // Whatever is asked: an id of its own, the same in the envelope; no copy in any cache; the policies that decided.
    let mut ids = BTreeSet::new();
    for (method, target, token, status, code) in [
        ("GET", "/v1/health", false, 200, ""),
        ("GET", "/v1/openapi.json", false, 200, ""),
        ("GET", "/", false, 404, "not_found"),
        ("GET", "/v2/secrets", true, 404, "not_found"),
        ("GET", "/v1/secret/app/db", true, 404, "not_found"),
        ("GET", "/v1/health/", false, 404, "not_found"),
        ("POST", "/v1/health", false, 405, "method_not_allowed"),
        ("POST", "/v1/secrets/app/db", true, 405, "method_not_allowed"),
        ("OPTIONS", "/v1/secrets/app/db", false, 405, "method_not_allowed"),
        ("CANARY", "/v1/secrets/app/db", false, 405, "method_not_allowed"),
        ("GET", "/v1/secrets/batch", true, 405, "method_not_allowed"),
        ("GET", "/v1/secrets/app/db", false, 401, "authentication_required"),
        ("GET", "/v1/secrets/app/db", true, 200, ""),
        ("GET", "/v1/secrets/app/none", true, 404, "secret_not_found"),
        ("GET", "/v1/secrets/app//db", true, 400, "invalid_path"),
        ("PUT", "/v1/secrets/app/db", true, 415, "unsupported_media_type"),
        ("GET", "/v1/policies/none", true, 404, "policy_not_found"),
    ] {
        let request =
            server.http.request(Method::from_bytes(method.as_bytes()).unwrap(), format!("{}{target}", server.url));
        let request = if token { request.bearer_auth(&root.token) } else { request };
        let answer = Answer(request.send().await.unwrap());
        let id = answer.header("x-request-id").unwrap();
        assert!(id.len() == 36 && id.starts_with("req_") && id[4..].bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
        assert!(ids.insert(id), "no two requests share an id");
        assert_eq!(answer.header("cache-control").as_deref(), Some("no-store"), "{method} {target}");
        assert_eq!(answer.header("x-content-type-options").as_deref(), Some("nosniff"), "{method} {target}");
        assert_eq!(answer.header("content-type").as_deref(), Some("application/json"), "{method} {target}");
        let gated = token && code != "not_found" && code != "method_not_allowed";
        assert_eq!(answer.header("x-policy-generation"), gated.then(|| "1".to_owned()), "{method} {target}");
        assert_eq!(answer.header("allow").is_some(), status == 405, "{method} {target}");
        if status == 200 {
            assert_eq!(answer.status(), 200);
        } else {
            let message = answer.expect_error(status, code).await;
            assert!(!message.is_empty() && !message.contains("CANARY"), "{message}");
        }
    }
    let allow = anonymous(&server, "POST", "/v1/secrets/app/db").await.header("allow").unwrap();
    let allowed: BTreeSet<_> = allow.split(',').map(str::trim).collect();
    assert_eq!(allowed, BTreeSet::from(["DELETE", "GET", "HEAD", "PUT"]));

    // HEAD is GET without the body.
    let head = Answer(root.request(Method::HEAD, "/v1/secrets/app/db").send().await.unwrap());
    assert_eq!(
        (head.status(), head.header("etag").is_some(), head.0.text().await.unwrap()),
        (200, true, String::new())
    );

    let (status, policies) = root.get("/v1/policies").await.json().await;
    let rules = &policies["policies"][0];
    assert_eq!(
        (status, &rules["name"], &rules["mode"], &rules["generation"]),
        (200, &json!("rules"), &json!("enforce"), &json!(1))
    );
    assert_eq!((&rules["actions"], &rules["paths"]), (&json!(["*"]), &json!(["**"])));
    assert_eq!((rules["digest"].as_str().unwrap().len(), rules["deadline_ms"].as_u64()), (64, Some(2_000)));
    let (_, one) = root.get("/v1/policies/rules").await.json().await;
    assert_eq!((&one["name"], &one["digest"]), (&rules["name"], &rules["digest"]));
    assert!(one["calls"].as_u64().unwrap() >= 3 && one["p50_us"].as_f64().unwrap() > 0.0, "{one}");
}

#[tokio::test]
async fn every_category_has_its_limit_in_the_headers() {
    // The defaults of the configuration.
    let server = TestServer::start(Options { config: "[rate_limits]\n".to_owned(), ..Options::default() }).await;
    let root = server.root();
    let paths = json!({"paths": ["app/db"]});
    for (method, target, body, limit, left) in [
        (Method::PUT, "/v1/secrets/app/db", json!({"data": {}}), 100, 99),
        (Method::PATCH, "/v1/metadata/app/db", json!({"owner": "o"}), 100, 98),
        (Method::GET, "/v1/secrets/app/db", json!({}), 1_000, 999),
        (Method::GET, "/v1/secrets/app/none", json!({}), 1_000, 998),
        (Method::GET, "/v1/secrets", json!({}), 100, 99),
        (Method::GET, "/v1/metadata/app/db", json!({}), 100, 98),
        (Method::GET, "/v1/versions/app/db", json!({}), 100, 97),
        (Method::POST, "/v1/secrets/batch", paths.clone(), 100, 99),
        (Method::POST, "/v1/secrets/batch/metadata", paths, 100, 99),
        (Method::GET, "/v1/audit/logs", json!({}), 50, 49),
        (Method::GET, "/v1/policies", json!({}), 50, 49),
        (Method::GET, "/v1/policies/test", json!({}), 50, 48),
        (Method::POST, "/v1/policies/test", json!({}), 200, 199),
        (Method::GET, "/v1/auth/whoami", json!({}), 300, 299),
        (Method::DELETE, "/v1/secrets/app/db", json!({}), 100, 99),
        (Method::POST, "/v1/restore/app/db", json!({}), 100, 97),
    ] {
        let request = root.request(method.clone(), target).header("content-type", "application/json");
        let answer = Answer(request.body(body.to_string()).send().await.unwrap());
        let number = |name| answer.header(name).unwrap().parse::<i64>().unwrap();
        assert_eq!(number("x-ratelimit-limit"), limit, "{method} {target}");
        // A slow machine may have refilled a unit meanwhile.
        let remaining = number("x-ratelimit-remaining");
        assert!(remaining == left || remaining == left + 1, "{method} {target}: {remaining} of {left}");
        let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
        assert!((now..=now + 61).contains(&number("x-ratelimit-reset")), "{method} {target}");
    }
    for target in ["/v1/health", "/v1/metrics", "/v1/secrets/app/db"] {
        assert_eq!(anonymous(&server, "GET", target).await.header("x-ratelimit-limit"), None, "{target}");
    }
}

#[tokio::test]
async fn metrics_count_and_tell_no_name() {
    let server = TestServer::new().await;
    let root = server.root();
    root.store("canary/path", json!({"canary": "canary"})).await;
    let evaluations = |outcome: &'static str| {
        let server = &server;
        async move {
            let text = anonymous(server, "GET", "/v1/metrics").await.0.text().await.unwrap();
            let line = format!("portcullis_policy_evaluations_total{{policy=\"rules\",outcome=\"{outcome}\"}} ");
            text.lines().find_map(|l| l.strip_prefix(&line)).unwrap().parse::<u64>().unwrap()
        }
    };
    let (allowed, unopinionated) = (evaluations("allow").await, evaluations("abstain").await);
    root.batch(&["canary/path", "canary/none", "canary//bad"]).await;
    root.get("/v1/metadata/canary/path").await;
    let stranger = server.client("sa:canary");
    stranger.batch(&["canary/path", "canary/none"]).await;
    stranger.get("/v1/secrets/canary/path").await.expect_error(403, "access_denied").await;
    assert_eq!((evaluations("allow").await, evaluations("abstain").await), (allowed + 3, unopinionated + 3));
    assert_eq!(evaluations("trap").await, 0);

    assert_eq!(metric(&server, "portcullis_failed_authentications_total").await, 0);
    server.client_with_token("canary".to_owned()).get("/v1/secrets/canary/path").await;
    anonymous(&server, "GET", "/v1/canary").await;
    anonymous(&server, "CANARY", "/v1/secrets/canary/path").await;
    anonymous(&server, "CANARY", "/v1/canary").await;
    root.get("/v1/policies/canary").await;
    root.get("/v1/secrets?prefix=canary").await;
    assert_eq!(metric(&server, "portcullis_failed_authentications_total").await, 1);

    // Labels are from closed sets: never a path, an identity, or what a client made up.
    let text = anonymous(&server, "GET", "/v1/metrics").await.0.text().await.unwrap();
    assert!(!text.to_lowercase().contains("canary"), "{text}");
    assert!(!text.contains("user:root") && !text.contains("default"), "{text}");
    let mut labels = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let inside = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(inside, _)| inside);
        labels.extend(inside.split("\",").filter_map(|pair| pair.split_once('=')).map(|(label, _)| label));
    }
    assert_eq!(labels, BTreeSet::from(["le", "method", "outcome", "policy", "result", "route", "status"]), "{text}");
    for part in [
        "portcullis_policy_generation 1\n",
        "portcullis_policy_seconds_total{policy=\"rules\"} ",
        "portcullis_audit_commit_duration_seconds_count{result=\"ok\"} ",
        "portcullis_store_read_duration_seconds_count ",
        "portcullis_store_write_duration_seconds_count 1\n",
        "portcullis_unreadable_records_total 0\n",
        "portcullis_http_request_duration_seconds_count{method=\"POST\",route=\"/v1/secrets/batch\",status=\"200\"} 2\n",
        "method=\"GET\",route=\"/v1/secrets/{*path}\",status=\"403\"",
        "method=\"other\",route=\"none\",status=\"404\"",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[tokio::test]
async fn the_openapi_document_lists_the_routes_and_no_others() {
    let server = TestServer::new().await;
    let (status, document) = anonymous(&server, "GET", "/v1/openapi.json").await.json().await;
    assert_eq!(
        (status, &document["openapi"], &document["info"]["title"]),
        (200, &json!("3.1.0"), &json!("Portcullis"))
    );
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let methods = |item: &Value| {
        let known =
            |word: &&String| ["get", "put", "post", "patch", "delete", "head", "options"].contains(&word.as_str());
        let mut words: Vec<_> =
            item.as_object().unwrap().keys().filter(known).map(|word| word.to_uppercase()).collect();
        words.sort();
        words.join(" ")
    };
    let mut documented: Vec<(String, String)> =
        document["paths"].as_object().unwrap().iter().map(|(path, item)| (path.clone(), methods(item))).collect();
    documented.sort();
    let mut expected: Vec<_> =
        ROUTES[..ROUTES.len() - UNDOCUMENTED].iter().map(|(p, m)| ((*p).to_owned(), (*m).to_owned())).collect();
    expected.sort();
    assert_eq!(documented, expected);

    // What is documented is there, and what is there is documented: every other method is refused.
    for (path, methods) in ROUTES {
        let target = path.replace("{path}", "app/db").replace("{name}", "rules");
        for method in ["GET", "PUT", "POST", "PATCH", "DELETE"] {
            let status = anonymous(&server, method, &target).await.status();
            // A policy may be named as the dry run is: its description is documented with those of the others.
            let a_policy = path == "/v1/policies/test" && method == "GET";
            let listed = a_policy || methods.split(' ').any(|word| word == method);
            let expected: &[u16] = if listed { &[200, 401] } else { &[405] };
            assert!(expected.contains(&status), "{method} {target}: {status}");
        }
    }

    // Every operation: described, named, with its parameters, its answer, and whether it wants a token.
    let mut names = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let what = format!("{method} {path}");
            assert!(names.insert(operation["operationId"].as_str().unwrap().to_owned()), "{what}: its id is taken");
            assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{what}");
            let open = path.starts_with("/v1/health") || path == "/v1/version" || path == "/v1/openapi.json";
            assert_eq!(operation.get("security").is_some(), open, "{what}");
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let in_path = parameters.iter().filter(|parameter| parameter["in"] == "path").count();
            assert_eq!(in_path, path.matches('{').count(), "{what}");
            assert!(operation["responses"].as_object().unwrap().keys().any(|status| status.starts_with('2')), "{what}");
            if matches!(method.as_str(), "put" | "patch") {
                assert!(operation["requestBody"].is_object(), "{what}");
            }
        }
    }
    let scheme = &document["components"]["securitySchemes"]["bearer"];
    assert_eq!((&scheme["type"], &scheme["scheme"]), (&json!("http"), &json!("bearer")));
    assert_eq!(document["security"], json!([{"bearer": []}]));
    // No reference leads nowhere.
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
}
