//! The program is killed at random instants under 32 writers, again and again on the same data. Whatever it
//! acknowledged is there when it is back, nothing is half done, all of it is in the audit log; and it is soon back.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use portcullis::{
    audit::Verifier,
    domain::{AuditPlace, Clock},
    server::SystemClock,
};
use tokio::task::JoinSet;

use crate::{
    campaign::{Dice, count, seed},
    ledger::{Ledger, Said},
    process::{Process, Running},
    witness::{Events, Place, Seen},
};

const WRITERS: usize = 32;
/// How many kills one data directory lives through.
const OF_ONE: usize = 300;
/// How many of them until the whole audit log is looked at again.
const WHOLE: usize = 50;

#[derive(Default)]
struct Tally {
    kills: usize,
    /// Kills before the program had answered anybody.
    early: usize,
    answered: usize,
    /// Changes that were not answered, and stand all the same.
    unanswered: usize,
    /// How long each start took until somebody with a token was answered.
    starts: Vec<Duration>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kill_loses_or_splits_anything() {
    let kills = count("PORTCULLIS_CRASHES", 300);
    let dice = Dice::new(seed());
    let mut tally = Tally::default();
    while tally.kills < kills {
        one_vault(OF_ONE.min(kills - tally.kills), dice.of(tally.kills), &mut tally).await;
    }
    tally.starts.sort_unstable();
    let at = |percent: usize| tally.starts[(tally.starts.len() - 1) * percent / 100];
    println!(
        "{} kills passed, the chain of the audit log whole after each, 0 failed ({} of them during a start): {} answers and {} unanswered changes in the log; \
         answers {:?} after exec at p50, {:?} at p99, {:?} at worst",
        tally.kills,
        tally.early,
        tally.answered,
        tally.unanswered,
        at(50),
        at(99),
        at(100)
    );
    // The goal is 500 ms at p99 on a machine that does nothing else.
    assert!(at(50) < Duration::from_secs(2) && at(99) < Duration::from_secs(10), "it is not soon back");
}

async fn one_vault(kills: usize, mut dice: Dice, tally: &mut Tally) {
    let vault = Process::new().await;
    let place = Place::Sqlite(vault.data_dir());
    let mut ledgers = Ledger::several(WRITERS, &dice);
    let mut ever: Vec<Said> = Vec::new();
    let began = SystemClock.now().to_string();
    let mut from = began.clone();
    let mut process = start(&vault, tally).await;
    let mut chain = Chain::default();
    for kill in 1..=kills {
        ledgers = under_writers(&vault, process, ledgers, Duration::from_micros(dice.word() % 80_000)).await;
        if dice.percent(10) {
            let process = vault.spawn(&[]);
            tokio::time::sleep(Duration::from_micros(dice.word() % 40_000)).await;
            process.kill();
            tally.early += 1;
        }
        process = start(&vault, tally).await;
        chain.read_on(&vault).await;
        let seen = Seen::look(&place, &vault.client("user:root")).await;
        let events = Events::since(&vault.auditor(), &from).await;
        from = SystemClock.now().to_string();
        for ledger in &mut ledgers {
            let (said, unanswered) = ledger.settle(&seen, &events);
            tally.unanswered += unanswered;
            tally.answered += said.len();
            ever.extend(said);
        }
        if kill % WHOLE == 0 || kill == kills {
            let events = Events::since(&vault.auditor(), &began).await;
            for said in &ever {
                events.tell(said);
            }
        }
        tally.kills += 1;
    }
}

/// The audit log's chain, read on after each recovery, and found to be whole.
#[derive(Default)]
struct Chain(Option<(Verifier, AuditPlace)>);

impl Chain {
    async fn read_on(&mut self, vault: &Process) {
        let before = self.0.as_ref().map_or(AuditPlace { chain: 0, number: 0 }, |(_, last)| *last);
        let log = vault.server.log_after(before).await;
        let last = log.rows.last().map_or(before, |row| row.place);
        let fresh = || Verifier::new(Arc::clone(&log.keys), &[], &[]);
        let mut verifier = self.0.take().map_or_else(fresh, |(verifier, _)| verifier);
        for row in &log.rows {
            verifier.row(row);
        }
        assert_eq!(verifier.clone().finish().problems, [], "a false alarm after a kill");
        self.0 = Some((verifier, last));
    }
}

async fn start(vault: &Process, tally: &mut Tally) -> Running {
    let began = Instant::now();
    let process = vault.spawn(&[]);
    vault.answers().await;
    tally.starts.push(began.elapsed());
    process
}

/// Lets all write for a while, and kills the program under them.
async fn under_writers(vault: &Process, process: Running, ledgers: Vec<Ledger>, pause: Duration) -> Vec<Ledger> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for ledger in ledgers {
        writers.spawn(ledger.work(vault.client("user:root"), Arc::clone(&stop)));
    }
    tokio::time::sleep(pause).await;
    process.kill();
    writers.join_all().await
}
