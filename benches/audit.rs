//! What the audit costs a batch of 100, and how fast a log is verified.
//!
//!     cargo bench --bench audit
//!
//! Two vaults on one SQLite store, on the disk of the temporary directory: one as it is, one whose log takes rows and
//! keeps none. Both serve whole requests, from the head to the last byte of the answer, without a network; they are asked
//! in turns, alone, by 16 and by 64 at once. What is printed is the ratio of each turn, of the time that passed and of the
//! time that processors worked. What both do for the audit, since a store is handed whole rows, is measured by itself.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a bench that meets what it does not expect must fail"
)]

mod support;

use std::{
    cmp::Ordering,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use portcullis::{
    audit::{Entry, Event, Verifier, pack},
    domain::{
        AuditPlace, AuditRow, AuditScan, Chain, ChainHead, Clock, Decision, FieldFilter, GenerationUse, Head,
        ModuleRef, Receipt, Record, RequestContext, SecretPath, TenantId, Timestamp, Verdict, Version, VersionRecord,
        WrappedDataKey, WrappedKey,
    },
    server::{SystemClock, SystemEntropy},
    store::{
        ChangeRequest, Committed, KeyChangeRequest, ListScan, Logged, Refusal, SecretStore, StoreResult, Stored,
        Tombstone,
    },
};
use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinSet;

use support::{PATHS, Rig};

const TURNS: usize = 15;
/// How many batches a turn has.
const BATCHES: u32 = 640;

fn main() {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let bench = Bench::new(directory.path()).await;
        for clients in [1, 16, 64] {
            bench.compare(clients).await;
        }
        Bench::pack();
        bench.verify().await;
    });
}

struct Bench {
    with: Arc<Rig>,
    without: Arc<Rig>,
}

impl Bench {
    async fn new(directory: &Path) -> Self {
        let with = Rig::new(directory, Arc::new(SystemClock), Arc::new(SystemEntropy)).await;
        let unaudited = Arc::new(Unaudited(Arc::clone(&with.store)));
        let without = Rig::over(unaudited, directory, Arc::new(SystemClock), Arc::new(SystemEntropy)).await;
        Self { with: Arc::new(with), without: Arc::new(without) }
    }

    /// What the batches take, asked by so many at once.
    async fn turn(rig: &Arc<Rig>, clients: usize) -> Taken {
        let began = Taken::now();
        let mut asking = JoinSet::new();
        for _ in 0..clients {
            let rig = Arc::clone(rig);
            asking.spawn(async move {
                for _ in 0..BATCHES as usize / clients {
                    rig.serve(rig.request()).await;
                }
            });
        }
        asking.join_all().await;
        began.elapsed()
    }

    async fn compare(&self, clients: usize) {
        let mut turns = Vec::new();
        for _ in 0..=TURNS {
            turns.push((Self::turn(&self.with, clients).await, Self::turn(&self.without, clients).await));
        }
        // The first turn warms up.
        turns.remove(0);
        println!("batch of {PATHS}, {clients} at once, median of {TURNS} turns:");
        for (what, of) in [("time", Taken::time as fn(&Taken) -> Duration), ("processor time", Taken::processor)] {
            let ratio = |(with, without): &(Taken, Taken)| of(with).div_duration_f64(of(without));
            let ratios = sorted(turns.iter().map(ratio), f64::total_cmp);
            let with = sorted(turns.iter().map(|turn| of(&turn.0) / BATCHES), Ord::cmp);
            let without = sorted(turns.iter().map(|turn| of(&turn.1) / BATCHES), Ord::cmp);
            let (middle, last) = (TURNS / 2, TURNS - 1);
            println!(
                "  {what}: with the audit {:.2} times ({:.2} to {:.2}); {:?} against {:?} each",
                ratios[middle], ratios[0], ratios[last], with[middle], without[middle],
            );
        }
    }

