//! Single bits turned over in the files that a vault leaves on disk. Whoever opens them then gets every secret as it
//! was, or is refused: never a value that was not written there, never a panic, never an end of waiting.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use portcullis::{
    config::Config,
    crypto::{Keyring, RootKey},
    domain::{Clock, Record, SecretPath, TenantId, VersionState},
    policy::{Bounds, Compiler, Policies, Sources},
    server::{SystemClock, SystemEntropy, back_up, restore},
    store::{SecretStore, SqliteStore, StoreResult, Stored},
};
use serde_json::{Value, json};

use crate::{
    campaign::{Dice, count, seed},
    support::TestServer,
};

const SECRETS: usize = 24;
/// When an opening is taken for a hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which files are turned over, what opens them, and how often in a hundred. One more kind is one more line here.
const KINDS: [(&str, Opening, usize); 5] = [
    ("portcullis.db", Opening::Stopped, 49),
    ("portcullis.db-wal", Opening::Killed, 40),
    ("policies/compiled", Opening::Policies, 5),
    ("policies/last-good", Opening::LastGood, 5),
    ("backup", Opening::Backup, 1),
];

/// How what was turned over is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    /// The store of a server that was stopped, and every secret in it.
    Stopped,
    /// The store of one that was killed: all that was written last is in the log.
    Killed,
    /// The store of a server whose database was restored from a backup.
    Backup,
    /// The policies, where no compiler is.
    Policies,
    /// The policies, where their directory is broken.
    LastGood,
}

/// What became of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Right,
    Refused,
    /// As if it were not there.
    Absent,
    /// As it was before the last transaction of all: a log that ends in the middle of that is also what a power cut
    /// leaves, and must open.
    Torn,
    /// As it was at an earlier time: an older version, or not yet deleted.
    Older,
    /// What never was.
    Wrong,
}

/// A vault: its files, and what it held.
struct Fixture {
    server: TestServer,
    killed: Files,
    stopped: Files,
    backup: Files,
    root: RootKey,
    /// The digest of the policies in force.
    policies: String,
    /// What can be read at each path.
    now: BTreeMap<SecretPath, Option<(i64, Value)>>,
    /// What was ever written to it.
    ever: BTreeMap<(SecretPath, i64), Value>,
}

impl Fixture {
    async fn new() -> Self {
        let mut server = TestServer::new().await;
        let mut ever = BTreeMap::new();
        write(&server, 0, &mut ever).await;
        server.restart().await;
        write(&server, 1, &mut ever).await;
        let data = json!({"path": last().as_str(), "of": "last"});
        ever.insert((last(), server.root().store(last().as_str(), data.clone()).await), data);
        let killed = files_of(&server);
        server.stop().await;
        let stopped = files_of(&server);
        server.restart().await;
        let file = server.scratch().join("backup");
        back_up(&configuration(&server.data_dir), &file).await.unwrap();
        let backup = Files::from([("backup".into(), fs::read(file).unwrap())]);
        let mut now = BTreeMap::new();
        for n in 0..SECRETS {
            let path = path(n);
            let body = server.root().batch(&[path.as_str()]).await;
            let found = &body["secrets"][path.as_str()];
            now.insert(path, found["version"].as_i64().map(|version| (version, found["data"].clone())));
        }
        let root = root_key(&server);
        let broken = server.scratch().join("broken");
        fs::create_dir_all(&broken).unwrap();
        fs::write(broken.join("policies.toml"), "[[policy").unwrap();
        let (_, status) = server.root().get("/v1/policies/status").await.json().await;
        let policies = status["digest"].as_str().unwrap().to_owned();
        Self { server, killed, stopped, backup, root, policies, now, ever }
    }
}

/// Where the last of all writes goes.
fn last() -> SecretPath {
    path(0)
}

fn root_key(server: &TestServer) -> RootKey {
    RootKey::load_or_create(&server.data_dir.join("root.key"), &SystemEntropy).unwrap().0
}

fn path(n: usize) -> SecretPath {
    SecretPath::parse(&format!("bits/{n}")).unwrap()
}

