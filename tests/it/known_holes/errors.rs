//! Strings that mean something to somebody behind the vault (C-14, C-15, C-31): to it they mean nothing.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    leaks::files,
    routes::{CONFIG, ROUTES, document, operations},
};
use crate::support::{Options, TestServer};

/// Texts that a database, a shell, a template, a file system or a policy engine would read.
const TEXTS: [&str; 26] = [
    "' OR '1'='1",
    "'; DROP TABLE secrets; --",
    "\" OR 1=1 --",
    "1; SELECT pg_sleep(5)",
    "a' UNION SELECT * FROM versions --",
    "\\'; --",
    "%' OR path LIKE '%",
    "*",
    "%",
    "_",
    "NULL",
    "$1",
    "?1",
    ":path",
    "@@version",
    "{{7*7}}",
    "${jndi:ldap://x}",
    "$(id)",
    "`id`",
    "../../../../tmp/x",
    "/etc/passwd",
    "file:///etc/passwd",
    "http://127.0.0.1:9/",
    "data.system",
    "x\"] { true }; allow[\"x",
    "\u{202e}",
];

/// Every text in every query parameter that the document names, and in every string of every body.
#[tokio::test]
async fn c_14_c_15_c_31_no_text_is_a_command() {
    let server = TestServer::start(Options { config: CONFIG.to_owned(), ..Options::default() }).await;
    let root = server.root();
    root.store("team/app/key", json!({"k": "v"})).await;
    let before: BTreeSet<_> = files(server.scratch()).into_iter().collect();
    let document = document(&server).await;
    let mut asked = 0;
    for (method, path, operation) in operations(&document) {
        let route = ROUTES.iter().find(|row| (row.method, row.template) == (&*method, &*path)).unwrap();
        if method == "GET" {
            for parameter in operation["parameters"].as_array().into_iter().flatten().filter(|one| one["in"] == "query")
            {
                for text in TEXTS {
                    let name = parameter["name"].as_str().unwrap();
                    let target = format!("{}{}", root.url, route.target);
                    let url = reqwest::Url::parse_with_params(&target, [(name, text)]).unwrap();
                    let request = root.http.get(url).bearer_auth(&root.token);
                    let answer = request.send().await.unwrap();
                    assert!(answer.status() < reqwest::StatusCode::INTERNAL_SERVER_ERROR, "{path}?{name}={text}");
                    if answer.status() == 200 && path == "/v1/secrets" {
                        let found: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
                        assert_eq!(found["secrets"], json!([]), "{name}={text}");
                    }
                    asked += 1;
                }
            }
        }
        let Some(body) = route.body else { continue };
        for text in TEXTS {
            let odd = with_text(&serde_json::from_str(body).unwrap(), text).to_string();
            let request =
                root.request(method.parse().unwrap(), route.target).header("content-type", "application/json");
            let status = request.body(odd).send().await.unwrap().status().as_u16();
            assert!(status < 500, "{method} {path} {text}: {status}");
            asked += 1;
        }
    }
    assert!(asked > 500, "{asked}");
    let kept = root.get("/v1/secrets?limit=1000").await.json().await.1;
    let paths: Vec<_> = kept["secrets"].as_array().unwrap().iter().map(|one| &one["path"]).collect();
    assert_eq!(paths, ["team/app/key"], "nothing is gone and nothing is new");
    let after: BTreeSet<_> = files(server.scratch()).into_iter().collect();
    assert_eq!(after, before, "no request makes a file");
    println!("{asked} requests with texts for somebody else");
}

/// Every string of a body becomes the text.
fn with_text(body: &Value, text: &str) -> Value {
    match body {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), with_text(value, text)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(|item| with_text(item, text)).collect(),
        Value::String(_) => text.into(),
        other => other.clone(),
    }
}

/// CVE-2025-6000: a route that makes a sink, a file or a plug-in. None has a field for a place.
#[tokio::test]
async fn c_31_no_route_takes_a_place_or_a_nonce() {
    let document = document(&TestServer::new().await).await;
    let names = |value: &Value| -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut left = vec![value];
        while let Some(value) = left.pop() {
            match value {
                Value::Object(fields) => {
                    found.extend(
                        fields
                            .get("properties")
                            .and_then(Value::as_object)
                            .into_iter()
                            .flatten()
                            .map(|(name, _)| name.clone()),
                    );
                    found.extend(fields.get("name").and_then(Value::as_str).map(str::to_owned));
                    left.extend(fields.values());
                }
                Value::Array(items) => left.extend(items),
                _ => (),
            }
        }
        found
    };
    let taken = names(&json!({"paths": document["paths"], "schemas": document["components"]["schemas"]}));
    assert!(taken.contains("paths") && taken.contains("expected_version"), "{taken:?}");
    // C-73 (CVE-2023-4680): nor one by which a caller could choose what must not repeat.
    for word in
        ["file", "url", "uri", "host", "socket", "directory", "plugin", "module_path", "command", "nonce", "iv", "salt"]
    {
        assert!(!taken.contains(word), "a route takes `{word}`");
    }
}
