//! What the reference document of the batch endpoints shows, as it shows it.

use serde_json::json;

use crate::support::{Client, Options, TestServer, metric};

const DOCUMENT_PATHS: [&str; 3] =
    ["integrations/salesforce/oauth", "integrations/scaisend/api-key", "integrations/stripe/secret-key"];
const STARTUP_PATHS: [&str; 5] = [
    "integrations/salesforce/oauth",
    "integrations/scaisend/api-key",
    "integrations/stripe/secret-key",
    "infra/db/primary/credentials",
    "infra/redis/primary/credentials",
];

/// A server with the sample rules and the document's secrets.
async fn sample_server() -> TestServer {
    let server = TestServer::start(Options { rules: None, ..Options::default() }).await;
    let scopes = &crate::support::ALL_SCOPES;
    let alice = server.client_with_token(server.token_with("user:alice", "default", scopes, &["operators"]));
    for version in 1..=3 {
        let data = json!({"client_id": "id", "client_secret": format!("secret-{version}")});
        let metadata = json!({"tags": ["salesforce", "production"]});
        let body = json!({"data": data, "secret_type": "json", "metadata": metadata});
        assert!(alice.put("/v1/secrets/integrations/salesforce/oauth", body).await.status() < 300);
    }
    let body = json!({"data": {"key": "sk_send_1"}, "secret_type": "api_key"});
    assert_eq!(alice.put("/v1/secrets/integrations/scaisend/api-key", body).await.status(), 201);
    for path in &STARTUP_PATHS[2..] {
        alice.store(path, json!({"key": "value"})).await;
    }
    server
}

fn checkout(server: &TestServer) -> Client {
    server.client("sa:checkout")
}

#[tokio::test]
async fn the_batch_read_answers_as_documented() {
    let server = sample_server().await;
    let options = json!({"include_metadata": false, "fail_fast": false});
    let body = json!({"paths": DOCUMENT_PATHS, "options": options});
    let (status, answer) = checkout(&server).post("/v1/secrets/batch", body).await.json().await;
    assert_eq!(status, 200);
    assert_eq!(
        answer,
        json!({
            "secrets": {
                "integrations/salesforce/oauth": {
                    "data": {"client_id": "id", "client_secret": "secret-3"},
                    "version": 3,
                    "secret_type": "json"
                },
                "integrations/scaisend/api-key": {
                    "data": {"key": "sk_send_1"},
                    "version": 1,
                    "secret_type": "api_key"
                }
            },
            "errors": {
                "integrations/stripe/secret-key": {
                    "code": "access_denied",
                    "message": "No policy permits read on this path"
                }
            },
            "retrieved": 2,
            "failed": 1
        })
    );
}

#[tokio::test]
async fn each_distinct_path_is_one_evaluation_and_one_event() {
    let server = sample_server().await;
    let before = evaluations(&server).await;
    let twice: Vec<_> = DOCUMENT_PATHS.iter().chain(&DOCUMENT_PATHS).copied().collect();
    let answer = checkout(&server).post("/v1/secrets/batch", json!({ "paths": twice })).await;
    let request_id = answer.header("x-request-id").unwrap();
    assert_eq!(answer.json().await.1["retrieved"], 2);
    assert_eq!(evaluations(&server).await - before, 3);
    let events = server.audit(&format!("&request_id={request_id}")).await;
    let codes: Vec<_> = events.iter().map(|event| event["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["access_denied", "ok", "ok"]);
    assert_eq!(events[0]["batch"], json!({"index": 2, "size": 3}));
    assert_eq!(events[2]["secret_path"], DOCUMENT_PATHS[0]);
    assert_eq!(events[2]["version"], 3);
    assert_eq!(events[2]["decision"]["module"], "rules");
}

async fn evaluations(server: &TestServer) -> u64 {
    metric(server, "portcullis_policy_evaluations_total").await
}

#[tokio::test]
async fn fail_fast_fails_loudly_and_releases_nothing() {
    let server = sample_server().await;
    let body = json!({"paths": STARTUP_PATHS, "options": {"fail_fast": true}});
    let answer = checkout(&server).post("/v1/secrets/batch", body.clone()).await;
    let request_id = answer.header("x-request-id").unwrap();
    let (status, refused) = answer.json().await;
    assert_eq!(status, 403);
    assert_eq!(refused["error"]["code"], "access_denied");
    assert_eq!(refused["error"]["details"]["path"], "integrations/stripe/secret-key");
    assert!(!refused.to_string().contains("secret-3"));
    let events = server.audit(&format!("&request_id={request_id}")).await;
    let codes: Vec<_> = events.iter().map(|event| event["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["access_denied", "withheld", "withheld"], "later paths are not evaluated");

    let (status, all) = server.client("sa:storefront").post("/v1/secrets/batch", body).await.json().await;
    assert_eq!((status, &all["retrieved"], &all["errors"]), (200, &json!(5), &json!({})));
}

#[tokio::test]
async fn batch_metadata_expands_wildcards_and_hides_what_is_denied() {
    let server = sample_server().await;
    let body = json!({"paths": ["integrations/salesforce/*", "integrations/stripe/*"], "expand_wildcards": true});
    let (status, answer) = checkout(&server).post("/v1/secrets/batch/metadata", body).await.json().await;
    assert_eq!(status, 200);
    let found: Vec<_> = answer["metadata"].as_object().unwrap().keys().collect();
    assert_eq!(found, ["integrations/salesforce/oauth"]);
    let entry = &answer["metadata"]["integrations/salesforce/oauth"];
    assert_eq!(entry["version"], 3);
    assert_eq!(entry["tags"], json!(["salesforce", "production"]));
    assert!(entry["updated_at"].is_string());
    assert_eq!(answer.get("errors"), None);
    assert!(!answer.to_string().contains("secret-3"));
}