/// One round of writes: new versions, deletions, destroyed versions.
async fn write(server: &TestServer, round: usize, ever: &mut BTreeMap<(SecretPath, i64), Value>) {
    let root = server.root();
    for n in (0..SECRETS).filter(|n| round == 1 || n % 2 == 0) {
        for turn in 0..=n % 3 {
            let data = json!({"path": path(n).as_str(), "of": [round, turn], "pad": "x".repeat(n * 20)});
            let version = root.store(path(n).as_str(), data.clone()).await;
            ever.insert((path(n), version), data);
        }
    }
    if round == 1 {
        for n in (3..SECRETS).step_by(6) {
            assert_eq!(root.delete(&format!("/v1/secrets/{}", path(n).as_str())).await.status(), 200);
        }
        for n in (5..SECRETS).step_by(6) {
            let versions = ever.keys().filter(|(of, _)| *of == path(n)).map(|(_, version)| *version).max();
            let body = json!({"versions": [versions.unwrap()]});
            assert_eq!(root.post(&format!("/v1/destroy/{}", path(n).as_str()), body).await.status(), 200);
        }
    }
}

/// Opens a store and reads every secret. What cannot be had at all is an error.
async fn read_all(fixture: &Fixture, directory: &Path) -> StoreResult<BTreeMap<SecretPath, Fate>> {
    let store = SqliteStore::open(directory, 1 << 20).await?;
    let fates = read_each(fixture, &store).await;
    store.close().await;
    fates
}

async fn read_each(fixture: &Fixture, store: &SqliteStore) -> StoreResult<BTreeMap<SecretPath, Fate>> {
    let refused = |path: &SecretPath| (path.clone(), Fate::Refused);
    // A server does not start with a root key that is not the vault's.
    if store.root_fingerprint(&fixture.root.fingerprint()).await? != fixture.root.fingerprint() {
        return Ok(fixture.now.keys().map(refused).collect());
    }
    let tenant = TenantId::default_tenant();
    let keyring = Keyring::new(root_key(&fixture.server), Arc::new(SystemEntropy));
    if keyring.take_in(&tenant, &store.tenant_keys(&tenant).await?).is_err() {
        return Ok(fixture.now.keys().map(refused).collect());
    }
    let wanted: Vec<_> = fixture.now.keys().map(|path| (path.clone(), None)).collect();
    let fate_of = |(path, stored): (&SecretPath, Stored)| {
        (
            path.clone(),
            stored.map_or(Fate::Refused, |record| fate(fixture, &keyring, path, record.map(Arc::unwrap_or_clone))),
        )
    };
    if let Ok(found) = store.get_many(&tenant, &wanted).await {
        return Ok(fixture.now.keys().zip(found).map(fate_of).collect());
    }
    // What is whole can be had by itself.
    let mut fates = BTreeMap::new();
    for one in wanted {
        let found = store.get_many(&tenant, std::slice::from_ref(&one)).await;
        fates.extend(found.ok().and_then(|mut found| Some(fate_of((&one.0, found.pop()?)))).or(Some(refused(&one.0))));
    }
    Ok(fates)
}

fn fate(fixture: &Fixture, keyring: &Keyring, path: &SecretPath, record: Option<Record>) -> Fate {
    let expected = &fixture.now[path];
    let live = record.filter(|record| record.head.deleted.is_none()).and_then(|record| record.version);
    let Some(version) = live.filter(|version| version.state(SystemClock.now()) == VersionState::Live) else {
        return if expected.is_none() { Fate::Right } else { Fate::Absent };
    };
    let Some(sealed) = &version.sealed else { return Fate::Refused };
    let Ok(value) = keyring.open(&TenantId::default_tenant(), path, version.version, sealed) else {
        return Fate::Refused;
    };
    let value: Value = serde_json::from_slice(value.expose()).unwrap_or_default();
    let number = version.version.get();
    match expected {
        Some((newest, right)) if *newest == number && *right == value => Fate::Right,
        Some((newest, _)) if *path == last() && *newest == number + 1 => Fate::Torn,
        _ if fixture.ever.get(&(path.clone(), number)) == Some(&value) => Fate::Older,
        _ => Fate::Wrong,
    }
}

