//! The vault in a PostgreSQL database that several servers may share.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions, Connection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::{
    ChangeRequest, Committed, KeyChangeRequest, ListScan, Logged, Refusal, SecretStore, StoreResult, Stored, Tombstone,
    migrations,
    tables::Tables,
    writer::{Job, WriterHandle},
};
use crate::domain::{
    AuditPlace, AuditRow, AuditScan, Chain, ChainHead, GenerationUse, Head, Receipt, SecretPath, TenantId, Timestamp,
    Version, VersionRecord, WrappedDataKey, WrappedKey,
};

/// How long a request waits for a free connection before it is told that the store is not there.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// What every session is set to, whatever the database's own defaults are. An acknowledged write must survive a crash;
/// and what no request waits for any longer must not hold a connection or a lock.
const SESSION: [(&str, &str); 4] = [
    ("synchronous_commit", "on"),
    ("lock_timeout", "2s"),
    ("statement_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "10s"),
];

/// [`SecretStore`] on PostgreSQL. Stateless: any number of servers may use one database.
pub struct PostgresStore {
    pool: PgPool,
    writer: WriterHandle,
}

impl PostgresStore {
    /// Connects and brings the tables to this program's version.
    ///
    /// # Errors
    ///
    /// A bad URL, no connection, a failed migration.
    pub async fn connect(url: &str, max_connections: u32) -> StoreResult<Self> {
        let options = url.parse::<PgConnectOptions>()?;
        migrate(&options).await?;
        let options = options.options(SESSION);
        let pool = pool(options.clone(), max_connections).await?;
        let writer = WriterHandle::start::<Postgres>(options, Box::new(|| Ok(())));
        Ok(Self { pool, writer })
    }

    /// Connects to read alone. Nothing is made, and nothing can be written.
    ///
    /// # Errors
    ///
    /// A bad URL, no connection.
    pub async fn connect_to_read(url: &str) -> StoreResult<Self> {
        let options = url.parse::<PgConnectOptions>()?.options([("default_transaction_read_only", "on")]);
        Ok(Self { pool: pool(options, 1).await?, writer: WriterHandle::none() })
    }

    async fn connection(&self) -> StoreResult<PoolConnection<Postgres>> {
        Ok(self.pool.acquire().await?)
    }
}

#[async_trait]
impl SecretStore for PostgresStore {
    async fn get_many(&self, tenant: &TenantId, wanted: &[(SecretPath, Option<Version>)]) -> StoreResult<Vec<Stored>> {
        Tables::<Postgres>(&mut *self.connection().await?).get_many(tenant, wanted).await
    }

    async fn list(&self, tenant: &TenantId, scan: &ListScan, now: Timestamp) -> StoreResult<Vec<Head>> {
        Tables::<Postgres>(&mut *self.connection().await?).list(tenant, scan, now).await
    }

    async fn versions(&self, tenant: &TenantId, path: &SecretPath) -> StoreResult<Option<(Head, Vec<VersionRecord>)>> {
        let mut snapshot = self.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let mut tables = Tables::<Postgres>(&mut *snapshot);
        let Some(head) = tables.head(tenant, path).await? else { return Ok(None) };
        Ok(Some((head, tables.versions(tenant, path).await?)))
    }

    async fn commit(&self, request: ChangeRequest) -> StoreResult<(Result<Committed, Refusal>, Receipt)> {
        self.writer.write(|reply| Job::Commit(Box::new(request), reply)).await
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
        Tables::<Postgres>(&mut *self.connection().await?).audit_rows(scan, limit).await
    }

    async fn audit_chain(&self, after: AuditPlace, limit: u32) -> StoreResult<Vec<Logged>> {
        Tables::<Postgres>(&mut *self.connection().await?).audit_chain(after, limit).await
    }

    async fn chain_head(&self, chain: u32) -> StoreResult<ChainHead> {
        Tables::<Postgres>(&mut *self.connection().await?).chain_head(chain).await
    }

    async fn chains(&self) -> StoreResult<Vec<ChainHead>> {
        Tables::<Postgres>(&mut *self.connection().await?).other_chains(0).await
    }

    async fn misplaced_audit_rows(&self) -> StoreResult<u64> {
        Tables::<Postgres>(&mut *self.connection().await?).misplaced_rows().await
    }

    async fn tombstones(&self) -> StoreResult<Vec<String>> {
        Tables::<Postgres>(&mut *self.connection().await?).tombstones().await
    }

    async fn tenant_keys(&self, tenant: &TenantId) -> StoreResult<Vec<WrappedKey>> {
        Tables::<Postgres>(&mut *self.connection().await?).tenant_keys(tenant).await
    }

    async fn change_keys(&self, request: KeyChangeRequest) -> StoreResult<(u64, Receipt)> {
        self.writer.write(|reply| Job::ChangeKeys(Box::new(request), reply)).await
    }

    async fn generations(&self, tenant: Option<&TenantId>) -> StoreResult<Vec<GenerationUse>> {
        Tables::<Postgres>(&mut *self.connection().await?).generations(tenant).await
    }

    async fn stale_keys(
        &self,
        tenant: &TenantId,
        newest: u32,
        after: Option<&WrappedDataKey>,
        limit: u32,
    ) -> StoreResult<Vec<WrappedDataKey>> {
        Tables::<Postgres>(&mut *self.connection().await?).stale_keys(tenant, newest, after, limit).await
    }

    async fn root_fingerprint(&self, fingerprint: &[u8]) -> StoreResult<Vec<u8>> {
        self.writer.write(|reply| Job::RootFingerprint(fingerprint.to_vec(), reply)).await
    }

    async fn vault_key(&self, root: &[u8], name: &'static str, wrapped: &[u8]) -> StoreResult<Vec<u8>> {
        self.writer.write(|reply| Job::VaultKey(root.to_vec(), name, wrapped.to_vec(), reply)).await
    }

    async fn kept_vault_key(&self, name: &'static str) -> StoreResult<Option<Vec<u8>>> {
        Tables::<Postgres>(&mut *self.connection().await?).kept_vault_key(name).await
    }

    async fn ready(&self) -> StoreResult<()> {
        drop(self.connection().await?);
        self.writer.write(Job::Probe).await
    }

    async fn close(&self) {
        self.writer.close().await;
        self.pool.close().await;
    }
}

async fn pool(options: PgConnectOptions, max_connections: u32) -> StoreResult<PgPool> {
    let pool = PgPoolOptions::new().max_connections(max_connections).acquire_timeout(ACQUIRE_TIMEOUT);
    Ok(pool.connect_with(options).await?)
}

/// Brings the tables to this program's version, on a connection without time limits: a migration takes what it takes.
async fn migrate(options: &PgConnectOptions) -> StoreResult<()> {
    let mut connection = options.connect().await?;
    migrations::postgres().run_direct(None, &mut connection, false).await?;
    Ok(connection.close().await?)
}
