//! What every store must do, written once, run on SQLite and on PostgreSQL.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
};

use portcullis::{
    audit::{AuditChain, AuditKeys, CHECKPOINT, Note, Verifier},
    domain::{
        AuditOrder, AuditPlace, AuditRow, AuditScan, Head, KeyStock, MaskedKey, Metadata, MetadataText, Record,
        SealedValue, SecretPath, SecretType, StoredAuditRow, TenantId, Timestamp, Version, WrappedDataKey, WrappedKey,
    },
    server::SystemClock,
    store::{
        Change, ChangeRequest, Committed, DamagedRow, KeyChange, KeyChangeRequest, ListScan, PostgresStore, Put,
        Refusal, Seal, SecretStore, SqliteStore, StoreError, Stored,
    },
};
use sqlx::{AssertSqlSafe, ConnectOptions, Row, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use tokio::{sync::Barrier, task::JoinSet};

use crate::postgres;

/// What the audit log's keys hang from.
const AUDIT_SEED: [u8; 32] = [5; 32];

/// A store, with a way round it.
struct Bench {
    store: Option<Arc<dyn SecretStore>>,
    place: Place,
}

/// How many bytes of records are kept in memory, where some are.
const CACHE: u64 = 1 << 20;

/// Where, and how many bytes of records are kept in memory.
enum Place {
    Sqlite(TempDir, u64),
    Postgres(String, u64),
}

impl Bench {
    async fn sqlite() -> Self {
        Self::at(Place::Sqlite(tempfile::tempdir().unwrap(), 0)).await
    }

    async fn postgres(cache: u64) -> Option<Self> {
        Some(Self::at(Place::Postgres(postgres::database().await?, cache)).await)
    }

    /// The tenant has the key that the tests' seal names.
    async fn at(place: Place) -> Self {
        let bench = Self { store: Some(place.open().await), place };
        assert_eq!(bench.store().root_fingerprint(ROOT).await.unwrap(), ROOT);
        bench.change_keys(add(&tenant(), 1, b"first")).await.unwrap();
        bench
    }

    async fn change_keys(&self, change: KeyChange) -> Result<u64, StoreError> {
        self.store().change_keys(KeyChangeRequest { change, witness: None }).await.map(|(changed, _)| changed)
    }

    fn store(&self) -> Arc<dyn SecretStore> {
        Arc::clone(self.store.as_ref().unwrap())
    }

    async fn reopen(&mut self) {
        // SQLite's lock is held as long as the store lives.
        self.store.take().unwrap().close().await;
        self.store = Some(self.place.open().await);
    }

    /// Runs statements over a connection that is not the store's, in one transaction.
    async fn sql(&self, sql: &str) {
        self.place.sql(sql).await;
    }

    /// The first column, as text.
    async fn texts(&self, sql: &str) -> Vec<Option<String>> {
        match &self.place {
            Place::Sqlite(directory, _) => {
                let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut raw_sqlite(directory).await).await.unwrap();
                rows.iter().map(|row| row.get(0)).collect()
            }
            Place::Postgres(url, _) => {
                let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut postgres::connect(url).await).await.unwrap();
                rows.iter().map(|row| row.get(0)).collect()
            }
        }
    }

    async fn count(&self, table: &str) -> i64 {
        let count = self.texts(&format!("SELECT CAST(count(*) AS TEXT) FROM {table}")).await;
        count[0].as_ref().unwrap().parse().unwrap()
    }
}

impl Place {
    async fn open(&self) -> Arc<dyn SecretStore> {
        match self {
            Self::Sqlite(directory, cache) => chained(SqliteStore::open(directory.path(), *cache).await.unwrap()).await,
            Self::Postgres(url, cache) => chained(PostgresStore::connect(url, 10, *cache).await.unwrap()).await,
        }
    }

    async fn sql(&self, sql: &str) {
        let sql = format!("BEGIN; {sql}; COMMIT");
        match self {
            Self::Sqlite(directory, _) => {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut raw_sqlite(directory).await).await.unwrap();
            }
            Self::Postgres(url, _) => {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut postgres::connect(url).await).await.unwrap();
            }
        }
    }
}

/// A store that has started its log.
async fn chained(store: impl SecretStore + 'static) -> Arc<dyn SecretStore> {
    store
        .start_log(Arc::new(AuditChain::new(Arc::new(AuditKeys::new(&AUDIT_SEED)), Arc::new(SystemClock))))
        .await
        .unwrap();
    Arc::new(store)
}

async fn raw_sqlite(directory: &TempDir) -> SqliteConnection {
    SqliteConnectOptions::new().filename(directory.path().join("portcullis.db")).connect().await.unwrap()
}

/// The fingerprint of the tests' root key.
const ROOT: &[u8] = b"root";

fn add(tenant: &TenantId, generation: u32, wrapped: &[u8]) -> KeyChange {
    let key = WrappedKey { generation, wrapped: wrapped.to_vec() };
    KeyChange::Add { tenant: tenant.clone(), key, root: ROOT.to_vec() }
}

fn tenant() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn path(text: &str) -> SecretPath {
    SecretPath::parse(text).unwrap()
}

fn version(number: i64) -> Version {
    Version::new(number).unwrap()
}

const fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

/// What the tests' seal makes of a version.
fn sealed(version: Version) -> SealedValue {
    let number = version.get().to_be_bytes().to_vec();
    let wrapped_key = [&[0, 255][..], &number].concat();
    SealedValue { key_generation: 1, wrapped_key, ciphertext: number, masked_key: MaskedKey::default() }
}

fn put() -> Put {
    let seal: Seal = Box::new(|version| Some(sealed(version)));
    Put {
        secret_type: None,
        metadata: None,
        expires_at: None,
        max_versions: None,
        expected_version: None,
        source: None,
        seal,
    }
}

fn expecting(expected: i64) -> Change {
    Change::Put(Put { expected_version: Some(expected), ..put() })
}

fn metadata(owner: &str) -> MetadataText {
    MetadataText::from(&Metadata { owner: Some(owner.to_owned()), ..Metadata::default() })
}

fn audit_row(body: &[u8]) -> AuditRow {
    AuditRow {
        at: at(1),
        tenant: Some(tenant()),
        identity_id: Some("user:u".to_owned()),
        identity_type: Some(Cow::Borrowed("user")),
        action: Cow::Borrowed("write"),
        source_ip: None,
        request_id: "req_1".to_owned(),
        events: 1,
        body: body.to_vec(),
    }
}

fn request(place: &str, now: i64, change: Change) -> ChangeRequest {
    // The audit row's body says what its change came to.
    let told = place.to_owned();
    let witness = move |outcome: &Result<Committed, Refusal>| {
        let word = match outcome {
            Ok(committed) => format!("{told} {}", committed.head.latest),
            Err(refusal) => format!("{told} {refusal:?}"),
        };
        audit_row(word.as_bytes())
    };
    ChangeRequest {
        tenant: tenant(),
        path: path(place),
        by: "user:u".into(),
        at: at(now),
        change,
        witness: Box::new(witness),
    }
}

impl Bench {
    async fn change(&self, place: &str, now: i64, change: Change) -> Result<Committed, Refusal> {
        self.store().commit(request(place, now, change)).await.unwrap().0
    }

    async fn put(&self, place: &str) -> i64 {
        self.change(place, 10, Change::Put(put())).await.unwrap().head.latest.get()
    }

    async fn get(&self, place: &str, pinned: Option<i64>) -> Option<Record> {
        let wanted = [(path(place), pinned.map(version))];
        self.store().get_many(&tenant(), &wanted).await.unwrap().pop().unwrap().unwrap().map(Arc::unwrap_or_clone)
    }

