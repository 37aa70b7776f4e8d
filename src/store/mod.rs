//! Where ciphertext, descriptions and the audit log are kept. Obeys; decides nothing: times, versions, ciphertext and
//! events are made by the caller. Never sees a key or a value.

mod audit_tables;
mod background;
mod backup;
mod cache;
mod change_tables;
mod direct;
mod key_tables;
mod known;
mod log_check;
mod migrations;
mod postgres;
mod readers;
mod sql;
mod sql_store;
mod sqlite;
mod statements;
mod tables;
mod writer;

use std::sync::Arc;

use async_trait::async_trait;

use crate::domain::{
    AuditPlace, AuditRow, AuditScan, Chain, ChainHead, GenerationUse, Head, KeyStock, MetadataText, Receipt, Record,
    SealedValue, SecretPath, SecretType, StoredAuditRow, TenantId, Timestamp, Version, VersionRecord, WrappedDataKey,
    WrappedKey,
};

pub use backup::{Holdings, Restoring};
pub use postgres::PostgresStore;
pub use sqlite::SqliteStore;

/// The store could not do what it was asked. Nothing of a failed commit is kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database answered with an error, or not at all.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// The same, where SQLite was called without a driver between.
    #[error("database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The tables could not be brought to this program's version.
    #[error("migration: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// What is stored cannot have been written by this program.
    #[error("damaged row: {0}")]
    Damaged(&'static str),
    /// The writer could not commit; it has logged why.
    #[error("the writer did not commit")]
    Uncommitted,
    /// A reading broke off; why is logged.
    #[error("the reading broke off")]
    Unread,
    /// The caller did not wait longer. A change may stand or not; if it stands, so does its audit row.
    #[error("the store did not answer in time")]
    Late,
    /// The audit log was not started, so nothing can be recorded.
    #[error("the audit log was not started")]
    NoLog,
    /// The audit log ends before a row that was durable already.
    #[error("the audit log was rolled back: row {newest} was written, {found} is the last there is")]
    RolledBack {
        /// What was written.
        newest: AuditPlace,
        /// The last row now.
        found: AuditPlace,
    },
    /// The caller's seal failed.
    #[error("the value could not be sealed")]
    Unsealable,
    /// The generation of keys that wraps the value's data key was removed meanwhile.
    #[error("the generation of keys is no longer kept")]
    RetiredKey,
    /// The caller holds another root key than the one whose fingerprint is kept.
    #[error("the root key was replaced: this server holds one that is no longer the vault's")]
    OtherRoot,
    /// The store was shut down.
    #[error("the store is closed")]
    Closed,
    /// The data directory or the library is not fit for use.
    #[error("{0}")]
    Unfit(String),
}

impl StoreError {
    /// Whether the database itself failed: it may have given up the whole transaction then.
    const fn is_of_the_database(&self) -> bool {
        matches!(self, Self::Database(_) | Self::Sqlite(_))
    }
}

/// What every method answers with.
pub type StoreResult<T> = Result<T, StoreError>;

/// A row that cannot have been written by this program, by what is wrong with it. It concerns its own secret alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DamagedRow(pub &'static str);

impl From<DamagedRow> for StoreError {
    fn from(DamagedRow(what): DamagedRow) -> Self {
        Self::Damaged(what)
    }
}

/// A path, and the version that is wanted there; the newest where none is named.
pub type Wanted = (SecretPath, Option<Version>);

/// What is stored at a path.
pub type Stored = Result<Option<Arc<Record>>, DamagedRow>;

/// A row of the audit log that cannot have been written by this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DamagedAuditRow {
    /// When it says that it was written.
    pub at: Timestamp,
    /// Where it stands.
    pub place: AuditPlace,
    /// What is wrong with it.
    pub what: &'static str,
}

/// What stands at a place of the audit log.
pub type Logged = Result<StoredAuditRow, DamagedAuditRow>;

/// The removal of a chain's oldest rows.
pub struct Tombstone {
    /// The last row to go.
    pub until: AuditPlace,
    /// The signed word that they were there.
    pub note: String,
    /// The event that tells of it.
    pub event: AuditRow,
}

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

/// One change of keys. The root key that the caller holds is known by its fingerprint, and must be the vault's wherever
/// something is wrapped under it.
pub enum KeyChange {
    /// Keeps a tenant's key, unless there is one of that generation already.
    Add {
        /// The tenant.
        tenant: TenantId,
        /// Its new key.
        key: WrappedKey,
        /// The fingerprint of the root key that wraps it.
        root: Vec<u8>,
    },
    /// Replaces data keys by the same under another generation: each the first by the second, where the first still
    /// stands.
    Rewrap {
        /// The tenant.
        tenant: TenantId,
        /// As they were read, with their new forms.
        keys: Vec<(WrappedDataKey, WrappedKey)>,
    },
    /// Removes the generations of a tenant that wrap nothing, never the newest.
    DropUnused(TenantId),
    /// Replaces every key under the root key, and the root key's fingerprint.
    ReplaceRoot {
        /// The fingerprint of the root key that wraps now.
        from: Vec<u8>,
        /// The fingerprint of the root key that shall wrap.
        to: Vec<u8>,
        /// Wraps all under the new root key; `None` where one of them does not open.
        rewrap: RewrapAll,
    },
}

