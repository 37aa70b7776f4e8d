//! The hand-written guests as a whole: how many there are, and that none holds up its own request or anybody else's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    child::Process,
    guests::{Directory, MODULES, labelled},
    support::Client,
};

/// Each of these ends in a refusal at load, or in a denial at the path where it misbehaves; other tests show so.
#[test]
fn there_are_a_hundred_hostile_guests_and_more() {
    let refused = labelled("refused").len();
    let denied = hostile().len();
    println!("{refused} guests are refused, {denied} are denied");
    assert!(refused + denied >= 100, "{refused} + {denied}");
}

/// The guests that fail at a path that ends in `x`.
fn hostile() -> Vec<(String, String)> {
    labelled("outcome").into_iter().filter(|(_, outcome)| !outcome.starts_with("allow")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_denial_comes_by_its_deadline() {
    const DEADLINE: Duration = Duration::from_millis(20);
    const SLACK: Duration = Duration::from_millis(20);
    const TRIES: usize = 50;
    let mut times = Vec::new();
    for guests in hostile().chunks(MODULES) {
        let add = |directory: Directory, guest: &String| {
            directory.with(guest, &format!("paths = [\"{guest}/**\"]\ndeadline = \"{}ms\"", DEADLINE.as_millis()))
        };
        let server = guests.iter().map(|(guest, _)| guest).fold(Directory::new(), add).server().await;
        let root = server.root();
        for (guest, _) in guests {
            let mut best = Duration::MAX;
            // The machine may be busy with other things for some of them.
            for _ in 0..TRIES {
                let start = Instant::now();
                let refused = root.get(&format!("/v1/secrets/{guest}/ax")).await;
                best = best.min(start.elapsed());
                refused.expect_error(403, "policy_error").await;
                if best <= DEADLINE + SLACK / 2 {
                    break;
                }
            }
            times.push((best, guest.clone()));
        }
    }
    times.sort();
    let slowest = times.last().unwrap();
    println!("the slowest of {} denials took {:?}: {}", times.len(), slowest.0, slowest.1);
    assert!(slowest.0 <= DEADLINE + SLACK, "{times:?}");
}

/// Some work of some clients, all at once, until the time is over; answers how often it was done.
async fn rate(clients: &[Client], target: &'static str, window: Duration) -> u32 {
    let done = Arc::new(AtomicU32::new(0));
    let mut reading = JoinSet::new();
    let end = Instant::now() + window;
    for client in clients {
        let (client, done) = (client.clone(), Arc::clone(&done));
        reading.spawn(async move {
            while Instant::now() < end {
                assert_eq!(client.get(target).await.status(), 200);
                done.fetch_add(1, Relaxed);
            }
        });
    }
    reading.join_all().await;
    done.load(Relaxed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_requests_go_on_beside_hostile_guests() {
    const ROUNDS: usize = 4;
    const SHARE: f64 = 0.7;
    let add = |directory: Directory, guest| directory.with(guest, &format!("paths = [\"{guest}/**\"]"));
    let directory = HOSTILE.into_iter().fold(Directory::new(), add).with("allow", "paths = [\"good/**\"]");
    let process = Process::start(&directory.path(), "warn,portcullis=info");
    let root = process.root();
    root.store("good/a", json!({"k": "v"})).await;
    let clients: Vec<Client> = (0..4).map(|_| process.root()).collect();
    rate(&clients, "/v1/secrets/good/a", Duration::from_secs(1)).await;
    let resident = process.resident();
    let mut shares = Vec::new();
    // The machine may be busy with other things in some of them.
    while shares.len() < ROUNDS && shares.iter().all(|share| *share < SHARE) {
        shares.push(share_beside_hostile_guests(&process, &clients).await);
    }
    assert_eq!(root.get("/v1/secrets/good/a").await.status(), 200, "the next request is well");
    let grown = process.resident().saturating_sub(resident);
    assert!(grown < 24 * 1024 * 1024, "{grown} bytes did not come back");
    assert!(shares.iter().any(|share| *share >= SHARE), "{shares:.2?}");
}

const HOSTILE: [&str; 3] = ["loop", "grow", "recurse"];

/// What remains of the clients' rate while two others ask hostile guests: the median of pairs of short windows.
async fn share_beside_hostile_guests(process: &Process, clients: &[Client]) -> f64 {
    const WINDOW: Duration = Duration::from_millis(250);
    const PAIRS: usize = 11;
    let mut shares = Vec::new();
    let (mut reads, mut denied) = ([0, 0], 0);
    for _ in 0..PAIRS {
        let alone = rate(clients, "/v1/secrets/good/a", WINDOW).await;
        let hammering = Arc::new(AtomicBool::new(true));
        let mut hammers = JoinSet::new();
        for _ in 0..2 {
            hammers.spawn(hammer(process.root(), Arc::clone(&hammering)));
        }
        let beside = rate(clients, "/v1/secrets/good/a", WINDOW).await;
        hammering.store(false, Relaxed);
        denied += hammers.join_all().await.iter().sum::<u32>();
        reads = [reads[0] + alone, reads[1] + beside];
        shares.push(f64::from(beside) / f64::from(alone.max(1)));
    }
    shares.sort_by(f64::total_cmp);
    let median = shares[PAIRS / 2];
    println!(
        "{} reads alone, {} beside {denied} hostile requests; median {median:.2} of {shares:.2?}",
        reads[0], reads[1]
    );
    median
}

/// Asks hostile guests, one after the other, as long as it shall; answers how often.
async fn hammer(client: Client, hammering: Arc<AtomicBool>) -> u32 {
    let mut refused = 0;
    while hammering.load(Relaxed) {
        for guest in HOSTILE {
            client.get(&format!("/v1/secrets/{guest}/ax")).await.expect_error(403, "policy_error").await;
            refused += 1;
        }
    }
    refused
}
