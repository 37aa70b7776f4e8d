//! The vault in a PostgreSQL database that several servers may share.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{
    ConnectOptions, Connection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::{
    ChangeRequest, Committed, KeyChangeRequest, ListScan, Refusal, SecretStore, StoreResult, Stored, migrations,
    tables::Tables,
};
use crate::domain::{
    AuditRow, AuditScan, AuditSequence, GenerationUse, Head, SecretPath, StoredAuditRow, TenantId, Timestamp, Version,
    VersionRecord, WrappedDataKey, WrappedKey,
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
        let pool = PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.options(SESSION))
            .await?;
        Ok(Self { pool })
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

    async fn commit(&self, request: ChangeRequest) -> StoreResult<Result<Committed, Refusal>> {
        let mut transaction = self.pool.begin().await?;
        let outcome = Tables::<Postgres>(&mut *transaction).apply(request).await?;
        transaction.commit().await?;
        Ok(outcome)
    }

    async fn append(&self, row: AuditRow) -> StoreResult<AuditSequence> {
        Tables::<Postgres>(&mut *self.connection().await?).append(&row).await
    }

    async fn audit_rows(&self, scan: &AuditScan, limit: u32) -> StoreResult<Vec<StoredAuditRow>> {
        Tables::<Postgres>(&mut *self.connection().await?).audit_rows(scan, limit).await
    }

    async fn tenant_keys(&self, tenant: &TenantId) -> StoreResult<Vec<WrappedKey>> {
        Tables::<Postgres>(&mut *self.connection().await?).tenant_keys(tenant).await
    }

    async fn change_keys(&self, request: KeyChangeRequest) -> StoreResult<u64> {
        let mut transaction = self.pool.begin().await?;
        let changed = Tables::<Postgres>(&mut *transaction).change_keys(request).await?;
        transaction.commit().await?;
        Ok(changed)
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
        Tables::<Postgres>(&mut *self.connection().await?).root_fingerprint(fingerprint).await
    }

    async fn vault_key(&self, root: &[u8], name: &'static str, wrapped: &[u8]) -> StoreResult<Vec<u8>> {
        let mut transaction = self.pool.begin().await?;
        let kept = Tables::<Postgres>(&mut *transaction).vault_key(root, name, wrapped).await?;
        transaction.commit().await?;
        Ok(kept)
    }

    async fn ready(&self) -> StoreResult<()> {
        let mut transaction = self.pool.begin().await?;
        Tables::<Postgres>(&mut *transaction).probe().await?;
        Ok(transaction.commit().await?)
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

/// Brings the tables to this program's version, on a connection without time limits: a migration takes what it takes.
async fn migrate(options: &PgConnectOptions) -> StoreResult<()> {
    let mut connection = options.connect().await?;
    migrations::postgres().run_direct(None, &mut connection, false).await?;
    Ok(connection.close().await?)
}
