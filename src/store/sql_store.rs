//! The store over either database: readers, and one writer that commits for all who wait.

use std::sync::Arc;

use async_trait::async_trait;

use super::{
    ChangeRequest, Committed, KeyChangeRequest, ListScan, Logged, Refusal, SecretStore, StoreResult, Stored, Tombstone,
    Wanted,
    cache::RecordCache,
    known::{Known, KnownRecords},
    sql::{Pending, Reading},
    tables::{Found, Tables},
    writer::{Job, WriterHandle},
};
use crate::domain::{
    AuditPlace, AuditRow, AuditScan, Chain, ChainHead, GenerationUse, Head, Receipt, Record, SecretPath, TenantId,
    Timestamp, VersionRecord, WrappedDataKey, WrappedKey,
};

/// [`SecretStore`] on a database; how each is opened is its own module's affair.
pub struct SqlStore<B: Reading> {
    pub(super) readers: B::Readers,
    pub(super) writer: WriterHandle,
    pub(super) memory: Memory,
}

/// What is kept in memory.
pub(super) enum Memory {
    None,
    /// What the database holds, since no other server writes.
    Own(Arc<RecordCache>),
    /// What it held once.
    Shared(KnownRecords),
}

impl<B: Reading> SqlStore<B> {
    /// A store that only reads.
    pub(super) fn of_readers(readers: B::Readers) -> Self {
        Self { readers, writer: WriterHandle::none(), memory: Memory::None }
    }

    /// Reads the tables over a connection that nobody else uses meanwhile.
    pub(super) async fn read<T, W>(&self, work: W) -> StoreResult<T>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(Tables<'c, B>) -> Pending<'c, StoreResult<T>> + Send + 'static,
    {
        B::read(&self.readers, |connection| work(Tables(connection))).await
    }

    async fn fetch_many(&self, tenant: &TenantId, wanted: &[Wanted]) -> StoreResult<Vec<Stored>> {
        let found = self.fetch_unknown(tenant, wanted, Vec::new()).await?;
        Ok(found.into_iter().map(|found| found.stored).collect())
    }

    /// What the database holds, without reading anew what is known.
    async fn fetch_unknown(
        &self,
        tenant: &TenantId,
        wanted: &[Wanted],
        known: Vec<Option<Known>>,
    ) -> StoreResult<Vec<Found>> {
        let (tenant, wanted) = (tenant.clone(), wanted.to_vec());
        self.read(|mut tables| Box::pin(async move { tables.get_many(&tenant, &wanted, known).await })).await
    }

    async fn get_known(
        &self,
        records: &KnownRecords,
        tenant: &TenantId,
        wanted: &[Wanted],
    ) -> StoreResult<Vec<Stored>> {
        let found = self.fetch_unknown(tenant, wanted, records.look(tenant, wanted)).await?;
        Ok(records.keep(tenant, wanted, found))
    }

    /// What the cache has of it comes from there, as long as all of it is of one moment.
    async fn get_cached(&self, cache: &RecordCache, tenant: &TenantId, wanted: &[Wanted]) -> StoreResult<Vec<Stored>> {
        let (looked_at, found) = cache.look(tenant, wanted);
        let missing: Vec<Wanted> =
            wanted.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(wanted, _)| wanted.clone()).collect();
        if missing.is_empty() {
            return Ok(found.into_iter().map(Ok).collect());
        }
        let fetched = self.fetch_many(tenant, &missing).await?;
        let newest = missing.iter().zip(&fetched).filter_map(|((path, version), stored)| {
            let record = stored.as_ref().ok()?.as_ref()?;
            version.is_none().then_some((path, record))
        });
        let used = wanted.iter().zip(&found).filter(|(_, found)| found.is_some()).map(|((path, _), _)| path);
        if !cache.keep(looked_at, tenant, used, newest) {
            return self.fetch_many(tenant, wanted).await;
        }
        let mut fetched = fetched.into_iter();
        let either =
            |found: Option<_>| found.map_or_else(|| fetched.next().unwrap_or(Ok(None)), |record| Ok(Some(record)));
        Ok(found.into_iter().map(either).collect())
    }
}

#[async_trait]
impl<B: Reading> SecretStore for SqlStore<B> {
    async fn get_many(&self, tenant: &TenantId, wanted: &[Wanted]) -> StoreResult<Vec<Stored>> {
        match &self.memory {
            Memory::None => self.fetch_many(tenant, wanted).await,
            Memory::Own(cache) => self.get_cached(cache, tenant, wanted).await,
            Memory::Shared(records) => self.get_known(records, tenant, wanted).await,
        }
    }

    fn distrust(&self, tenant: &TenantId, path: &SecretPath) {
        match &self.memory {
            Memory::None => (),
            Memory::Own(cache) => cache.forget(tenant, path),
            Memory::Shared(records) => records.forget(tenant, path),
        }
    }

