//! The audit log fails at random under load: full, locked, refusing, slow, unlinked. No answer that tells or does
//! something leaves without its row, nobody waits long, and when it is well again all is well again. And through all of
//! it, each answer has exactly the events that it stands for.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    campaign::{Dice, count, seed},
    process::{execute, raw},
    support::{Client, TestServer},
};

const CLIENTS: usize = 8;
const VALUE: &str = "canary-9e1b";
/// Two seconds, and what a busy machine may add.
const PROMPT: Duration = Duration::from_millis(3_500);

/// What clients were told: by request, the status, how many paths were asked for, and the receipt.
type Told = Arc<Mutex<BTreeMap<String, (u16, usize, Option<String>)>>>;

#[derive(Default)]
struct Counts {
    answered: AtomicUsize,
    refused: AtomicUsize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leaves_unrecorded_while_the_log_fails() {
    let wanted = count("PORTCULLIS_FAULTED", 20_000);
    let server = TestServer::new().await;
    let root = server.root();
    for n in 0..8 {
        root.store(&format!("kept/{n}"), json!({"k": VALUE})).await;
    }
    let (told, counts, stop) = (Told::default(), Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
    let mut clients = JoinSet::new();
    let dice = Dice::new(seed());
    for n in 0..CLIENTS {
        let (told, counts, stop) = (Arc::clone(&told), Arc::clone(&counts), Arc::clone(&stop));
        clients.spawn(ask(server.root(), server.client("user:stranger"), dice.of(n), told, counts, stop));
    }
    let mut faults = 0;
    let mut dice = dice.of(CLIENTS);
    while counts.answered.load(Ordering::Relaxed) + counts.refused.load(Ordering::Relaxed) < wanted {
        fail_for_a_while(&server, &mut dice, faults).await;
        faults += 1;
        tokio::time::sleep(Duration::from_millis(dice.word() % 60)).await;
    }
    stop.store(true, Ordering::Relaxed);
    clients.join_all().await;
    // Well again, without a restart.
    assert_eq!(root.batch(&["kept/0"]).await["secrets"]["kept/0"]["data"]["k"], VALUE);
    let events = events_by_request(&server).await;
    let told = told.lock().unwrap().clone();
    for (request, (status, paths, _)) in &told {
        // Unknown is only what was answered with 503: it may have been recorded, and the caller was told nothing.
        let found = events.get(request).copied().unwrap_or(0);
        assert!(found == *paths || *status == 503, "{request}: {status} with {found} events, {paths} expected");
    }
    let receipts: Vec<&str> = told.values().filter_map(|(_, _, receipt)| receipt.as_deref()).collect();
    assert_eq!(server.log().await.verify(&receipts).problems, []);
    println!(
        "{} answered and {} refused under {faults} faults, 0 without their events; {} receipts hold",
        counts.answered.load(Ordering::Relaxed),
        counts.refused.load(Ordering::Relaxed),
        receipts.len()
    );
}

async fn ask(root: Client, stranger: Client, mut dice: Dice, told: Told, counts: Arc<Counts>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let path = format!("kept/{}", dice.word() % 8);
        let began = Instant::now();
        let (answer, paths) = match dice.word() % 5 {
            0 => (root.put(&format!("/v1/secrets/w/{path}"), json!({"data": {"n": 1}})).await, 1),
            1 => (root.post("/v1/secrets/batch", json!({"paths": [path, "none", "w/x"]})).await, 3),
            2 => (stranger.get(&format!("/v1/secrets/{path}")).await, 1),
            3 => (root.delete(&format!("/v1/secrets/w/{path}")).await, 1),
            _ => (root.get(&format!("/v1/secrets/{path}")).await, 1),
        };
        assert!(began.elapsed() < PROMPT, "{:?}", began.elapsed());
        let (id, receipt) = (answer.header("x-request-id").unwrap(), answer.header("x-audit-receipt"));
        let (status, body) = answer.json().await;
        if status == 503 {
            assert!(!body.to_string().contains(VALUE), "{body}");
            counts.refused.fetch_add(1, Ordering::Relaxed);
        } else {
            assert!(receipt.is_some(), "{status} {body}");
            counts.answered.fetch_add(1, Ordering::Relaxed);
        }
        told.lock().unwrap().insert(id, (status, paths, receipt));
    }
}

/// One of the ways in which the log can fail, and its end.
async fn fail_for_a_while(server: &TestServer, dice: &mut Dice, round: usize) {
    let mut database = raw(&server.data_dir).await;
    let pause = Duration::from_millis(dice.word() % 80);
    match round % 6 {
        0 => {
            execute(&mut database, "CREATE TRIGGER no BEFORE INSERT ON audit_log BEGIN SELECT RAISE(ABORT, 'no'); END")
                .await;
            tokio::time::sleep(pause).await;
            execute(&mut database, "DROP TRIGGER no").await;
        }
        1 => {
            execute(&mut database, "ALTER TABLE audit_log RENAME TO hidden").await;
            tokio::time::sleep(pause).await;
            execute(&mut database, "ALTER TABLE hidden RENAME TO audit_log").await;
        }
        2 => {
            // Slow: who need not wait long is served.
            execute(&mut database, "BEGIN IMMEDIATE").await;
            tokio::time::sleep(pause).await;
            execute(&mut database, "ROLLBACK").await;
        }
        3 | 4 => {
            // Unlinked, and put back.
            let name = if round % 6 == 3 { "portcullis.db" } else { "portcullis.db-wal" };
            let (file, aside) = (server.data_dir.join(name), server.scratch().join("aside"));
            drop(database);
            fs::rename(&file, &aside).unwrap();
            tokio::time::sleep(pause).await;
            fs::rename(&aside, &file).unwrap();
        }
        _ => {
            // One row in three.
            let some = "CREATE TRIGGER some BEFORE INSERT ON audit_log WHEN NEW.number % 3 = 0 \
                        BEGIN SELECT RAISE(ABORT, 'some'); END";
            execute(&mut database, some).await;
            tokio::time::sleep(pause).await;
            execute(&mut database, "DROP TRIGGER some").await;
        }
    }
}

/// How many events each request has.
async fn events_by_request(server: &TestServer) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for entry in server.whole_audit("").await {
        if let Some(request) = entry["request_id"].as_str().filter(|_| entry["action"] != Value::Null) {
            *counts.entry(request.to_owned()).or_default() += 1;
        }
    }
    counts
}