async fn open_store(fixture: &Fixture, opening: Opening, directory: &Path) -> Option<BTreeMap<SecretPath, Fate>> {
    if opening == Opening::Backup {
        let root = root_key(&fixture.server);
        restore(&configuration(directory), root, &directory.join("backup"), false).await.ok()?;
    }
    read_all(fixture, directory).await.ok()
}

fn configuration(data_dir: &Path) -> Config {
    let data_dir = data_dir.to_str().unwrap().to_owned();
    Config::load(None, [("PORTCULLIS__STORE__DATA_DIR".to_owned(), data_dir)]).unwrap()
}

/// Opens the policies: those that were in force, or none.
fn open_policies(fixture: &Fixture, directory: &Path, whence: &Path) -> Fate {
    let sources = Sources {
        directory: whence.to_owned(),
        // What is not remembered cannot be had.
        compiler: Compiler::Process(Bounds { program: "/bin/false".into(), time: PATIENCE, memory: 1 << 30 }),
        memory: Some((directory.join("policies"), fixture.root.policy_memory_key())),
    };
    match Policies::open(sources, SystemClock.now()) {
        Ok(policies) if policies.current().digest == fixture.policies => Fate::Right,
        Ok(_) => Fate::Wrong,
        Err(_) => Fate::Refused,
    }
}

/// Files by their names below the data directory.
type Files = BTreeMap<PathBuf, Vec<u8>>;

fn files_of(server: &TestServer) -> Files {
    let mut files = Files::new();
    files_below(&server.data_dir, Path::new(""), &mut files);
    // The index of the log is memory of the processes that have it open.
    files.retain(|name, _| name != Path::new("portcullis.db-shm"));
    files
}

fn files_below(directory: &Path, name: &Path, found: &mut Files) {
    for entry in fs::read_dir(directory.join(name)).unwrap() {
        let entry = entry.unwrap();
        let name = name.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            files_below(directory, &name, found);
        } else if entry.file_type().unwrap().is_file() {
            found.insert(name.clone(), fs::read(directory.join(name)).unwrap());
        }
    }
}

