//! The program with its disk failing under it: every k-th call on the database's files, in every way that a call can
//! fail. Nothing that was acknowledged is lost, nothing is ever wrong, nobody waits long.
//!
//! The calls fail in a library (`io_faults.c`) that stands between the program and the system.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use portcullis::{domain::Clock, server::SystemClock};
use serde_json::json;

use crate::{
    campaign::{Dice, count, seed},
    ledger::{Ledger, PATIENCE},
    process::{Process, Running},
    support::Client,
    witness::{Events, Place, Seen},
};

/// How many requests the workload has.
const REQUESTS: usize = 200;
/// How many come after what failed: of a sync, too few for the log to be emptied into the database once more, which heals
/// all.
const AFTERWARDS: usize = 20;
/// How many secrets they are about.
const SECRETS: usize = 5;
/// What a request may take, with a disk that fails.
const PROMPT: Duration = Duration::from_secs(4);
/// How long the vault may take until it serves again.
const SOON: Duration = Duration::from_secs(4);

/// How calls fail. The numbers are those of `io_faults.c`.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Any call: `EIO`.
    Any = 1,
    /// Whatever needs room: `ENOSPC`.
    NoSpace = 2,
    /// Any call: `EINTR`.
    Interrupted = 3,
    /// Reads and writes: half of it.
    Short = 4,
    /// What makes things durable: `EIO`.
    Sync = 5,
}

const KINDS: [Kind; 5] = [Kind::Any, Kind::NoSpace, Kind::Interrupted, Kind::Short, Kind::Sync];

/// The library, and the numbers by which it is told what is to fail.
struct Saboteur {
    library: PathBuf,
    control: File,
    file: PathBuf,
}

