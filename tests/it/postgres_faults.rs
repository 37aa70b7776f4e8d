//! PostgreSQL killed and stopped under writers, its sockets cut anywhere, the vault's clients gone before they hear:
//! nothing acknowledged is lost, no version is given twice, each change has one event, and the vault serves again by
//! itself.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use portcullis::{domain::Clock, server::SystemClock};
use serde_json::json;
use sqlx::Row;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
};

use crate::{
    campaign::{Dice, count, seed},
    ledger::{Ledger, PATIENCE},
    postgres::{Cluster, connect, url_at},
    support::{Client, Options, TestServer},
    witness::{Events, Place, Seen},
};

const WRITERS: usize = 8;
/// How long the vault may take until it serves again.
const SOON: Duration = Duration::from_secs(15);

/// What happens in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Cuts,
    Kill,
    Stop,
    HangUps,
}

/// A wire between the vault and its database.
struct Wire {
    port: u16,
    /// How many bytes a connection carries at most before it is cut; 0: any number.
    budget: Arc<AtomicU64>,
}

impl Wire {
    async fn to(port: u16, dice: Dice) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Self { port: listener.local_addr().unwrap().port(), budget: Arc::new(AtomicU64::new(0)) };
        tokio::spawn(carry_all(listener, port, Arc::clone(&wire.budget), dice));
        wire
    }
}

async fn carry_all(listener: TcpListener, port: u16, budget: Arc<AtomicU64>, mut dice: Dice) {
    while let Ok((near, _)) = listener.accept().await {
        let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
        // One that was opened in peace has its budget too, for the time when it is war.
        let share = dice.word() % 1_000;
        near.set_zero_linger().unwrap();
        far.set_zero_linger().unwrap();
        let carried = Arc::new(AtomicU64::new(0));
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        let meter = Meter { budget: Arc::clone(&budget), carried, share };
        let there = carry(near_in, far_out, meter.clone());
        let back = carry(far_in, near_out, meter);
        tokio::spawn(async move {
            // With the first of both ends the whole connection.
            tokio::select! { () = there => (), () = back => () }
        });
    }
}

/// What a connection has carried, and when it is cut.
#[derive(Clone)]
struct Meter {
    budget: Arc<AtomicU64>,
    /// Since the cutting began.
    carried: Arc<AtomicU64>,
    /// In thousandths of the budget.
    share: u64,
}

impl Meter {
    /// How many of these bytes still get through.
    fn admits(&self, bytes: usize) -> usize {
        let budget = self.budget.load(Relaxed);
        if budget == 0 {
            self.carried.store(0, Relaxed);
            return bytes;
        }
        let before = self.carried.fetch_add(bytes as u64, Relaxed);
        let left = (budget * self.share / 1_000).saturating_sub(before);
        bytes.min(usize::try_from(left).unwrap())
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, meter: Meter) {
    let mut bytes = vec![0; 16_384];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        let admitted = meter.admits(read);
        if to.write_all(&bytes[..admitted]).await.is_err() || admitted < read {
            return;
        }
    }
}

struct Bench {
    cluster: Cluster,
    wire: Wire,
    server: TestServer,
}

impl Bench {
    async fn start(dice: &Dice) -> Option<Self> {
        let cluster = Cluster::start()?;
        let wire = Wire::to(cluster.port(), dice.of(1_000)).await;
        let database_url = Some(url_at(wire.port));
        let server = TestServer::start(Options { database_url, ..Options::default() }).await;
        Some(Self { cluster, wire, server })
    }

    /// Lets the fault happen under the writers.
    async fn suffer(&self, fault: Fault, ledgers: Vec<Ledger>, dice: &mut Dice) -> Vec<Ledger> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for (n, ledger) in ledgers.into_iter().enumerate() {
            let (client, stop) = (self.server.root(), Arc::clone(&stop));
            match fault {
                Fault::HangUps => writers.spawn(hang_up(ledger, client, dice.of(n))),
                _ => writers.spawn(ledger.work(client, stop)),
            };
        }
        tokio::time::sleep(Duration::from_micros(50_000 + dice.word() % 150_000)).await;
        match fault {
            Fault::Cuts => {
                self.wire.budget.store(1_000 + dice.word() % 30_000, Relaxed);
                tokio::time::sleep(Duration::from_millis(300)).await;
                self.wire.budget.store(0, Relaxed);
            }
            Fault::Kill => self.cluster.kill(),
            Fault::Stop => self.cluster.halt(),
            Fault::HangUps => (),
        }
        if matches!(fault, Fault::Kill | Fault::Stop) {
            tokio::time::sleep(Duration::from_micros(dice.word() % 300_000)).await;
            self.cluster.resume();
        }
        stop.store(true, Relaxed);
        writers.join_all().await
    }

    /// Waits until the vault serves, and until nothing of what was begun can still be finished.
    async fn is_quiet(&self, fault: Fault) -> Duration {
        let began = Instant::now();
        let root = self.server.root();
        while root.put("/v1/secrets/again", json!({"data": {}})).await.status() >= 300 {
            assert!(began.elapsed() < SOON, "the vault does not serve again");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let served = began.elapsed();
        if fault == Fault::HangUps {
            // The vault goes on with what nobody waits for, and gives it up after two seconds.
            tokio::time::sleep(Duration::from_millis(2_200)).await;
        }
        let mut database = connect(&self.cluster.url()).await;
        let open = "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid()
                    AND backend_type = 'client backend'";
        while sqlx::query(open).fetch_one(&mut database).await.unwrap().get::<i64, _>(0) > 0 {
            assert!(began.elapsed() < SOON * 2, "a transaction stays open");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        served
    }
}

/// Asks, and is gone before the answer comes, at some point.
async fn hang_up(mut ledger: Ledger, client: Client, mut dice: Dice) -> Ledger {
    for _ in 0..10 {
        if !ledger.step(&client, PATIENCE).await {
            return ledger;
        }
    }
    while ledger.step(&client, Duration::from_micros(dice.word() % 20_000)).await {}
    ledger
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_fails_loses_and_doubles_nothing() {
    const FAULTS: [Fault; 5] = [Fault::Cuts, Fault::Kill, Fault::HangUps, Fault::Cuts, Fault::Stop];
    let (rounds, mut dice) = (count("PORTCULLIS_POSTGRES_ROUNDS", 50), Dice::new(seed()));
    let Some(bench) = Bench::start(&dice).await else { return };
    let place = Place::Postgres(bench.cluster.url());
    let mut ledgers = Ledger::several(WRITERS, &dice);
    let (mut answered, mut unanswered, mut slowest) = (0, 0, Duration::ZERO);
    for round in 0..rounds {
        let fault = FAULTS[round % FAULTS.len()];
        let from = SystemClock.now().to_string();
        ledgers = bench.suffer(fault, ledgers, &mut dice).await;
        slowest = slowest.max(bench.is_quiet(fault).await);
        let seen = Seen::look(&place, &bench.server.root()).await;
        let events = Events::since(&bench.server.auditor(), &from).await;
        for ledger in &mut ledgers {
            let (said, took_place) = ledger.settle(&seen, &events);
            answered += said.len();
            unanswered += took_place;
        }
    }
    println!(
        "{rounds} rounds passed, 0 failed: {answered} answers and {unanswered} unanswered changes in the log; served \
         again after {slowest:?} at worst"
    );
}