    async fn list(&self, tenant: &TenantId, scan: &ListScan, now: Timestamp) -> StoreResult<Vec<Arc<Record>>> {
        let (tenant, scan) = (tenant.clone(), scan.clone());
        self.read(move |mut tables| Box::pin(async move { tables.list(&tenant, &scan, now).await })).await
    }

    async fn versions(&self, tenant: &TenantId, path: &SecretPath) -> StoreResult<Option<(Head, Vec<VersionRecord>)>> {
        let (tenant, path) = (tenant.clone(), path.clone());
        B::read_one_moment(&self.readers, |connection| {
            Box::pin(async move { Tables::<B>(connection).head_and_versions(&tenant, &path).await })
        })
        .await
    }

    async fn commit(&self, request: ChangeRequest) -> StoreResult<(Result<Committed, Refusal>, Receipt)> {
        let Memory::Shared(records) = &self.memory else {
            return self.writer.write(|reply| Job::Commit(Box::new(request), reply)).await;
        };
        let (tenant, path) = (request.tenant.clone(), request.path.clone());
        let committed = self.writer.write(|reply| Job::Commit(Box::new(request), reply)).await;
        // What was destroyed is not to stay here until somebody asks for it.
        records.forget(&tenant, &path);
        committed
    }

    async fn start_log(&self, chain: Arc<dyn Chain>) -> StoreResult<ChainHead> {
        self.writer.write(|reply| Job::StartLog(chain, reply)).await
    }

    async fn append(&self, row: AuditRow) -> StoreResult<Receipt> {
        self.writer.write(|reply| Job::Append(Box::new(row), reply)).await
    }

    async fn retain(&self, tombstone: Tombstone) -> StoreResult<Receipt> {
        self.writer.write(|reply| Job::Retain(Box::new(tombstone), reply)).await
    }

    async fn audit_rows(&self, scan: &AuditScan, limit: u32) -> StoreResult<Vec<Logged>> {
        let scan = scan.clone();
        self.read(move |mut tables| Box::pin(async move { tables.audit_rows(&scan, limit).await })).await
    }

    async fn audit_chain(&self, after: AuditPlace, limit: u32) -> StoreResult<Vec<Logged>> {
        self.read(move |mut tables| Box::pin(async move { tables.audit_chain(after, limit).await })).await
    }

    async fn chain_head(&self, chain: u32) -> StoreResult<ChainHead> {
        self.read(move |mut tables| Box::pin(async move { tables.chain_head(chain).await })).await
    }

    async fn chains(&self) -> StoreResult<Vec<u32>> {
        self.read(|mut tables| Box::pin(async move { tables.chains().await })).await
    }

    async fn misplaced_audit_rows(&self) -> StoreResult<u64> {
        self.read(|mut tables| Box::pin(async move { tables.misplaced_rows().await })).await
    }

    async fn tombstones(&self) -> StoreResult<Vec<String>> {
        self.read(|mut tables| Box::pin(async move { tables.tombstones().await })).await
    }

    async fn tenant_keys(&self, tenant: &TenantId) -> StoreResult<Vec<WrappedKey>> {
        let tenant = tenant.clone();
        self.read(|mut tables| Box::pin(async move { tables.tenant_keys(&tenant).await })).await
    }

    async fn change_keys(&self, request: KeyChangeRequest) -> StoreResult<(u64, Receipt)> {
        self.writer.write(|reply| Job::ChangeKeys(Box::new(request), reply)).await
    }

    async fn generations(&self, tenant: Option<&TenantId>) -> StoreResult<Vec<GenerationUse>> {
        let tenant = tenant.cloned();
        self.read(|mut tables| Box::pin(async move { tables.generations(tenant.as_ref()).await })).await
    }

    async fn stale_keys(
        &self,
        tenant: &TenantId,
        newest: u32,
        after: Option<&WrappedDataKey>,
        limit: u32,
    ) -> StoreResult<Vec<WrappedDataKey>> {
        let (tenant, after) = (tenant.clone(), after.cloned());
        self.read(move |mut tables| {
            Box::pin(async move { tables.stale_keys(&tenant, newest, after.as_ref(), limit).await })
        })
        .await
    }

    async fn root_fingerprint(&self, fingerprint: &[u8]) -> StoreResult<Vec<u8>> {
        self.writer.write(|reply| Job::RootFingerprint(fingerprint.to_vec(), reply)).await
    }

    async fn vault_key(&self, root: &[u8], name: &'static str, wrapped: &[u8]) -> StoreResult<Vec<u8>> {
        self.writer.write(|reply| Job::VaultKey(root.to_vec(), name, wrapped.to_vec(), reply)).await
    }

    async fn kept_vault_key(&self, name: &'static str) -> StoreResult<Option<Vec<u8>>> {
        self.read(move |mut tables| Box::pin(async move { tables.kept_vault_key(name).await })).await
    }

    async fn ready(&self) -> StoreResult<()> {
        // Whatever its name: it is looked for.
        self.kept_vault_key("").await?;
        self.writer.write(Job::Probe).await
    }

    async fn close(&self) {
        self.writer.close().await;
        B::close(&self.readers).await;
    }
}