impl Saboteur {
    fn new(scratch: &Path) -> Self {
        let (library, file) = (scratch.join("io_faults.so"), scratch.join("control"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/io_faults.c");
        let compiled = Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
        assert!(compiled.unwrap().success(), "the library cannot be compiled");
        fs::write(&file, [0; 40]).unwrap();
        let control = fs::OpenOptions::new().read(true).write(true).open(&file).unwrap();
        Self { library, control, file }
    }

    fn environment(&self, data_dir: &Path) -> [(&'static str, String); 3] {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        [
            ("LD_PRELOAD", text(&self.library)),
            ("FAULTS_CONTROL", text(&self.file)),
            ("FAULTS_PREFIX", text(&data_dir.join("portcullis.db"))),
        ]
    }

    /// From now on, the calls that are of this kind and have these numbers fail.
    fn arm(&self, kind: Kind, at: u64, until: u64) {
        let numbers = [0, at, until, 0, 0].map(u64::to_le_bytes).concat();
        self.control.write_all_at(&numbers, 0).unwrap();
        self.control.write_all_at(&(kind as u64).to_le_bytes(), 0).unwrap();
    }

    /// Nothing fails any more. Answers how many calls there were of the kind, and how many failed.
    fn disarm(&self) -> (u64, u64) {
        self.control.write_all_at(&[0; 8], 0).unwrap();
        self.counts()
    }

    fn counts(&self) -> (u64, u64) {
        let mut numbers = [0; 16];
        self.control.read_exact_at(&mut numbers, 24).unwrap();
        let number = |at: usize| u64::from_le_bytes(numbers[at..at + 8].try_into().unwrap());
        (number(0), number(8))
    }
}

struct Bench {
    vault: Process,
    saboteur: Saboteur,
    place: Place,
    ledgers: Vec<Ledger>,
    /// When what is not yet settled began.
    from: String,
    process: Option<Running>,
}

impl Bench {
    async fn new(dice: &Dice) -> Self {
        let vault = Process::new().await;
        let saboteur = Saboteur::new(vault.scratch());
        let place = Place::Sqlite(vault.data_dir());
        let from = SystemClock.now().to_string();
        Self { vault, saboteur, place, ledgers: Ledger::several(SECRETS, dice), from, process: None }
    }

    fn client(&self) -> Client {
        self.vault.client("user:root")
    }

    /// Starts the program with the library in between.
    async fn start(&mut self) {
        self.process = Some(self.vault.spawn(&self.saboteur.environment(&self.vault.data_dir())));
        self.vault.answers().await;
    }

    /// Asks for one thing after the other; answers how many were not done.
    async fn work(&mut self, requests: usize) -> usize {
        self.work_beyond(u64::MAX, requests).await
    }

    /// The same, and only a little further once so many calls were made.
    async fn work_beyond(&mut self, calls: u64, requests: usize) -> usize {
        let client = self.client();
        let (mut undone, mut afterwards) = (0, 0);
        for n in 0..requests {
            let asked = Instant::now();
            let answered = self.ledgers[n % SECRETS].step(&client, PATIENCE).await;
            assert!(asked.elapsed() < PROMPT, "an answer took {:?}", asked.elapsed());
            undone += usize::from(!answered);
            afterwards += usize::from(self.saboteur.counts().0 > calls);
            if afterwards > AFTERWARDS {
                break;
            }
        }
        undone
    }

    /// Whether it writes again by itself.
    async fn serves_again(&self) -> bool {
        let (client, began) = (self.client(), Instant::now());
        while began.elapsed() < SOON {
            if client.put("/v1/secrets/again", json!({"data": {}})).await.status() < 300 {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    /// Kills it, starts it on a disk that works, and looks whether everything is as it was told.
    async fn settle(&mut self) {
        self.process.take().unwrap().kill();
        self.start().await;
        let seen = Seen::look(&self.place, &self.client()).await;
        let events = Events::since(&self.vault.auditor(), &self.from).await;
        self.from = SystemClock.now().to_string();
        for ledger in &mut self.ledgers {
            ledger.settle(&seen, &events);
        }
    }
}

/// How many of the calls of a kind are made to fail, one in each run; all of them with `PORTCULLIS_IO_FAULTS=0`.
fn chosen(calls: u64, dice: &mut Dice) -> Vec<u64> {
    let runs = count("PORTCULLIS_IO_FAULTS", 25) as u64;
    if runs == 0 || calls <= runs {
        return (1..=calls).collect();
    }
    let share = calls.div_ceil(runs);
    (0..runs).map(|n| (n * share + 1 + dice.word() % share).min(calls)).collect()
}

/// Calls of one kind fail, each in a run of its own: nothing is lost, and the vault serves again.
async fn calls_fail(kind: Kind) {
    let mut dice = Dice::new(seed());
    let mut bench = Bench::new(&dice).await;
    bench.start().await;
    bench.saboteur.arm(kind, u64::MAX, u64::MAX);
    assert_eq!(bench.work(REQUESTS).await, 0, "nothing has failed");
    let (calls, _) = bench.saboteur.disarm();
    bench.settle().await;
    let runs = chosen(calls, &mut dice);
    let (mut hit, mut refused) = (0, 0);
    for at in &runs {
        // Now and then the disk does not get better by itself.
        let until = if dice.percent(30) { at + dice.word() % 40 } else { *at };
        bench.saboteur.arm(kind, *at, until);
        refused += bench.work_beyond(until, REQUESTS).await;
        hit += bench.saboteur.disarm().1;
        assert!(bench.serves_again().await, "{kind:?} {at}..={until}: it does not serve again");
        bench.settle().await;
    }
    assert!(hit > 0, "{kind:?}: nothing failed");
    println!("{kind:?}: {} runs of {calls} calls, {hit} failed, {refused} requests refused; 0 runs failed", runs.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_fails_loses_nothing() {
    calls_fail(Kind::Any).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_without_room_loses_nothing() {
    calls_fail(Kind::NoSpace).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_interrupted_loses_nothing() {
    calls_fail(Kind::Interrupted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_does_half_loses_nothing() {
    calls_fail(Kind::Short).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_fails_loses_nothing() {
    calls_fail(Kind::Sync).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_failing_disk_is_refused_or_good() {
    let mut dice = Dice::new(seed());
    let mut bench = Bench::new(&dice).await;
    bench.start().await;
    bench.work(REQUESTS).await;
    bench.settle().await;
    let mut starts = [0, 0];
    for kind in KINDS {
        bench.saboteur.arm(kind, u64::MAX, u64::MAX);
        bench.process.take().unwrap().kill();
        bench.start().await;
        let (calls, _) = bench.saboteur.disarm();
        for at in chosen(calls, &mut dice) {
            bench.process.take().unwrap().kill();
            bench.saboteur.arm(kind, at, at);
            let process = bench.vault.spawn(&bench.saboteur.environment(&bench.vault.data_dir()));
            let good = tokio::select! {
                () = bench.vault.answers() => true,
                () = process.ended() => false,
            };
            bench.saboteur.disarm();
            starts[usize::from(good)] += 1;
            bench.process = Some(process);
            bench.settle().await;
        }
    }
    println!("{} starts were refused, {} were good; 0 were neither", starts[0], starts[1]);
}

/// What the disk has when the power goes: the copies of the library, in the place of the files.
fn cut_the_power(data_dir: &Path) {
    for name in ["portcullis.db", "portcullis.db-wal"] {
        let (file, durable) = (data_dir.join(name), data_dir.join(format!("{name}.durable")));
        fs::remove_file(&file).ok();
        if durable.exists() {
            fs::rename(durable, file).unwrap();
        }
    }
    fs::remove_file(data_dir.join("portcullis.db-shm")).ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_after_a_failed_sync_outlives_the_power() {
    let mut dice = Dice::new(seed());
    let mut bench = Bench::new(&dice).await;
    bench.start().await;
    bench.saboteur.arm(Kind::Sync, u64::MAX, u64::MAX);
    assert_eq!(bench.work(REQUESTS).await, 0, "nothing has failed");
    let (calls, _) = bench.saboteur.disarm();
    let runs = chosen(calls, &mut dice);
    let mut failed = 0;
    for (n, at) in runs.iter().enumerate() {
        // With the program going on, or killed and started again on what the kernel still shows it.
        let goes_on = n % 2 == 0;
        bench.saboteur.arm(Kind::Sync, *at, if goes_on { *at } else { u64::MAX });
        let client = bench.client();
        for n in 0..REQUESTS {
            if !bench.ledgers[n % SECRETS].step(&client, PATIENCE).await && !goes_on {
                break;
            }
        }
        if !goes_on {
            bench.process.take().unwrap().kill();
        }
        failed += bench.saboteur.disarm().1;
        if !goes_on {
            bench.start().await;
        }
        assert_eq!(bench.work(AFTERWARDS).await, 0, "nothing fails any more");
        bench.process.take().unwrap().kill();
        cut_the_power(&bench.vault.data_dir());
        bench.start().await;
        bench.settle().await;
    }
    assert!(failed >= runs.len() as u64 / 2, "syncs do not fail");
    println!("{} power cuts after {failed} failed syncs passed, 0 failed", runs.len());
}