    /// What is done in either case, since a store is handed whole rows.
    fn pack() {
        let module = Arc::new(ModuleRef { name: "rules".to_owned(), digest: "0".repeat(64) });
        let context = RequestContext::own("req_0123456789abcdef0123456789abcdef".into(), SystemClock.now());
        let event = |n: usize| Event {
            path: SecretPath::parse(&format!("bench/place-{}/secret-{n}", n % 10)).ok(),
            version: Version::new(1),
            code: portcullis::audit::OK,
            decision: Some(Decision {
                verdict: Verdict::Allow(FieldFilter::default()),
                module: Some(Arc::clone(&module)),
                reason: "allowed by rule".to_owned(),
                rules: vec![format!("rule-{}/0", n % 10)],
                dissent: Vec::new(),
                inputs: Vec::new(),
            }),
        };
        let entries = (0..BATCHES).map(|_| Entry {
            events: (0..PATHS).map(event).collect(),
            batch_size: Some(PATHS),
            ..Entry::new(&context, "batch_read", Duration::ZERO)
        });
        let entries: Vec<Entry<'_>> = entries.collect();
        let began = Taken::now();
        let bytes = entries.into_iter().map(|entry| pack(entry).body.len()).max();
        println!("packing {PATHS} events: {:?}, {} bytes", began.elapsed().processor / BATCHES, bytes.unwrap());
    }

    async fn verify(&self) {
        let single = |n: usize| AuditRow { request_id: format!("req_{n:032x}"), ..row() };
        let mut appending = JoinSet::new();
        for chunk in 0..256 {
            let (store, rows) =
                (Arc::clone(&self.with.store), (0..400).map(|n| single(chunk * 400 + n)).collect::<Vec<_>>());
            appending.spawn(async move {
                for row in rows {
                    store.append(row).await.unwrap();
                }
            });
        }
        appending.join_all().await;
        let mut verifier = Verifier::new(Arc::clone(&self.with.audit_keys), &[], &[]);
        let (mut after, began) = (AuditPlace { chain: 0, number: 0 }, Instant::now());
        loop {
            let rows = self.with.store.audit_chain(after, 4_096).await.unwrap();
            let Some(Ok(last)) = rows.last() else { break };
            after = last.place;
            rows.iter().flatten().for_each(|row| verifier.row(row));
        }
        let took = began.elapsed();
        let report = verifier.finish();
        assert!(report.integrity && report.completeness);
        let (rows, events) = (report.chains[0].rows, report.chains[0].events);
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let rate = |count: u64| count as f64 / took.as_secs_f64();
        println!(
            "verified {rows} rows with {events} events in {took:?}: {:.0} events/s, {:.0} rows/s",
            rate(events),
            rate(rows)
        );
    }
}

/// What some work takes, or where the clocks stand.
#[derive(Clone, Copy)]
struct Taken {
    time: Duration,
    /// Of all threads of this process.
    processor: Duration,
}

impl Taken {
    fn now() -> Self {
        let of = |clock| Duration::try_from(clock_gettime(clock)).unwrap();
        Self { time: of(ClockId::Monotonic), processor: of(ClockId::ProcessCPUTime) }
    }

    fn elapsed(&self) -> Self {
        let now = Self::now();
        Self { time: now.time.saturating_sub(self.time), processor: now.processor.saturating_sub(self.processor) }
    }

    fn time(&self) -> Duration {
        self.time
    }

    fn processor(&self) -> Duration {
        self.processor
    }
}

fn sorted<T>(values: impl Iterator<Item = T>, order: impl FnMut(&T, &T) -> Ordering) -> Vec<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_by(order);
    values
}

/// The row of a read of one secret, as long as they are.
fn row() -> AuditRow {
    let body = "x".repeat(420).into_bytes();
    AuditRow {
        at: SystemClock.now(),
        tenant: Some(TenantId::default_tenant()),
        identity_id: Some("sa:checkout".to_owned()),
        identity_type: Some("service_account".into()),
        action: "read".into(),
        source_ip: Some("127.0.0.1".to_owned()),
        request_id: String::new(),
        events: 1,
        body,
    }
}

