//! Where ciphertext, descriptions and the audit log are kept. Obeys; decides nothing: times, versions, ciphertext and
//! events are made by the caller. Never sees a key or a value.

mod log_check;
mod migrations;
mod postgres;
mod sql;
mod sqlite;
mod tables;

use std::sync::Arc;

use async_trait::async_trait;

use crate::domain::{
    AuditRow, AuditScan, AuditSequence, Head, MetadataText, Record, SealedValue, SecretPath, SecretType,
    StoredAuditRow, TenantId, Timestamp, Version, VersionRecord, WrappedKey,
};

pub use postgres::PostgresStore;
pub use sqlite::SqliteStore;

/// The store could not do what it was asked. Nothing of a failed commit is kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database answered with an error, or not at all.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// The tables could not be brought to this program's version.
    #[error("migration: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// What is stored cannot have been written by this program.
    #[error("damaged row: {0}")]
    Damaged(&'static str),
    /// The writer could not commit; it has logged why.
    #[error("the writer did not commit")]
    Uncommitted,
    /// The caller did not wait longer. A change may stand or not; if it stands, so does its audit row.
    #[error("the store did not answer in time")]
    Late,
    /// The caller's seal failed.
    #[error("the value could not be sealed")]
    Unsealable,
    /// The store was shut down.
    #[error("the store is closed")]
    Closed,
    /// The data directory or the library is not fit for use.
    #[error("{0}")]
    Unfit(String),
}

/// What every method answers with.
pub type StoreResult<T> = Result<T, StoreError>;

/// A row that cannot have been written by this program, by what is wrong with it. It concerns its own secret alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DamagedRow(pub &'static str);

/// What is stored at a path.
pub type Stored = Result<Option<Record>, DamagedRow>;

/// Seals the value for the version that it is about to get.
pub type Seal = Box<dyn FnOnce(Version) -> Option<SealedValue> + Send>;

/// Makes the audit row for what became of a change. Called once, inside the change's transaction.
pub type Witness = Box<dyn FnOnce(&Result<Committed, Refusal>) -> AuditRow + Send>;

/// Rewrites a secret's metadata; `None` where the result would be beyond its limits.
pub type EditMetadata = Box<dyn FnOnce(&MetadataText) -> Option<MetadataText> + Send>;

/// One change of one secret.
pub enum Change {
    /// A new version.
    Put(Put),
    /// Hides the secret until it is restored or its time is over.
    SoftDelete {
        /// Until when it can be restored.
        recoverable_until: Timestamp,
    },
    /// Undoes a soft delete.
    Restore,
    /// Removes the secret, all its versions and their keys.
    Purge,
    /// Removes the keys and values of these versions.
    Destroy(Vec<Version>),
    /// Rewrites the metadata; no new version.
    EditMetadata(EditMetadata),
}

/// A new version of a secret.
pub struct Put {
    /// Its type; the type before, or `kv`, where none.
    pub secret_type: Option<SecretType>,
    /// Its metadata; the metadata before where none.
    pub metadata: Option<MetadataText>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// How many versions to keep; as before, or ten, where none.
    pub max_versions: Option<u32>,
    /// The version that must be the newest; 0: there must be none.
    pub expected_version: Option<i64>,
    /// The version that the value was taken from: it must still be there.
    pub source: Option<Version>,
    /// Seals the value.
    pub seal: Seal,
}

/// Who changes what, when.
pub struct ChangeRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// The secret.
    pub path: SecretPath,
    /// The principal's id.
    pub by: Arc<str>,
    /// The instant of the request.
    pub at: Timestamp,
    /// The change.
    pub change: Change,
    /// Its audit event.
    pub witness: Witness,
}

/// A change that took place: the secret as it is now (as it was, for a purge).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The secret.
    pub head: Head,
    /// Whether this was its first version.
    pub created: bool,
}

/// A change that could not take place. Nothing was written but its audit event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such secret, or it is deleted.
    Absent,
    /// There is no such version.
    VersionAbsent,
    /// `expected_version` does not hold; this is the newest version.
    VersionConflict(i64),
    /// The path is held by a deleted secret that can still be restored.
    Deleted,
    /// The metadata would be beyond its limits.
    MetadataTooLarge,
    /// The secret has had as many versions as numbers allow.
    VersionsExhausted,
    /// What is stored of the secret is damaged.
    Damaged,
}

/// Which secrets a listing wants, in the order of their paths.
#[derive(Debug, Clone, Default)]
pub struct ListScan {
    /// Their paths start with this.
    pub prefix: String,
    /// Their paths come after this.
    pub after: Option<SecretPath>,
    /// How many at most.
    pub limit: u32,
}

/// The store in the domain's verbs. One method is one transaction.
#[async_trait]
pub trait SecretStore: Send + Sync {
    /// The secrets at these paths, each at the version asked for or else its newest, in the order of the question: one
    /// statement, one snapshot. Deleted and expired ones are found too; `None` where there is nothing.
    async fn get_many(&self, tenant: &TenantId, wanted: &[(SecretPath, Option<Version>)]) -> StoreResult<Vec<Stored>>;

    /// The secrets that are neither deleted nor expired at `now`, in the order of their paths' bytes. Fewer than the
    /// limit only where there are no more; damaged ones are logged and passed over.
    async fn list(&self, tenant: &TenantId, scan: &ListScan, now: Timestamp) -> StoreResult<Vec<Head>>;

    /// A secret and all its versions, newest first, without values.
    async fn versions(&self, tenant: &TenantId, path: &SecretPath) -> StoreResult<Option<(Head, Vec<VersionRecord>)>>;

    /// Makes one change and appends its audit row, both or neither, durable when this returns.
    async fn commit(&self, request: ChangeRequest) -> StoreResult<Result<Committed, Refusal>>;

    /// Appends a row to the audit log, durable when this returns.
    async fn append(&self, row: AuditRow) -> StoreResult<AuditSequence>;

    /// Rows of the audit log, newest first.
    async fn audit_rows(&self, scan: &AuditScan, limit: u32) -> StoreResult<Vec<StoredAuditRow>>;

    /// The tenant's key-encryption keys, oldest first.
    async fn tenant_keys(&self, tenant: &TenantId) -> StoreResult<Vec<WrappedKey>>;

    /// Keeps a key-encryption key, unless there is one of that generation already. Answers what is kept now.
    async fn add_tenant_key(&self, tenant: &TenantId, key: WrappedKey) -> StoreResult<Vec<WrappedKey>>;

    /// Keeps the root key's fingerprint, unless there is one already. Answers what is kept now.
    async fn root_fingerprint(&self, fingerprint: &[u8]) -> StoreResult<Vec<u8>>;

    /// Keeps a wrapped key of the vault's own, unless there is one of that name already. Answers what is kept now.
    async fn vault_key(&self, name: &'static str, wrapped: &[u8]) -> StoreResult<Vec<u8>>;

    /// Whether the store can be read and the audit log takes a row.
    async fn ready(&self) -> StoreResult<()>;

    /// Finishes what was begun and lets go of the database.
    async fn close(&self);
}