/// Wraps every key anew.
pub type RewrapAll = Box<dyn FnOnce(KeyStock) -> Option<KeyStock> + Send>;

/// Makes the audit row for a change of keys from the number of keys that it changed. Called inside its transaction.
pub type KeyWitness = Box<dyn FnOnce(u64) -> AuditRow + Send>;

/// A change of keys with its audit event; none for what a secret's own event implies, and for the parts of a whole that
/// has one.
pub struct KeyChangeRequest {
    /// The change.
    pub change: KeyChange,
    /// Its audit event.
    pub witness: Option<KeyWitness>,
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
    async fn get_many(&self, tenant: &TenantId, wanted: &[Wanted]) -> StoreResult<Vec<Stored>>;

    /// Keeps nothing of this secret in memory: what was read of it cannot be right. It is read anew when it is next wanted.
    fn distrust(&self, tenant: &TenantId, path: &SecretPath);

    /// The secrets that are neither deleted nor expired at `now`, without their versions, in the order of their paths'
    /// bytes. Fewer than the limit only where there are no more; damaged ones are logged and passed over.
    async fn list(&self, tenant: &TenantId, scan: &ListScan, now: Timestamp) -> StoreResult<Vec<Arc<Record>>>;

    /// A secret and all its versions, newest first, without values.
    async fn versions(&self, tenant: &TenantId, path: &SecretPath) -> StoreResult<Option<(Head, Vec<VersionRecord>)>>;

    /// Makes one change and appends its audit row, both or neither, durable when this returns.
    async fn commit(&self, request: ChangeRequest) -> StoreResult<(Result<Committed, Refusal>, Receipt)>;

    /// Takes a chain of the audit log for this server. Nothing can be recorded before. Answers the chain's head.
    async fn start_log(&self, chain: Arc<dyn Chain>) -> StoreResult<ChainHead>;

    /// Appends a row to the audit log, durable when this returns.
    async fn append(&self, row: AuditRow) -> StoreResult<Receipt>;

    /// Rows of the audit log.
    async fn audit_rows(&self, scan: &AuditScan, limit: u32) -> StoreResult<Vec<Logged>>;

    /// The rows of the audit log that follow a place, chain by chain.
    async fn audit_chain(&self, after: AuditPlace, limit: u32) -> StoreResult<Vec<Logged>>;

    /// The last row of a chain.
    async fn chain_head(&self, chain: u32) -> StoreResult<ChainHead>;

    /// The notes of what was removed from the audit log.
    async fn tombstones(&self) -> StoreResult<Vec<String>>;

    /// The audit log's chains.
    async fn chains(&self) -> StoreResult<Vec<u32>>;

    /// How many rows of the audit log stand where the vault writes none.
    async fn misplaced_audit_rows(&self) -> StoreResult<u64>;

    /// Removes a chain's oldest rows, and leaves a tombstone and an event.
    async fn retain(&self, tombstone: Tombstone) -> StoreResult<Receipt>;

    /// The tenant's key-encryption keys, oldest first.
    async fn tenant_keys(&self, tenant: &TenantId) -> StoreResult<Vec<WrappedKey>>;

    /// Makes one change of keys and appends its audit row, both or neither. Answers how many keys it changed,
    /// and the receipt of its event (an empty one where it has none).
    async fn change_keys(&self, request: KeyChangeRequest) -> StoreResult<(u64, Receipt)>;

    /// How many values each generation of keys wraps, by tenant and generation; of one tenant, or of all.
    async fn generations(&self, tenant: Option<&TenantId>) -> StoreResult<Vec<GenerationUse>>;

    /// The data keys that an older generation than `newest` wraps, in the order of their places, after one place.
    async fn stale_keys(
        &self,
        tenant: &TenantId,
        newest: u32,
        after: Option<&WrappedDataKey>,
        limit: u32,
    ) -> StoreResult<Vec<WrappedDataKey>>;

    /// Keeps the root key's fingerprint, unless there is one already. Answers what is kept now.
    async fn root_fingerprint(&self, fingerprint: &[u8]) -> StoreResult<Vec<u8>>;

    /// Keeps a key of the vault's own, wrapped under the root key of this fingerprint, unless there is one of that name
    /// already. Answers what is kept now.
    async fn vault_key(&self, root: &[u8], name: &'static str, wrapped: &[u8]) -> StoreResult<Vec<u8>>;

    /// A wrapped key of the vault's own, if there is one of that name.
    async fn kept_vault_key(&self, name: &'static str) -> StoreResult<Option<Vec<u8>>>;

    /// Whether the store can be read and the audit log takes a row.
    async fn ready(&self) -> StoreResult<()>;

    /// Finishes what was begun and lets go of the database.
    async fn close(&self);
}