    async fn listed(&self, scan: &ListScan, now: i64) -> Vec<String> {
        let records = self.store().list(&tenant(), scan, at(now)).await.unwrap();
        records.into_iter().map(|record| record.head.path.as_str().to_owned()).collect()
    }

    /// The rows of the audit log in the order of their chain; found to be whole.
    async fn chained(&self) -> Vec<StoredAuditRow> {
        let rows = self.store().audit_chain(AuditPlace { chain: 0, number: 0 }, 10_000).await.unwrap();
        let rows: Vec<_> = rows.into_iter().map(Result::unwrap).collect();
        let mut verifier = Verifier::new(Arc::new(AuditKeys::new(&AUDIT_SEED)), &[], &[]);
        for row in &rows {
            verifier.row(row);
        }
        assert_eq!(verifier.finish().problems, []);
        rows
    }

    /// The bodies of the tenant's audit log, oldest first.
    async fn audited(&self) -> Vec<String> {
        let rows = self.chained().await.into_iter().filter(|row| row.row.tenant == Some(tenant()));
        rows.map(|row| String::from_utf8(row.row.body).unwrap()).collect()
    }

    async fn numbers(&self, place: &str) -> Vec<i64> {
        let found = self.store().versions(&tenant(), &path(place)).await.unwrap();
        found.map_or_else(Vec::new, |(_, versions)| versions.iter().map(|record| record.version.get()).collect())
    }
}

fn everything() -> ListScan {
    ListScan { limit: 1_000, ..ListScan::default() }
}

macro_rules! contract {
    ($($case:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(super::Bench::sqlite().await).await;
            })*
        }

        /// One test, since a server that is started for each would cost more than all cases together.
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn postgres_keeps_the_contract() {
            $(
                for cache in [0, CACHE] {
                    let Some(bench) = Bench::postgres(cache).await else { return };
                    println!("{} with {cache} bytes in memory", stringify!($case));
                    $case(bench).await;
                }
            )*
        }
    };
}

contract![
    answers_come_in_the_order_of_the_question,
    a_batch_is_one_snapshot,
    reads_follow_writes,
    a_list_is_in_the_order_of_bytes,
    a_list_leaves_out_what_is_gone,
    versions_come_newest_first,
    a_put_keeps_what_it_does_not_name,
    every_change_has_its_refusals,
    a_deleted_secret_holds_its_path_for_a_while,
    old_versions_are_pruned,
    a_purge_leaves_no_row,
    a_destroyed_version_has_no_key_and_no_value,
    one_writer_wins_each_version,
    all_writers_get_through,
    a_change_and_its_event_stand_or_fall_together,
    one_request_fails_alone,
    what_is_given_up_is_not_begun_or_stands_with_its_event,
    the_log_numbers_its_rows,
    the_log_is_searched_by_every_column,
    the_first_key_wins,
    the_first_fingerprint_wins,
    keys_and_their_events_stand_or_fall_together,
    data_keys_move_and_unused_generations_go,
    a_root_key_is_replaced_as_a_whole,
    readiness_means_that_the_log_takes_a_row,
    a_damaged_row_concerns_its_own_secret,
    numbers_and_texts_are_kept_as_they_are,
    everything_is_there_after_reopening,
];

async fn answers_come_in_the_order_of_the_question(bench: Bench) {
    for _ in 0..3 {
        bench.put("a").await;
    }
    bench.put("b").await;
    bench.change("b", 20, Change::SoftDelete { recoverable_until: at(90) }).await.unwrap();
    bench.change("c", 10, Change::Put(Put { expires_at: Some(at(11)), ..put() })).await.unwrap();
    let questions = [
        ("b", None),
        ("none", None),
        ("a", Some(1)),
        ("a", None),
        ("a", None),
        ("a", Some(9)),
        ("c", None),
        ("A", None),
    ];
    let wanted: Vec<_> = questions.iter().map(|(place, pinned)| (path(place), pinned.map(version))).collect();
    let answers = bench.store().get_many(&tenant(), &wanted).await.unwrap();
    let seen: Vec<_> = answers.iter().map(|answer| answer.as_ref().unwrap().as_ref()).collect();
    let told: Vec<_> = seen
        .iter()
        .map(|record| record.map(|r| (r.head.path.as_str(), r.version.as_ref().map(|v| v.version.get()))))
        .collect();
    let expected = [
        Some(("b", Some(1))),
        None,
        Some(("a", Some(1))),
        Some(("a", Some(3))),
        Some(("a", Some(3))),
        Some(("a", None)),
        Some(("c", Some(1))),
        None,
    ];
    assert_eq!(told, expected);
    assert_eq!(seen[0].unwrap().head.deleted, Some((at(20), at(90))));
    assert_eq!(seen[2].unwrap().version.as_ref().unwrap().sealed, Some(sealed(version(1))));
    assert!(bench.store().get_many(&tenant(), &[]).await.unwrap().is_empty());
    let other = TenantId::parse("other").unwrap();
    assert_eq!(bench.store().get_many(&other, &[(path("a"), None)]).await.unwrap(), [Ok(None)]);
}

async fn a_batch_is_one_snapshot(bench: Bench) {
    let names: Vec<String> = (0..100).map(|n| format!("p/{n}")).collect();
    for name in &names {
        bench.put(name).await;
    }
    let wanted: Vec<_> = names.iter().map(|name| (path(name), None)).collect();
    let bench = Arc::new(bench);
    let flipping = tokio::spawn({
        let bench = Arc::clone(&bench);
        async move {
            for round in 0..40 {
                let sql = format!("UPDATE secrets SET updated_at = {round}; UPDATE versions SET created_at = {round}");
                bench.sql(&sql).await;
            }
        }
    });
    let mut seen = BTreeSet::new();
    while !flipping.is_finished() {
        let answers = bench.store().get_many(&tenant(), &wanted).await.unwrap();
        let records: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().unwrap()).collect();
        let first = records[0].head.updated_at;
        for record in records {
            let mark = record.version.as_ref().unwrap().created_at;
            assert!(record.head.updated_at == first && (mark == first || first == at(10)), "{first:?} {mark:?}");
        }
        seen.insert(first);
    }
    flipping.await.unwrap();
    assert!(seen.len() > 1, "the writer was met at work");
}

