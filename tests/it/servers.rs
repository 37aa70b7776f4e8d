//! Two servers on one PostgreSQL database: what one writes the other reads, and no version is given twice.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    postgres,
    support::{ALL_SCOPES, Client, Options, TestServer},
};

async fn server(database_url: &str, root_key_of: &std::path::Path) -> TestServer {
    TestServer::start(Options {
        database_url: Some(database_url.to_owned()),
        data_dir: Some(root_key_of.to_owned()),
        ..Options::default()
    })
    .await
}

async fn version_numbers(client: &Client, path: &str) -> Vec<i64> {
    let (status, body) = client.get(&format!("/v1/versions/{path}")).await.json().await;
    assert_eq!(status, 200, "{body}");
    body["versions"].as_array().unwrap().iter().map(|item| item["version"].as_i64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_serve_one_vault() {
    let Some(url) = postgres::database().await else { return };
    let shared = tempfile::tempdir().unwrap();
    let mut one = server(&url, shared.path()).await;
    let two = server(&url, shared.path()).await;
    keys_are_made_once(&one, &two).await;
    writers_of_both_get_versions_of_their_own(&one, &two).await;
    one_of_both_wins_an_expected_version(&one, &two).await;
    each_sees_what_the_other_did(&one, &two).await;
    one.restart().await;
    assert_eq!(one.root().store("contended", json!({"n": 0})).await, 81);
    assert_eq!(version_numbers(&two.root(), "contended").await.first(), Some(&81));
}

/// The first writes of a tenant come to both at once.
async fn keys_are_made_once(one: &TestServer, two: &TestServer) {
    for round in 0..5 {
        let tenant = format!("tenant{round}");
        let of =
            |server: &TestServer| server.client_with_token(server.token_with("user:root", &tenant, &ALL_SCOPES, &[]));
        let (left, right) = (of(one), of(two));
        tokio::join!(left.store("left", json!({"from": "one"})), right.store("right", json!({"from": "two"})));
        for client in [&left, &right] {
            let body = client.batch(&["left", "right"]).await;
            assert_eq!(body["secrets"]["left"]["data"]["from"], "one", "{body}");
            assert_eq!(body["secrets"]["right"]["data"]["from"], "two", "{body}");
        }
        let stranger = two.root().batch(&["left", "right"]).await;
        assert_eq!(stranger["retrieved"], 0, "tenants are apart on both servers");
    }
}

async fn writers_of_both_get_versions_of_their_own(one: &TestServer, two: &TestServer) {
    let mut writers = JoinSet::new();
    for n in 0..80 {
        let client = if n % 2 == 0 { one.root() } else { two.root() };
        writers.spawn(async move {
            let body = json!({"data": {"n": n}, "options": {"max_versions": 1000}});
            let (status, answer) = client.put("/v1/secrets/contended", body).await.json().await;
            assert!(status == 200 || status == 201, "{status} {answer}");
            answer["version"].as_i64().unwrap()
        });
    }
    let given: BTreeSet<_> = writers.join_all().await.into_iter().collect();
    assert_eq!(given, (1..=80).collect());
    for server in [one, two] {
        assert_eq!(version_numbers(&server.root(), "contended").await, (1..=80).rev().collect::<Vec<_>>());
    }
}

async fn one_of_both_wins_an_expected_version(one: &TestServer, two: &TestServer) {
    for round in 0..10 {
        let mut writers = JoinSet::new();
        for n in 0..8 {
            let client = if n % 2 == 0 { one.root() } else { two.root() };
            writers.spawn(async move {
                let body = json!({"data": {"n": n}, "options": {"expected_version": round}});
                let (status, answer) = client.put("/v1/secrets/expected", body).await.json().await;
                (status, n, answer)
            });
        }
        let answers = writers.join_all().await;
        let winners: Vec<_> = answers.iter().filter(|(status, ..)| *status < 300).collect();
        assert_eq!(winners.len(), 1, "{answers:?}");
        let lost = answers.iter().filter(|(status, _, body)| {
            *status == 409 && body["error"]["details"]["current_version"] == json!(round + 1)
        });
        assert_eq!(lost.count(), 7, "{answers:?}");
        let read = two.root().batch(&["expected"]).await;
        assert_eq!(read["secrets"]["expected"]["data"]["n"], winners[0].1, "the winner's value is kept");
    }
}

async fn each_sees_what_the_other_did(one: &TestServer, two: &TestServer) {
    one.root().store("seen/1", json!({"k": 1})).await;
    two.root().store("seen/2", json!({"k": 2})).await;
    for server in [one, two] {
        let (_, listed) = server.root().get("/v1/secrets?prefix=seen/").await.json().await;
        let paths: Vec<_> = listed["secrets"].as_array().unwrap().iter().map(|entry| entry["path"].clone()).collect();
        assert_eq!(paths, ["seen/1", "seen/2"]);
        assert_eq!(server.root().batch(&["seen/1", "seen/2"]).await["retrieved"], 2);
    }
    assert_eq!(one.root().delete("/v1/secrets/seen/2").await.status(), 200);
    two.root().get("/v1/secrets/seen/2").await.expect_error(404, "secret_not_found").await;
    let denied = two.client("user:stranger").get("/v1/secrets/seen/1").await;
    let request_id = denied.header("x-request-id").unwrap();
    denied.expect_error(403, "access_denied").await;
    let told = |entries: Vec<Value>| -> BTreeSet<String> {
        entries.iter().map(|entry| format!("{} {} {}", entry["action"], entry["secret_path"], entry["code"])).collect()
    };
    let events = told(one.audit("&path_prefix=seen/").await);
    for expected in [
        r#""write" "seen/1" "ok""#,
        r#""write" "seen/2" "ok""#,
        r#""delete" "seen/2" "ok""#,
        r#""read" "seen/1" "access_denied""#,
    ] {
        assert!(events.contains(expected), "{expected} is not in {events:?}");
    }
    assert_eq!(told(two.audit("&path_prefix=seen/").await), events, "both tell the same");
    assert_eq!(one.audit(&format!("&request_id={request_id}")).await.len(), 1);
}