/// What one turned bit led to.
fn turn(fixture: &Fixture, kind: (&str, Opening), bit: usize, directory: &Path) -> Vec<Fate> {
    let (name, opening) = kind;
    let files = match opening {
        Opening::Stopped => &fixture.stopped,
        Opening::Backup => &fixture.backup,
        _ => &fixture.killed,
    };
    let of_kind = files.iter().filter(|(file, _)| file.starts_with(name));
    let mut at = bit % (of_kind.map(|(_, bytes)| bytes.len()).sum::<usize>() * 8);
    for (file, bytes) in files {
        let is_of_policies = matches!(opening, Opening::Policies | Opening::LastGood);
        if file.starts_with("policies") != is_of_policies {
            continue;
        }
        let mut bytes = bytes.clone();
        if file.starts_with(name) {
            if at < bytes.len() * 8 {
                bytes[at / 8] ^= 1 << (at % 8);
                at = usize::MAX;
            } else if at != usize::MAX {
                at -= bytes.len() * 8;
            }
        }
        fs::create_dir_all(directory.join(file).parent().unwrap()).unwrap();
        fs::write(directory.join(file), bytes).unwrap();
    }
    match opening {
        Opening::Stopped | Opening::Killed | Opening::Backup => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let read = runtime.block_on(tokio::time::timeout(PATIENCE, open_store(fixture, opening, directory)));
            let read = read.unwrap_or_else(|_| panic!("{name}: with bit {bit} turned it hangs"));
            read.map_or(vec![Fate::Refused], |fates| fates.into_values().collect())
        }
        Opening::Policies => vec![open_policies(fixture, directory, &fixture.server.scratch().join("policies"))],
        Opening::LastGood => vec![open_policies(fixture, directory, &fixture.server.scratch().join("broken"))],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_turned_bit_is_taken_for_something_else() {
    let (flips, dice) = (count("PORTCULLIS_BIT_FLIPS", 8_000), Dice::new(seed()));
    let fixture = Arc::new(Fixture::new().await);
    let workers: Vec<_> = (0..2)
        .map(|n| {
            let (fixture, dice) = (Arc::clone(&fixture), dice.of(n));
            tokio::task::spawn_blocking(move || flip_many(&fixture, flips / 2, dice, n))
        })
        .collect();
    let mut tally = Tally::new();
    for worker in workers {
        for (key, number) in worker.await.unwrap() {
            *tally.entry(key).or_default() += number;
        }
    }
    for ((kind, fate), number) in &tally {
        println!("{kind}: {number} times {fate:?}");
    }
    let bad: usize = tally.iter().filter(|((_, fate), _)| *fate > Fate::Torn).map(|(_, number)| number).sum();
    println!("{flips} flips, {bad} of them taken for something else");
    assert_eq!(bad, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declaration_that_is_no_text_is_refused() {
    let fixture = Arc::new(Fixture::new().await);
    let database = &fixture.stopped[Path::new("portcullis.db")];
    let declared = |at: &usize| {
        [" BLOB", " TEXT", " BIGINT", " INTEGER"].iter().any(|kind| database[*at..].starts_with(kind.as_bytes()))
    };
    let bits: Vec<_> = (0..database.len()).filter(declared).map(|at| (at + 2) * 8 + 7).collect();
    assert!(bits.len() > 10);
    let turned = Arc::clone(&fixture);
    let fates = tokio::task::spawn_blocking(move || {
        let fates_of = |bit: &usize| {
            let directory = turned.server.scratch().join(format!("declared-{bit}"));
            turn(&turned, ("portcullis.db", Opening::Stopped), *bit, &directory)
        };
        bits.iter().flat_map(fates_of).collect::<Vec<_>>()
    });
    assert!(fates.await.unwrap().iter().all(|fate| *fate == Fate::Refused));
}

#[tokio::test]
async fn a_log_that_is_cut_anywhere_opens() {
    let (cuts, mut dice) = (count("PORTCULLIS_CUTS", 200), Dice::new(seed()));
    let fixture = Fixture::new().await;
    for cut in 0..cuts {
        let directory = fixture.server.scratch().join(format!("cut-{cut}"));
        fs::create_dir_all(&directory).unwrap();
        let log = &fixture.killed[Path::new("portcullis.db-wal")];
        fs::write(directory.join("portcullis.db"), &fixture.killed[Path::new("portcullis.db")]).unwrap();
        fs::write(directory.join("portcullis.db-wal"), &log[..dice.below(log.len())]).unwrap();
        let fates = read_all(&fixture, &directory).await.unwrap();
        let odd = fates.iter().find(|(_, fate)| matches!(fate, Fate::Wrong | Fate::Refused));
        assert!(odd.is_none(), "{odd:?}");
    }
    println!("{cuts} cuts passed, 0 failed");
}

/// How often what became of what.
type Tally = BTreeMap<(&'static str, Fate), usize>;

fn flip_many(fixture: &Fixture, flips: usize, mut dice: Dice, worker: usize) -> Tally {
    let mut tally = Tally::new();
    for n in 0..flips {
        let mut share = dice.below(100);
        let kind = KINDS.iter().find(|(.., weight)| {
            let found = share < *weight;
            share = share.saturating_sub(*weight);
            found
        });
        let (name, opening, _) = *kind.unwrap();
        let bit = usize::try_from(dice.word() >> 8).unwrap();
        // A place of its own: SQLite may still be closing what it could not open at the last one.
        let directory = fixture.server.scratch().join(format!("turned-{worker}-{n}"));
        let fates = turn(fixture, (name, opening), bit, &directory);
        fs::remove_dir_all(&directory).ok();
        // A flip is as bad as the worst that it does.
        let worst = fates.into_iter().max().unwrap();
        if worst > Fate::Torn {
            println!("{name}: bit {bit} is {worst:?}");
        }
        *tally.entry((name, worst)).or_default() += 1;
    }
    tally
}