/// Two secrets are written in turns; whoever reads sees what was acknowledged, and both as of one moment.
async fn reads_follow_writes(bench: Bench) {
    const ROUNDS: i64 = 150;
    let acknowledged = Arc::new(AtomicI64::new(0));
    let wanted: Arc<[_]> = ["first", "second", "never"].map(|name| (path(name), None)).into();
    bench.put("first").await;
    bench.put("second").await;
    // Nothing is written before each reader has its connection.
    let connected = Arc::new(Barrier::new(5));
    let mut readers = JoinSet::new();
    for number in 0..4 {
        let (store, acknowledged, wanted) = (bench.store(), Arc::clone(&acknowledged), Arc::clone(&wanted));
        let connected = Arc::clone(&connected);
        readers.spawn(async move {
            store.get_many(&tenant(), &wanted).await.unwrap();
            connected.wait().await;
            let (mut reads, mut newest) = (0, 0);
            while newest < ROUNDS {
                // Some readers want one of the two, so that often one of them alone is in the cache.
                let before = acknowledged.load(SeqCst);
                let some = if (number + reads) % 3 == 0 { &wanted[..1] } else { &wanted[..] };
                let answers = store.get_many(&tenant(), some).await.unwrap();
                let versions: Vec<i64> =
                    answers.into_iter().filter_map(|answer| Some(answer.unwrap()?.head.latest.get())).collect();
                assert!(versions[0] >= before.max(newest), "{versions:?} after {before} and {newest}");
                newest = versions[0];
                if let Some(second) = versions.get(1) {
                    assert!(newest - second == 0 || newest - second == 1, "{versions:?} are of two moments");
                }
                reads += 1;
            }
            reads
        });
    }
    connected.wait().await;
    for round in 2..=ROUNDS {
        assert_eq!(bench.put("first").await, round);
        acknowledged.store(round, SeqCst);
        assert_eq!(bench.put("second").await, round);
    }
    let reads = readers.join_all().await;
    println!("{reads:?} reads beside {ROUNDS} writes of two secrets");
    assert!(reads.iter().all(|reads| *reads > 20), "{reads:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_cache_reads_follow_writes() {
    reads_follow_writes(Bench::at(Place::Sqlite(tempfile::tempdir().unwrap(), CACHE)).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_cache_a_write_leaves_in_memory_what_is_stored() {
    let bench = Bench::at(Place::Sqlite(tempfile::tempdir().unwrap(), CACHE)).await;
    let Place::Sqlite(directory, _) = &bench.place else { unreachable!() };
    let described = || Put {
        secret_type: Some(SecretType::ApiKey),
        metadata: Some(metadata("ops")),
        expires_at: Some(at(99)),
        max_versions: Some(1),
        ..put()
    };
    bench.change("described", 10, Change::Put(described())).await.unwrap();
    bench.change("described", 11, Change::Put(described())).await.unwrap();
    bench.change("rewritten", 12, Change::Put(described())).await.unwrap();
    bench.change("rewritten", 13, Change::Put(Put { source: Some(version(1)), ..put() })).await.unwrap();
    bench.change("deleted", 14, Change::Put(put())).await.unwrap();
    bench.change("deleted", 15, Change::SoftDelete { recoverable_until: at(16) }).await.unwrap();
    bench.change("edited", 16, Change::Put(put())).await.unwrap();
    bench.change("edited", 17, Change::EditMetadata(Box::new(|_| Some(metadata("dev"))))).await.unwrap();
    let mut together = JoinSet::new();
    for n in 0..40 {
        let (store, put) = (bench.store(), Put { metadata: Some(metadata(&format!("team {n}"))), ..described() });
        together
            .spawn(async move { store.commit(request(&format!("together/{n}"), 18, Change::Put(put))).await.unwrap() });
    }
    assert!(together.join_all().await.iter().all(|(outcome, _)| outcome.is_ok()));
    let names = ["deleted", "edited", "described", "rewritten"].map(str::to_owned).into_iter();
    let wanted: Vec<_> =
        names.chain((0..40).map(|n| format!("together/{n}"))).map(|name| (path(&name), None)).collect();
    let stored = SqliteStore::open_to_read(directory.path()).await.unwrap();
    let stored = stored.get_many(&tenant(), &wanted).await.unwrap();
    bench.sql("DELETE FROM versions; DELETE FROM secrets WHERE path NOT IN ('deleted', 'edited')").await;
    let mut in_memory = Vec::new();
    for (wanted, stored) in wanted.iter().zip(&stored) {
        assert!(matches!(stored, Ok(Some(_))), "{stored:?}");
        let written = bench.store().get_many(&tenant(), std::slice::from_ref(wanted)).await.unwrap();
        in_memory.push(written[0] == *stored);
        // What is not in memory is gone from the database, whole or in part.
        assert!(in_memory.last() == Some(&true) || !matches!(written[0], Ok(Some(_))), "{written:?}");
    }
    // Two that were written last by what makes no version are not there; nor may be others whose places cannot be told
    // apart from those of others that changed with them.
    assert_eq!(in_memory[..4], [false, false, true, true]);
    assert!(in_memory[4..].iter().filter(|is_there| **is_there).count() > 30, "{in_memory:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_memory_is_answered_while_postgres_still_holds_it() {
    const NAMES: [&str; 12] = [
        "kept",
        "put",
        "edited",
        "deleted",
        "restored",
        "destroyed",
        "purged",
        "made anew",
        "under another key",
        "with a newer version",
        "without a version",
        "without a head",
    ];
    let Some(bench) = Bench::postgres(CACHE).await else { return };
    let Place::Postgres(url, _) = &bench.place else { unreachable!() };
    let place = Place::Postgres(url.clone(), 0);
    let other = Bench { store: Some(place.open().await), place };
    let wanted = NAMES.map(|name| (path(&name.replace(' ', "-")), None));
    let named = |name| wanted[NAMES.iter().position(|other| *other == name).unwrap()].0.as_str();
    let deletion = || Change::SoftDelete { recoverable_until: at(99) };
    for (path, _) in &wanted {
        bench.put(path.as_str()).await;
    }
    bench.change(named("restored"), 11, deletion()).await.unwrap();
    let read = async || bench.store().get_many(&tenant(), &wanted).await.unwrap();
    let are_one = |one: &Stored, other: &Stored| match (one, other) {
        (Ok(Some(one)), Ok(Some(other))) => Arc::ptr_eq(one, other),
        _ => false,
    };
    let before = read().await;
    assert!(read().await.iter().zip(&before).all(|(now, before)| are_one(now, before)));

    other.put(named("put")).await;
    other.change(named("edited"), 11, Change::EditMetadata(Box::new(|_| Some(metadata("dev"))))).await.unwrap();
    other.change(named("deleted"), 12, deletion()).await.unwrap();
    other.change(named("restored"), 12, Change::Restore).await.unwrap();
    other.change(named("destroyed"), 12, Change::Destroy(vec![version(1)])).await.unwrap();
    for name in ["purged", "made anew"] {
        other.change(named(name), 13, deletion()).await.unwrap();
        other.change(named(name), 14, Change::Purge).await.unwrap();
    }
    other.change(named("made anew"), 15, Change::Put(put())).await.unwrap();
    let keys = other.store().stale_keys(&tenant(), 2, None, 100).await.unwrap();
    let key = keys.into_iter().find(|key| key.path.as_str() == named("under another key")).unwrap();
    let keys = vec![(key, WrappedKey { generation: 1, wrapped: vec![7; 9] })];
    assert_eq!(other.change_keys(KeyChange::Rewrap { tenant: tenant(), keys }).await.unwrap(), 1);
    let newer = named("with a newer version");
    bench
        .sql(&format!(
            "INSERT INTO versions SELECT tenant, path, 2, secret_type, created_at, created_by, expires_at, destroyed_at,
                                         key_generation, wrapped_key, ciphertext FROM versions WHERE path = '{newer}';
             DELETE FROM versions WHERE path = '{}'; DELETE FROM secrets WHERE path = '{}'",
            named("without a version"),
            named("without a head")
        ))
        .await;

    let after = read().await;
    assert_eq!(after, other.store().get_many(&tenant(), &wanted).await.unwrap(), "what is not in memory");
    for (name, (before, after)) in NAMES.iter().zip(before.iter().zip(&after)) {
        assert!(are_one(before, after) == (*name == "kept") && (before == after) == (*name == "kept"), "{name}");
        assert_eq!(after.is_err(), name.starts_with("with"), "{name}");
        assert_eq!(*after == Ok(None), *name == "purged", "{name}");
    }
    for (name, (now, after)) in NAMES.iter().zip(read().await.iter().zip(&after)) {
        assert!(now == after && are_one(now, after) == matches!(after, Ok(Some(_))), "{name}");
    }
    bench.store().distrust(&tenant(), &wanted[0].0);
    let kept = read().await;
    assert!(!are_one(&kept[0], &after[0]));
    bench.change(named("kept"), 20, expecting(7)).await.unwrap_err();
    assert!(!are_one(&read().await[0], &kept[0]), "what this server was asked to change is read anew");
}

/// The planner cannot know how few paths are wanted, and must not read whole tables for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_finds_secrets_by_their_index() {
    const SCANS: &str = "SELECT CAST(seq_scan AS TEXT) FROM pg_stat_user_tables
                         WHERE relname IN ('secrets', 'versions') ORDER BY relname";
    let Some(mut bench) = Bench::postgres(0).await else { return };
    // What a connection counted is known when it is closed.
    bench.reopen().await;
    let before = bench.texts(SCANS).await;
    bench
        .sql(
            "INSERT INTO secrets SELECT 'acme', 'many/' || n, 1, 'api_key', '{}', 1, 'u', 1, 'u', NULL, NULL, NULL, 10
               FROM generate_series(1, 20000) AS n;
             INSERT INTO versions SELECT 'acme', 'many/' || n, 1, 'api_key', 1, 'u', NULL, NULL, 1, 'k', 'v'
               FROM generate_series(1, 20000) AS n",
        )
        .await;
    for analyzed in [false, true] {
        if analyzed {
            bench.texts("ANALYZE").await;
        }
        for round in 0..10 {
            let names = (0..100).map(|n| format!("many/{}", n * 10 + round)).chain(["nothing".to_owned()]);
            let wanted: Vec<_> = names.map(|name| (path(&name), None)).collect();
            let answers = bench.store().get_many(&tenant(), &wanted).await.unwrap();
            assert_eq!(
                answers.iter().filter(|answer| matches!(answer, Ok(Some(_)))).count(),
                100 - usize::from(round == 0)
            );
            bench.put("many/7").await;
        }
    }
    bench.reopen().await;
    let found = bench.texts("SELECT CAST(idx_scan AS TEXT) FROM pg_stat_user_tables WHERE relname = 'secrets'").await;
    assert!(found[0].as_ref().unwrap().parse::<u64>().unwrap() >= 1_000, "the look-ups were counted: {found:?}");
    assert_eq!(bench.texts(SCANS).await, before);
}

async fn a_list_is_in_the_order_of_bytes(bench: Bench) {
    let names =
        ["B", "a", "b/1", "b/10", "b/2", "B/x", "b-c", "b.c", "b_c", "_x", "0", "Z", "b/a/c", "bb", "b/A", "a1", "A1"];
    for name in names {
        bench.put(name).await;
    }
    let mut sorted = names.map(str::to_owned).to_vec();
    sorted.sort_unstable();
    assert_eq!(bench.listed(&everything(), 50).await, sorted);
    let below = ListScan { prefix: "b/".to_owned(), ..everything() };
    assert_eq!(bench.listed(&below, 50).await, ["b/1", "b/10", "b/2", "b/A", "b/a/c"]);
    let part = ListScan { prefix: "b".to_owned(), limit: 3, ..everything() };
    assert_eq!(bench.listed(&part, 50).await, ["b-c", "b.c", "b/1"]);
    let next = ListScan { after: Some(path("b/1")), ..part };
    assert_eq!(bench.listed(&next, 50).await, ["b/10", "b/2", "b/A"]);
    let mut walked = Vec::new();
    loop {
        let after = walked.last().map(|last: &String| path(last));
        match bench.listed(&ListScan { after, limit: 2, ..everything() }, 50).await {
            page if page.is_empty() => break,
            page => walked.extend(page),
        }
    }
    assert_eq!(walked, sorted);
    for nothing in ["%", "b%", "*", "zz"] {
        let scan = ListScan { prefix: nothing.to_owned(), ..everything() };
        assert!(bench.listed(&scan, 50).await.is_empty(), "{nothing}");
    }
    let other = TenantId::parse("other").unwrap();
    assert!(bench.store().list(&other, &everything(), at(50)).await.unwrap().is_empty());
}

async fn a_list_leaves_out_what_is_gone(bench: Bench) {
    for name in ["deleted", "live", "purged"] {
        bench.put(name).await;
    }
    bench.change("deleted", 20, Change::SoftDelete { recoverable_until: at(90) }).await.unwrap();
    bench.change("purged", 20, Change::Purge).await.unwrap();
    bench.change("ends", 10, Change::Put(Put { expires_at: Some(at(60)), ..put() })).await.unwrap();
    assert_eq!(bench.listed(&everything(), 59).await, ["ends", "live"]);
    assert_eq!(bench.listed(&everything(), 60).await, ["live"]);
    bench.change("deleted", 30, Change::Restore).await.unwrap();
    assert_eq!(bench.listed(&everything(), 60).await, ["deleted", "live"]);
}

async fn versions_come_newest_first(bench: Bench) {
    for _ in 0..3 {
        bench.put("a").await;
    }
    bench.change("a", 20, Change::Destroy(vec![version(2)])).await.unwrap();
    let (head, versions) = bench.store().versions(&tenant(), &path("a")).await.unwrap().unwrap();
    assert_eq!((head.latest, head.updated_at), (version(3), at(20)));
    let told: Vec<_> = versions.iter().map(|v| (v.version.get(), v.destroyed_at, v.sealed.is_some())).collect();
    assert_eq!(told, [(3, None, false), (2, Some(at(20)), false), (1, None, false)]);
    assert_eq!(bench.store().versions(&tenant(), &path("b")).await.unwrap(), None);
}

async fn a_put_keeps_what_it_does_not_name(bench: Bench) {
    let first = Put {
        secret_type: Some(SecretType::ApiKey),
        metadata: Some(metadata("me")),
        expires_at: Some(at(99)),
        max_versions: Some(3),
        ..put()
    };
    let created = bench.change("a", 10, Change::Put(first)).await.unwrap();
    assert!(created.created);
    let second = ChangeRequest { by: "sa:b".into(), ..request("a", 20, Change::Put(put())) };
    let second = bench.store().commit(second).await.unwrap().0.unwrap();
    assert!(!second.created);
    let expected = Head {
        path: path("a"),
        latest: version(2),
        secret_type: SecretType::ApiKey,
        metadata: metadata("me"),
        created_at: at(10),
        created_by: "user:u".to_owned(),
        updated_at: at(20),
        updated_by: "sa:b".to_owned(),
        // The end is the version's: a version that names none has none.
        expires_at: None,
        deleted: None,
        max_versions: 3,
    };
    assert_eq!(second.head, expected);
    assert_eq!(bench.get("a", None).await.unwrap().head, expected);
    let first = bench.get("a", Some(1)).await.unwrap().version.unwrap();
    assert_eq!((first.expires_at, first.created_by.as_str(), first.created_at), (Some(at(99)), "user:u", at(10)));
    let edit = Change::EditMetadata(Box::new(|before| {
        assert_eq!(*before, metadata("me"));
        Some(metadata("you"))
    }));
    let edited = bench.change("a", 30, edit).await.unwrap();
    assert_eq!(edited.head.latest, version(2), "no new version");
    assert_eq!(bench.get("a", None).await.unwrap().head.metadata, metadata("you"));
}

async fn every_change_has_its_refusals(bench: Bench) {
    let delete = || Change::SoftDelete { recoverable_until: at(90) };
    let too_large = || Change::EditMetadata(Box::new(|_| None));
    for change in [delete(), Change::Restore, Change::Purge, Change::Destroy(vec![version(1)]), too_large()] {
        assert_eq!(bench.change("none", 10, change).await, Err(Refusal::Absent));
    }
    assert_eq!(bench.change("none", 10, expecting(1)).await, Err(Refusal::VersionConflict(0)));
    assert_eq!(bench.change("a", 10, expecting(0)).await.unwrap().head.latest, version(1));
    assert_eq!(bench.change("a", 10, expecting(0)).await, Err(Refusal::VersionConflict(1)));
    assert_eq!(bench.change("a", 10, expecting(1)).await.unwrap().head.latest, version(2));
    let absent = Change::Destroy(vec![version(1), version(3)]);
    assert_eq!(bench.change("a", 10, absent).await, Err(Refusal::VersionAbsent));
    assert!(bench.get("a", Some(1)).await.unwrap().version.unwrap().sealed.is_some(), "none or all are destroyed");
    assert_eq!(bench.change("a", 10, too_large()).await, Err(Refusal::MetadataTooLarge));
    assert_eq!(bench.change("a", 10, Change::Restore).await, Err(Refusal::Absent), "it is not deleted");
    bench.change("a", 20, delete()).await.unwrap();
    for change in [delete(), Change::Destroy(vec![version(1)]), too_large()] {
        assert_eq!(bench.change("a", 30, change).await, Err(Refusal::Absent), "it is deleted");
    }
    assert_eq!(bench.change("a", 30, expecting(2)).await, Err(Refusal::Deleted));
    bench.change("a", 30, Change::Restore).await.unwrap();
    let full = "UPDATE versions SET version = 2147483647 WHERE version = 2; UPDATE secrets SET latest = 2147483647";
    bench.sql(full).await;
    assert_eq!(bench.change("a", 40, Change::Put(put())).await, Err(Refusal::VersionsExhausted));
    let words = bench.audited().await;
    assert_eq!(words.len(), 19, "each change and each refusal has its event: {words:?}");
    assert_eq!(words[5..8], ["none VersionConflict(0)", "a 1", "a VersionConflict(1)"]);
    assert_eq!(words[18], "a VersionsExhausted");
}

async fn a_deleted_secret_holds_its_path_for_a_while(bench: Bench) {
    bench.put("a").await;
    bench.put("a").await;
    let deleted = bench.change("a", 20, Change::SoftDelete { recoverable_until: at(30) }).await.unwrap();
    assert_eq!(deleted.head.deleted, Some((at(20), at(30))));
    assert_eq!(bench.change("a", 29, Change::Put(put())).await, Err(Refusal::Deleted));
    assert_eq!(bench.change("a", 30, Change::Restore).await, Err(Refusal::Absent), "its time is over");
    let anew = bench.change("a", 30, expecting(0)).await.unwrap();
    assert_eq!((anew.head.latest, anew.created, anew.head.created_at), (version(1), true, at(30)));
    assert_eq!(bench.numbers("a").await, [1], "nothing of the one before");
}

async fn old_versions_are_pruned(bench: Bench) {
    for _ in 0..12 {
        bench.put("ten").await;
    }
    assert_eq!(bench.numbers("ten").await, (3..=12).rev().collect::<Vec<_>>());
    for _ in 0..4 {
        bench.change("two", 10, Change::Put(Put { max_versions: Some(2), ..put() })).await.unwrap();
    }
    assert_eq!(bench.numbers("two").await, [4, 3]);
    bench.change("two", 10, Change::Put(Put { max_versions: Some(1), ..put() })).await.unwrap();
    assert_eq!(bench.numbers("two").await, [5]);
    assert_eq!(bench.get("two", Some(4)).await.unwrap().version, None);
}

async fn a_purge_leaves_no_row(bench: Bench) {
    for name in ["a", "a", "b"] {
        bench.put(name).await;
    }
    bench.change("a", 20, Change::SoftDelete { recoverable_until: at(90) }).await.unwrap();
    assert_eq!(bench.change("a", 30, Change::Purge).await.unwrap().head.latest, version(2));
    assert_eq!(bench.get("a", None).await, None);
    assert_eq!((bench.count("secrets").await, bench.count("versions").await), (1, 1), "b is left");
    assert_eq!(bench.put("a").await, 1, "numbers begin anew");
}

async fn a_destroyed_version_has_no_key_and_no_value(bench: Bench) {
    for _ in 0..3 {
        bench.put("a").await;
    }
    bench.change("a", 20, Change::Destroy(vec![version(1), version(3)])).await.unwrap();
    bench.change("a", 40, Change::Destroy(vec![version(1)])).await.unwrap();
    let left = "SELECT CAST(version AS TEXT) FROM versions
                WHERE key_generation IS NOT NULL OR wrapped_key IS NOT NULL OR ciphertext IS NOT NULL";
    assert_eq!(bench.texts(left).await, [Some("2".to_owned())]);
    let first = bench.get("a", Some(1)).await.unwrap().version.unwrap();
    assert_eq!((first.destroyed_at, first.sealed), (Some(at(20)), None), "the first time counts");
    assert_eq!(bench.put("a").await, 4);
}

async fn one_writer_wins_each_version(bench: Bench) {
    for round in 0..4 {
        let mut writers = JoinSet::new();
        for _ in 0..32 {
            let store = bench.store();
            writers.spawn(async move { store.commit(request("a", 10, expecting(round))).await.unwrap().0 });
        }
        let outcomes = writers.join_all().await;
        let won: Vec<_> = outcomes.iter().flatten().map(|committed| committed.head.latest.get()).collect();
        assert_eq!(won, [round + 1]);
        let lost = outcomes.iter().filter(|outcome| **outcome == Err(Refusal::VersionConflict(round + 1))).count();
        assert_eq!(lost, 31);
    }
    assert_eq!(bench.numbers("a").await, [4, 3, 2, 1]);
    assert_eq!(bench.audited().await.len(), 4 * 32);
}

async fn all_writers_get_through(bench: Bench) {
    let mut writers = JoinSet::new();
    for _ in 0..32 {
        let store = bench.store();
        let put = Put { max_versions: Some(100), ..put() };
        writers.spawn(async move { store.commit(request("a", 10, Change::Put(put))).await.unwrap().0.unwrap() });
    }
    let given: BTreeSet<_> = writers.join_all().await.iter().map(|committed| committed.head.latest.get()).collect();
    assert_eq!(given, (1..=32).collect());
    assert_eq!(bench.numbers("a").await, (1..=32).rev().collect::<Vec<_>>());
    let told: BTreeSet<_> = bench.audited().await.into_iter().collect();
    assert_eq!(told, (1..=32).map(|number| format!("a {number}")).collect());
}

async fn a_change_and_its_event_stand_or_fall_together(bench: Bench) {
    bench.put("a").await;
    bench.sql("ALTER TABLE audit_log RENAME TO hidden").await;
    let changes = [
        Change::Put(put()),
        Change::SoftDelete { recoverable_until: at(90) },
        Change::Purge,
        Change::Destroy(vec![version(1)]),
        Change::EditMetadata(Box::new(|_| Some(metadata("me")))),
    ];
    for change in changes {
        assert!(bench.store().commit(request("a", 20, change)).await.is_err());
    }
    assert!(bench.store().commit(request("b", 20, Change::Put(put()))).await.is_err());
    assert!(bench.store().append(audit_row(b"x")).await.is_err());
    let record = bench.get("a", None).await.unwrap();
    assert_eq!((record.head.latest, record.head.updated_at, record.head.deleted), (version(1), at(10), None));
    assert!(record.version.unwrap().sealed.is_some());
    assert_eq!((bench.count("secrets").await, bench.count("versions").await), (1, 1));
    bench.sql("ALTER TABLE hidden RENAME TO audit_log").await;
    assert_eq!(bench.put("a").await, 2, "well again by itself");
    assert_eq!(bench.audited().await, ["a 1", "a 2"]);
}

/// A row that nobody can write meets neighbours that everybody can: on SQLite they are committed together.
async fn one_request_fails_alone(bench: Bench) {
    for name in ["lost", "taken"] {
        bench.put(name).await;
        bench.put(name).await;
    }
    bench.change("gone", 10, Change::Put(put())).await.unwrap();
    bench.change("gone", 10, Change::SoftDelete { recoverable_until: at(11) }).await.unwrap();
    bench
        .sql(
            "UPDATE secrets SET latest = 1 WHERE path = 'taken'; UPDATE secrets SET metadata = '[' WHERE path = 'lost'",
        )
        .await;
    let before = bench.audited().await.len();
    let mut all = JoinSet::new();
    for n in 0..80 {
        let store = bench.store();
        all.spawn(async move {
            match n % 8 {
                // The version that follows is there already; nothing can be told of what is there.
                0 | 1 => {
                    let name = ["taken", "lost"][n % 8];
                    let (refused, _) = store.commit(request(name, 20, Change::Put(put()))).await.unwrap();
                    assert_eq!(refused, Err(Refusal::Damaged));
                }
                // It cannot be sealed, and there was something to be cleared away first.
                2 => {
                    let change = Change::Put(Put { seal: Box::new(|_| None), ..put() });
                    let result = store.commit(request("gone", 20, change)).await;
                    assert!(matches!(result, Err(StoreError::Unsealable)));
                }
                3 => drop(store.append(audit_row(b"appended")).await.unwrap()),
                // Its key is not kept.
                4 => {
                    let seal: Seal = Box::new(|version| Some(SealedValue { key_generation: 9, ..sealed(version) }));
                    let change = Change::Put(Put { seal, ..put() });
                    let name = if n < 40 { "gone".to_owned() } else { format!("n/{n}") };
                    let result = store.commit(request(&name, 20, change)).await;
                    assert!(matches!(result, Err(StoreError::RetiredKey)));
                }
                5 => drop(store.commit(request("one", 20, Change::Put(put()))).await.unwrap().0.unwrap()),
                _ => drop(store.commit(request(&format!("n/{n}"), 20, Change::Put(put()))).await.unwrap().0.unwrap()),
            }
        });
    }
    all.join_all().await;
    assert_eq!(bench.audited().await.len() - before, 20 + 10 + 10 + 20);
    assert_eq!(bench.numbers("one").await, (1..=10).rev().collect::<Vec<_>>());
    assert!(bench.get("gone", None).await.is_some(), "nothing is cleared away for a value that cannot be sealed");
    assert_eq!(bench.count("versions").await, 2 + 2 + 1 + 10 + 20);
    assert_eq!(bench.count("secrets").await, 4 + 20);
}

async fn what_is_given_up_is_not_begun_or_stands_with_its_event(bench: Bench) {
    let mut all = JoinSet::new();
    for n in 0..200_u64 {
        let store = bench.store();
        all.spawn(async move {
            let patience = std::time::Duration::from_micros(n * 20);
            let change = store.commit(request(&format!("n/{n}"), 20, Change::Put(put())));
            tokio::time::timeout(patience, change).await.is_ok()
        });
    }
    let done = all.join_all().await.into_iter().filter(|done| *done).count();
    // The next commit comes after whatever was still under way.
    bench.put("last").await;
    let mut listed = bench.listed(&everything(), 50).await;
    let mut audited: Vec<_> = bench.audited().await.iter().map(|word| word.replace(" 1", "")).collect();
    listed.sort_unstable();
    audited.sort_unstable();
    assert_eq!(listed, audited);
    assert!(listed.len() > done);
}

async fn the_log_numbers_its_rows(bench: Bench) {
    for _ in 0..5 {
        bench.store().append(audit_row(b"x")).await.unwrap();
    }
    let mut all = JoinSet::new();
    for n in 0..40_u8 {
        let store = bench.store();
        all.spawn(async move { (store.append(audit_row(&[n])).await.unwrap(), vec![n]) });
    }
    let given = all.join_all().await;
    let rows = bench.chained().await;
    assert_eq!(rows.iter().map(|row| row.place.number).collect::<Vec<_>>(), (1..=46).collect::<Vec<_>>());
    assert_eq!(rows.iter().filter(|row| row.row.action == CHECKPOINT).count(), 1, "one checkpoint at the start");
    let key = AuditKeys::new(&AUDIT_SEED).verifying_key();
    for (receipt, body) in given {
        let note = Note::verify(&receipt.0, &key).unwrap();
        let at = |number: i64| &rows[usize::try_from(number - 1).unwrap()];
        assert_eq!(at(note.head.place.number).link, note.head.link.0, "a receipt names a row by its link");
        let row = rows.iter().find(|row| row.row.body == body).unwrap();
        assert!(row.place <= note.head.place, "a receipt vouches for the row that it was given for");
    }
}

async fn the_log_is_searched_by_every_column(bench: Bench) {
    let other = TenantId::parse("other").unwrap();
    let row = |n: i64| AuditRow { at: at(n * 10), ..audit_row(n.to_string().as_bytes()) };
    let rows = [
        row(1),
        AuditRow { identity_id: Some("sa:x".to_owned()), identity_type: Some("service_account".into()), ..row(2) },
        AuditRow { source_ip: Some("10.0.0.1".to_owned()), ..row(3) },
        AuditRow { request_id: "req_9".to_owned(), ..row(4) },
        AuditRow { tenant: None, identity_id: None, identity_type: None, ..row(5) },
        AuditRow { tenant: Some(other.clone()), ..row(6) },
        row(7),
    ];
    let mut places = Vec::new();
    for row in rows {
        let body = row.body.clone();
        bench.store().append(row).await.unwrap();
        let kept = bench.chained().await.into_iter().find(|row| row.row.body == body).unwrap();
        places.push((kept.row.at, kept.place));
    }
    let of = |scan: AuditScan| AuditScan { tenant: scan.tenant.or_else(|| Some(tenant())), ..scan };
    let word = |text: &str| Some(text.to_owned());
    let default = AuditScan::default;
    let cases = [
        (default(), "74321"),
        (AuditScan { with_untenanted: true, ..default() }, "754321"),
        (AuditScan { tenant: Some(other), ..default() }, "6"),
        (AuditScan { from: Some(at(30)), ..default() }, "743"),
        (AuditScan { to: Some(at(30)), ..default() }, "21"),
        (AuditScan { from: Some(at(20)), to: Some(at(40)), ..default() }, "32"),
        (AuditScan { identity_id: word("sa:x"), ..default() }, "2"),
        (AuditScan { identity_type: word("service_account"), ..default() }, "2"),
        (AuditScan { identity_type: word("user"), ..default() }, "7431"),
        (AuditScan { source_ip: word("10.0.0.1"), ..default() }, "3"),
        (AuditScan { request_id: word("req_9"), ..default() }, "4"),
        (AuditScan { request_id: word("req_9"), source_ip: word("10.0.0.1"), ..default() }, ""),
        (AuditScan { start: Some(places[3]), ..default() }, "4321"),
        (AuditScan { order: AuditOrder::OldestFirst, ..default() }, "12347"),
        (AuditScan { order: AuditOrder::OldestFirst, start: Some(places[3]), ..default() }, "47"),
        (AuditScan { order: AuditOrder::OldestFirst, identity_id: word("user:u"), ..default() }, "1347"),
    ];
    for (scan, expected) in cases {
        let rows = bench.store().audit_rows(&of(scan.clone()), 100).await.unwrap();
        let rows = rows.into_iter().map(Result::unwrap).filter(|row| row.row.action != CHECKPOINT);
        let told: String = rows.map(|row| String::from_utf8(row.row.body).unwrap()).collect();
        assert_eq!(told, expected, "{scan:?}");
    }
    let limited = bench.store().audit_rows(&of(default()), 2).await.unwrap();
    let limited: Vec<_> = limited.into_iter().map(|row| row.unwrap().place).collect();
    assert_eq!(limited, [places[6].1, places[3].1]);
}

async fn the_first_key_wins(bench: Bench) {
    let other = TenantId::parse("other").unwrap();
    assert!(bench.store().tenant_keys(&other).await.unwrap().is_empty());
    let mut all = JoinSet::new();
    for n in 0..8_u8 {
        let (store, change) = (bench.store(), add(&other, 1, &[n; 60]));
        all.spawn(async move { store.change_keys(KeyChangeRequest { change, witness: None }).await.unwrap().0 });
    }
    assert_eq!(all.join_all().await.iter().sum::<u64>(), 1, "one of them was kept");
    bench.change_keys(add(&other, 2, b"second")).await.unwrap();
    let keys = bench.store().tenant_keys(&other).await.unwrap();
    assert_eq!(keys.iter().map(|key| key.generation).collect::<Vec<_>>(), [1, 2]);
    assert_eq!((keys[0].wrapped.len(), keys[1].wrapped.as_slice()), (60, &b"second"[..]));
    assert_eq!(bench.store().tenant_keys(&tenant()).await.unwrap().len(), 1);
}

async fn the_first_fingerprint_wins(bench: Bench) {
    bench.sql("DELETE FROM root_key").await;
    let mut all = JoinSet::new();
    for n in 0..8_u8 {
        let store = bench.store();
        all.spawn(async move { store.root_fingerprint(&[n; 32]).await.unwrap() });
    }
    let kept: BTreeSet<_> = all.join_all().await.into_iter().collect();
    assert_eq!(kept.len(), 1);
    assert_eq!(bench.store().root_fingerprint(b"late").await.unwrap(), *kept.first().unwrap());
}

/// A change of keys whose audit row says how many it changed.
fn told(change: KeyChange) -> KeyChangeRequest {
    let witness = |changed: u64| audit_row(format!("{changed} keys").as_bytes());
    KeyChangeRequest { change, witness: Some(Box::new(witness)) }
}

async fn keys_and_their_events_stand_or_fall_together(bench: Bench) {
    assert_eq!(bench.store().change_keys(told(add(&tenant(), 2, b"second"))).await.unwrap().0, 1);
    assert_eq!(bench.audited().await, ["1 keys"]);
    bench.sql("ALTER TABLE audit_log RENAME TO hidden").await;
    assert!(bench.store().change_keys(told(add(&tenant(), 3, b"third"))).await.is_err());
    bench.sql("ALTER TABLE hidden RENAME TO audit_log").await;
    assert_eq!(bench.store().tenant_keys(&tenant()).await.unwrap().len(), 2);
}

/// Generations with their records.
async fn uses(bench: &Bench) -> Vec<(u32, u64)> {
    let uses = bench.store().generations(Some(&tenant())).await.unwrap();
    uses.into_iter().map(|one| (one.generation, one.records)).collect()
}

async fn data_keys_move_and_unused_generations_go(bench: Bench) {
    for name in ["a", "a", "b", "c", "d"] {
        bench.put(name).await;
    }
    bench.change("d", 20, Change::Destroy(vec![version(1)])).await.unwrap();
    bench.change_keys(add(&tenant(), 2, b"second")).await.unwrap();
    bench.change_keys(add(&tenant(), 3, b"third")).await.unwrap();
    assert_eq!(uses(&bench).await, [(1, 4), (2, 0), (3, 0)]);
    let store = bench.store();
    let first = store.stale_keys(&tenant(), 3, None, 3).await.unwrap();
    let place = |key: &WrappedDataKey| format!("{} {}", key.path, key.version);
    assert_eq!(first.iter().map(place).collect::<Vec<_>>(), ["a 1", "a 2", "b 1"]);
    let rest = store.stale_keys(&tenant(), 3, first.last(), 3).await.unwrap();
    assert_eq!(rest.iter().map(place).collect::<Vec<_>>(), ["c 1"]);
    assert!(store.stale_keys(&TenantId::parse("other").unwrap(), 3, None, 3).await.unwrap().is_empty());
    // One was destroyed, one was moved meanwhile.
    bench.change("b", 30, Change::Destroy(vec![version(1)])).await.unwrap();
    let new = |generation| WrappedKey { generation, wrapped: vec![7; 9] };
    let moved = vec![(first[1].clone(), new(2))];
    assert_eq!(bench.change_keys(KeyChange::Rewrap { tenant: tenant(), keys: moved }).await.unwrap(), 1);
    let all: Vec<_> = first.into_iter().chain(rest).map(|key| (key, new(3))).collect();
    assert_eq!(bench.change_keys(KeyChange::Rewrap { tenant: tenant(), keys: all.clone() }).await.unwrap(), 2);
    assert_eq!(uses(&bench).await, [(1, 0), (2, 1), (3, 2)]);
    let sealed_now = bench.get("a", Some(1)).await.unwrap().version.unwrap().sealed.unwrap();
    assert_eq!(sealed_now, SealedValue { key_generation: 3, wrapped_key: vec![7; 9], ..sealed(version(1)) });
    assert_eq!(bench.get("b", Some(1)).await.unwrap().version.unwrap().sealed, None, "what is destroyed stays so");
    assert_eq!(bench.change_keys(KeyChange::DropUnused(tenant())).await.unwrap(), 1);
    assert_eq!(uses(&bench).await, [(2, 1), (3, 2)], "what a record needs stays");
    let late = bench.store().commit(request("late", 40, Change::Put(put()))).await;
    assert!(matches!(late, Err(StoreError::RetiredKey)), "nothing is written under a generation that is gone");
    assert!(bench.get("late", None).await.is_none());
    let back = KeyChange::Rewrap { tenant: tenant(), keys: vec![(at_generation(&all[1].0, 2), new(1))] };
    assert_eq!(bench.change_keys(back).await.unwrap(), 0, "nor moved under one");
}

fn at_generation(key: &WrappedDataKey, generation: u32) -> WrappedDataKey {
    WrappedDataKey { key: WrappedKey { generation, wrapped: vec![7; 9] }, ..key.clone() }
}

async fn a_root_key_is_replaced_as_a_whole(bench: Bench) {
    let own = bench.store().vault_key(ROOT, "audit", b"own").await.unwrap();
    assert_eq!(bench.store().vault_key(ROOT, "audit", b"late").await.unwrap(), own);
    bench.change_keys(add(&TenantId::parse("other").unwrap(), 1, b"others")).await.unwrap();
    let replace = |from: &[u8], fails: bool| {
        let again = move |stock: KeyStock| {
            let marked = |wrapped: &[u8]| [b"new ", wrapped].concat();
            let tenant_key =
                |(tenant, key): (TenantId, WrappedKey)| (tenant, WrappedKey { wrapped: marked(&key.wrapped), ..key });
            let tenants = stock.tenants.into_iter().map(tenant_key).collect();
            let own = stock.own.into_iter().map(|(name, wrapped)| (name, marked(&wrapped))).collect();
            (!fails).then_some(KeyStock { tenants, own })
        };
        KeyChange::ReplaceRoot { from: from.to_vec(), to: b"next".to_vec(), rewrap: Box::new(again) }
    };
    assert!(matches!(bench.change_keys(replace(b"stranger", false)).await, Err(StoreError::OtherRoot)));
    assert!(bench.change_keys(replace(ROOT, true)).await.is_err(), "a key that does not open");
    assert_eq!(bench.store().root_fingerprint(ROOT).await.unwrap(), ROOT);
    assert_eq!(bench.store().tenant_keys(&tenant()).await.unwrap()[0].wrapped, b"first");
    assert_eq!(bench.change_keys(replace(ROOT, false)).await.unwrap(), 3);
    assert_eq!(bench.store().root_fingerprint(ROOT).await.unwrap(), b"next");
    assert_eq!(bench.store().tenant_keys(&tenant()).await.unwrap()[0].wrapped, b"new first");
    assert_eq!(bench.store().vault_key(b"next", "audit", b"").await.unwrap(), b"new own");
    // Who still holds the old root key adds nothing.
    assert!(matches!(bench.change_keys(add(&tenant(), 2, b"stray")).await, Err(StoreError::OtherRoot)));
    assert!(matches!(bench.store().vault_key(ROOT, "stray", b"").await, Err(StoreError::OtherRoot)));
    assert_eq!(bench.store().tenant_keys(&tenant()).await.unwrap().len(), 1);
    assert_eq!(bench.count("vault_keys").await, 1);
}

async fn readiness_means_that_the_log_takes_a_row(bench: Bench) {
    let store = bench.store();
    store.append(audit_row(b"x")).await.unwrap();
    for _ in 0..3 {
        store.ready().await.unwrap();
    }
    assert_eq!(bench.audited().await, ["x"], "the probe leaves nothing");
    store.append(audit_row(b"y")).await.unwrap();
    assert_eq!(bench.audited().await, ["x", "y"], "not even a gap");
    bench.sql("ALTER TABLE audit_log RENAME TO hidden").await;
    assert!(store.ready().await.is_err());
    bench.sql("ALTER TABLE hidden RENAME TO audit_log").await;
    store.ready().await.unwrap();
    let mut all = JoinSet::new();
    for _ in 0..16 {
        let store = bench.store();
        all.spawn(async move { store.ready().await.unwrap() });
    }
    all.join_all().await;
}

async fn a_damaged_row_concerns_its_own_secret(bench: Bench) {
    for name in ["a", "b", "c", "d", "e", "f", "g"] {
        bench.put(name).await;
    }
    bench
        .sql(
            "UPDATE secrets SET metadata = '{\"tags\":' WHERE path = 'b';
             UPDATE secrets SET secret_type = 'x' WHERE path = 'c';
             UPDATE secrets SET latest = 0 WHERE path = 'd';
             UPDATE secrets SET max_versions = -1 WHERE path = 'e';
             UPDATE versions SET secret_type = 'x' WHERE path = 'f';
             DELETE FROM versions WHERE path = 'g';
             UPDATE secrets SET path = 'z//' WHERE path = 'e'",
        )
        .await;
    let wanted: Vec<_> = ["a", "b", "c", "d", "f", "g"].map(|name| (path(name), None)).to_vec();
    let answers = bench.store().get_many(&tenant(), &wanted).await.unwrap();
    assert!(matches!(&answers[0], Ok(Some(_))));
    let told: Vec<_> = answers[1..].iter().map(|answer| answer.as_ref().unwrap_err().0).collect();
    assert_eq!(told, ["metadata", "secret_type", "latest", "secret_type", "latest"]);
    assert_eq!(bench.listed(&everything(), 50).await, ["a", "f", "g"], "their heads are whole");
    let small = ListScan { limit: 2, ..everything() };
    assert_eq!(bench.listed(&small, 50).await, ["a", "f"], "a full page in spite of what is passed over");
    let last = ListScan { after: Some(path("f")), ..small };
    assert_eq!(bench.listed(&last, 50).await, ["g"]);
    let versions = bench.store().versions(&tenant(), &path("f")).await;
    assert!(matches!(versions, Err(StoreError::Damaged("secret_type"))));
    assert_eq!(bench.change("b", 20, Change::Put(put())).await, Err(Refusal::Damaged));
    assert_eq!(bench.change("f", 20, Change::Destroy(vec![version(1)])).await, Err(Refusal::Damaged));
    assert_eq!(bench.audited().await.last().unwrap(), "f Damaged");
    let _: DamagedRow = answers[1].clone().unwrap_err();
}

async fn numbers_and_texts_are_kept_as_they_are(bench: Bench) {
    let odd = "ü'\"\\; DROP TABLE secrets; --\u{1f511}";
    let put = Put {
        metadata: Some(metadata(odd)),
        expires_at: Some(at(i64::MAX)),
        max_versions: Some(u32::MAX),
        secret_type: Some(SecretType::SshKey),
        ..put()
    };
    let request = ChangeRequest { by: odd.into(), ..request("a", 1_767_225_600_123_457, Change::Put(put)) };
    bench.store().commit(request).await.unwrap().0.unwrap();
    let head = bench.get("a", None).await.unwrap().head;
    assert_eq!(head.created_at, at(1_767_225_600_123_457));
    assert_eq!((head.expires_at, head.max_versions), (Some(at(i64::MAX)), u32::MAX));
    assert_eq!((head.created_by.as_str(), head.metadata.parse().owner.as_deref()), (odd, Some(odd)));
    let columns = ["created_at", "updated_at", "expires_at", "max_versions", "latest", "deleted_at"];
    for (column, expected) in columns.into_iter().zip([
        Some("1767225600123457"),
        Some("1767225600123457"),
        Some("9223372036854775807"),
        Some("4294967295"),
        Some("1"),
        None,
    ]) {
        let stored = bench.texts(&format!("SELECT CAST({column} AS TEXT) FROM secrets")).await;
        assert_eq!(stored, [expected.map(str::to_owned)], "{column}");
    }
    assert_eq!(
        bench.texts("SELECT tenant || ' ' || path || ' ' || secret_type FROM secrets").await,
        [Some("acme a ssh_key".to_owned())]
    );
}

async fn everything_is_there_after_reopening(mut bench: Bench) {
    bench.put("a").await;
    bench.put("a").await;
    bench.change("b", 10, Change::Put(put())).await.unwrap();
    bench.change("b", 20, Change::SoftDelete { recoverable_until: at(90) }).await.unwrap();
    let key = WrappedKey { generation: 1, wrapped: b"first".to_vec() };
    bench.store().append(audit_row(b"x")).await.unwrap();
    let before = (bench.get("a", None).await, bench.get("b", None).await, bench.audited().await);
    for _ in 0..2 {
        bench.reopen().await;
        assert_eq!((bench.get("a", None).await, bench.get("b", None).await, bench.audited().await), before);
        assert_eq!(bench.store().tenant_keys(&tenant()).await.unwrap(), std::slice::from_ref(&key));
        assert_eq!(bench.store().root_fingerprint(b"other").await.unwrap(), ROOT);
    }
    bench.store().append(audit_row(b"y")).await.unwrap();
    assert_eq!(bench.audited().await.last().unwrap(), "y", "the chain goes on");
    let store = bench.store();
    let waiting = tokio::spawn(async move { store.commit(request("c", 10, Change::Put(put()))).await });
    bench.store().close().await;
    let outcome = waiting.await.unwrap();
    assert!(bench.store().commit(request("d", 10, Change::Put(put()))).await.is_err(), "it is closed");
    bench.reopen().await;
    assert_eq!(bench.get("c", None).await.is_some(), outcome.is_ok());
}