/// A store whose log takes every row and keeps none.
struct Unaudited(Arc<dyn SecretStore>);

#[async_trait]
impl SecretStore for Unaudited {
    async fn append(&self, _: AuditRow) -> StoreResult<Receipt> {
        Ok(Receipt::none())
    }

    fn distrust(&self, tenant: &TenantId, path: &SecretPath) {
        self.0.distrust(tenant, path);
    }

    async fn get_many(&self, tenant: &TenantId, wanted: &[(SecretPath, Option<Version>)]) -> StoreResult<Vec<Stored>> {
        self.0.get_many(tenant, wanted).await
    }

    async fn list(&self, tenant: &TenantId, scan: &ListScan, now: Timestamp) -> StoreResult<Vec<Arc<Record>>> {
        self.0.list(tenant, scan, now).await
    }

    async fn versions(&self, tenant: &TenantId, path: &SecretPath) -> StoreResult<Option<(Head, Vec<VersionRecord>)>> {
        self.0.versions(tenant, path).await
    }

    async fn commit(&self, request: ChangeRequest) -> StoreResult<(Result<Committed, Refusal>, Receipt)> {
        self.0.commit(request).await
    }

    async fn start_log(&self, chain: Arc<dyn Chain>) -> StoreResult<ChainHead> {
        self.0.start_log(chain).await
    }

    async fn audit_rows(&self, scan: &AuditScan, limit: u32) -> StoreResult<Vec<Logged>> {
        self.0.audit_rows(scan, limit).await
    }

    async fn audit_chain(&self, after: AuditPlace, limit: u32) -> StoreResult<Vec<Logged>> {
        self.0.audit_chain(after, limit).await
    }

    async fn chain_head(&self, chain: u32) -> StoreResult<ChainHead> {
        self.0.chain_head(chain).await
    }

    async fn tombstones(&self) -> StoreResult<Vec<String>> {
        self.0.tombstones().await
    }

    async fn chains(&self) -> StoreResult<Vec<u32>> {
        self.0.chains().await
    }

    async fn misplaced_audit_rows(&self) -> StoreResult<u64> {
        self.0.misplaced_audit_rows().await
    }

    async fn retain(&self, tombstone: Tombstone) -> StoreResult<Receipt> {
        self.0.retain(tombstone).await
    }

    async fn tenant_keys(&self, tenant: &TenantId) -> StoreResult<Vec<WrappedKey>> {
        self.0.tenant_keys(tenant).await
    }

    async fn change_keys(&self, request: KeyChangeRequest) -> StoreResult<(u64, Receipt)> {
        self.0.change_keys(request).await
    }

    async fn generations(&self, tenant: Option<&TenantId>) -> StoreResult<Vec<GenerationUse>> {
        self.0.generations(tenant).await
    }

    async fn stale_keys(
        &self,
        tenant: &TenantId,
        newest: u32,
        after: Option<&WrappedDataKey>,
        limit: u32,
    ) -> StoreResult<Vec<WrappedDataKey>> {
        self.0.stale_keys(tenant, newest, after, limit).await
    }

    async fn root_fingerprint(&self, fingerprint: &[u8]) -> StoreResult<Vec<u8>> {
        self.0.root_fingerprint(fingerprint).await
    }

    async fn vault_key(&self, root: &[u8], name: &'static str, wrapped: &[u8]) -> StoreResult<Vec<u8>> {
        self.0.vault_key(root, name, wrapped).await
    }

    async fn kept_vault_key(&self, name: &'static str) -> StoreResult<Option<Vec<u8>>> {
        self.0.kept_vault_key(name).await
    }

    async fn ready(&self) -> StoreResult<()> {
        self.0.ready().await
    }

    async fn close(&self) {
        self.0.close().await;
    }
}
