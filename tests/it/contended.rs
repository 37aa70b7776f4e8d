//! Many clients want to write the next version of one secret, each on the condition that it is the next: one of them
//! gets it, and everybody else is told so.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    campaign::count,
    postgres,
    support::{Client, Options, TestServer},
};

const CLIENTS: usize = 64;

/// What a client won: versions, with the number that it wrote.
type Won = Vec<(i64, usize)>;

/// Tries until all attempts together are made.
async fn contend(client: Client, attempts: Arc<AtomicUsize>, all: usize) -> Won {
    let (mut won, mut newest) = (Won::new(), 0);
    loop {
        let attempt = attempts.fetch_add(1, Relaxed);
        if attempt >= all {
            return won;
        }
        let options = json!({"expected_version": newest, "max_versions": 3});
        let body = json!({"data": {"n": attempt}, "options": options});
        let (status, body) = client.put("/v1/secrets/contended", body).await.json().await;
        if status < 300 {
            assert_eq!(body["version"], newest + 1, "{body}");
            newest += 1;
            won.push((newest, attempt));
        } else {
            assert_eq!((status, &body["error"]["code"]), (409, &json!("version_conflict")), "{body}");
            let current = body["error"]["details"]["current_version"].as_i64().unwrap();
            assert!(current > newest, "version {newest} is the newest, and was refused: {body}");
            newest = current;
        }
    }
}

async fn one_winner_for_each_version(servers: &[TestServer], all: usize) {
    let attempts = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        clients.spawn(contend(servers[n % servers.len()].root(), Arc::clone(&attempts), all));
    }
    let mut winners = BTreeMap::new();
    for (version, attempt) in clients.join_all().await.into_iter().flatten() {
        assert_eq!(winners.insert(version, attempt), None, "version {version} has two winners");
    }
    let newest = i64::try_from(winners.len()).unwrap();
    assert!(winners.keys().copied().eq(1..=newest), "no version is without its winner");
    let read = servers[0].root().batch(&["contended"]).await;
    assert_eq!(read["secrets"]["contended"]["version"], newest);
    assert_eq!(read["secrets"]["contended"]["data"]["n"], winners[&newest]);
    let told = servers[0].audit("&action=write&success=true&path_prefix=contended").await;
    let told: BTreeMap<i64, usize> = told.iter().map(|event| (event["version"].as_i64().unwrap(), 1)).collect();
    assert!(told.keys().eq(winners.keys()), "one event for each version");
    println!("{all} attempts of {CLIENTS} clients at {} servers: {newest} versions, one winner each", servers.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expected_version_has_one_winner() {
    let all = count("PORTCULLIS_ATTEMPTS", 50_000);
    one_winner_for_each_version(&[TestServer::new().await], all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expected_version_has_one_winner_at_two_servers_on_postgres() {
    let Some(url) = postgres::database().await else { return };
    let shared = tempfile::tempdir().unwrap();
    let options =
        || Options { database_url: Some(url.clone()), data_dir: Some(shared.path().to_owned()), ..Options::default() };
    let servers = [TestServer::start(options()).await, TestServer::start(options()).await];
    one_winner_for_each_version(&servers, count("PORTCULLIS_ATTEMPTS", 50_000) / 10).await;
}
