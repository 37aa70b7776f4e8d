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
async fn contend(client: Client, attempts: Arc<AtomicUsize>, unheard: Arc<AtomicUsize>, all: usize) -> Won {
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
        } else if status == 503 {
            // On a busy machine it may come too late: nobody knows whether it won.
            unheard.fetch_add(1, Relaxed);
        } else {
            assert_eq!((status, &body["error"]["code"]), (409, &json!("version_conflict")), "{body}");
            let current = body["error"]["details"]["current_version"].as_i64().unwrap();
            assert!(current > newest, "version {newest} is the newest, and was refused: {body}");
            newest = current;
        }
    }
}

async fn one_winner_for_each_version(servers: &[TestServer], all: usize) {
    let (attempts, unheard) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        let client = servers[n % servers.len()].root();
        clients.spawn(contend(client, Arc::clone(&attempts), Arc::clone(&unheard), all));
    }
    let mut winners = BTreeMap::new();
    for (version, attempt) in clients.join_all().await.into_iter().flatten() {
        assert_eq!(winners.insert(version, attempt), None, "version {version} has two winners");
    }
    let read = servers[0].root().batch(&["contended"]).await;
    let newest = read["secrets"]["contended"]["version"].as_i64().unwrap();
    let unheard = unheard.load(Relaxed);
    let without = (1..=newest).filter(|version| !winners.contains_key(version)).count();
    assert!(without <= unheard, "{without} versions without a winner, {unheard} attempts that nobody heard of");
    assert!(winners.keys().all(|version| (1..=newest).contains(version)), "no version is beyond the newest");
    if let Some(winner) = winners.get(&newest) {
        assert_eq!(read["secrets"]["contended"]["data"]["n"], *winner);
    }
    let told = servers[0].audit("&action=write&success=true&path_prefix=contended").await;
    let mut told: Vec<i64> = told.iter().map(|event| event["version"].as_i64().unwrap()).collect();
    told.sort_unstable();
    assert!(told.into_iter().eq(1..=newest), "one event for each version");
    println!(
        "{all} attempts of {CLIENTS} clients at {} servers: {newest} versions, one winner each; {unheard} unheard of",
        servers.len()
    );
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
