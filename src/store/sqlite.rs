//! The vault in one SQLite file: readers that cannot write, and one writer that commits for all who wait.

use std::{
    fs::{self, File, TryLockError},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use super::{
    ChangeRequest, Committed, KeyChangeRequest, ListScan, Logged, Refusal, SecretStore, StoreError, StoreResult,
    Stored, Tombstone, log_check, migrations,
    sql::{BUSY_TIMEOUT, Backend},
    tables::Tables,
    writer::{InPlace, Job, WriterHandle},
};
use crate::domain::{
    AuditPlace, AuditRow, AuditScan, Chain, ChainHead, GenerationUse, Head, Receipt, SecretPath, TenantId, Timestamp,
    Version, VersionRecord, WrappedDataKey, WrappedKey,
};
use async_trait::async_trait;
use sqlx::{
    ConnectOptions, Connection, Row, Sqlite, SqliteConnection, SqlitePool,
    pool::PoolConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

/// The first release without the defect by which two connections could corrupt a write-ahead log
/// (sqlite.org/wal.html, "WAL-reset bug").
const OLDEST_SQLITE: [u32; 3] = [3, 51, 3];
/// How often the log is tried to be emptied at the start, where another process reads it.
const SETTLE_TRIES: usize = 10;
/// How long a request waits for a free reader.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// [`SecretStore`] on SQLite.
pub struct SqliteStore {
    readers: SqlitePool,
    writer: WriterHandle,
    /// Held while the store is open: a second server on the same directory is refused.
    _lock: Option<File>,
}

impl SqliteStore {
    /// Opens `portcullis.db` in the directory, making both where they are missing (modes 0700 and 0600).
    ///
    /// # Errors
    ///
    /// A directory that another server holds, a library that is too old, a failed migration, and the database's own.
    pub async fn open(directory: &Path) -> StoreResult<Self> {
        let unfit = |what: &str, error: &dyn std::fmt::Display| {
            StoreError::Unfit(format!("{what} {}: {error}", directory.display()))
        };
        make_directory(directory)?;
        let lock = lock(directory)?;
        let file = directory.join("portcullis.db");
        private_file(&file).map_err(|error| unfit("cannot make the database in", &error))?;
        let log = log_check::damage(&directory.join("portcullis.db-wal"));
        if let Some(damage) = log.map_err(|error| unfit("cannot read the database's log in", &error))? {
            return Err(unfit(
                "acknowledged changes are damaged in the database's log: a backup is needed for",
                &damage,
            ));
        }
        let options = options(&file);
        let mut connection = options.connect().await?;
        assert_library(&mut connection).await?;
        settle_log(&mut connection, &directory.join("portcullis.db-wal")).await?;
        migrate(&mut connection).await?;
        let readers = readers(&options).await?;
        connection.close().await?;
        let writer = WriterHandle::start::<Sqlite>(options, in_place(&file));
        Ok(Self { readers, writer, _lock: Some(lock) })
    }

    /// Opens the database to read, whether or not a server is using it. Nothing is made, and nothing can be written.
    ///
    /// # Errors
    ///
    /// Where there is none, or it cannot be opened.
    pub async fn open_to_read(directory: &Path) -> StoreResult<Self> {
        Self::reading(&options(&directory.join("portcullis.db"))).await
    }

    pub(super) async fn reading(options: &SqliteConnectOptions) -> StoreResult<Self> {
        Ok(Self { readers: readers(options).await?, writer: WriterHandle::none(), _lock: None })
    }

    pub(super) async fn reader(&self) -> StoreResult<PoolConnection<Sqlite>> {
        Ok(self.readers.acquire().await?)
    }
}

#[async_trait]
impl SecretStore for SqliteStore {
    async fn get_many(&self, tenant: &TenantId, wanted: &[(SecretPath, Option<Version>)]) -> StoreResult<Vec<Stored>> {
        Tables::<Sqlite>(&mut *self.reader().await?).get_many(tenant, wanted).await
    }

    async fn list(&self, tenant: &TenantId, scan: &ListScan, now: Timestamp) -> StoreResult<Vec<Head>> {
        Tables::<Sqlite>(&mut *self.reader().await?).list(tenant, scan, now).await
    }

    async fn versions(&self, tenant: &TenantId, path: &SecretPath) -> StoreResult<Option<(Head, Vec<VersionRecord>)>> {
        let mut snapshot = self.readers.begin().await?;
        let mut tables = Tables::<Sqlite>(&mut *snapshot);
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
        Tables::<Sqlite>(&mut *self.reader().await?).audit_rows(scan, limit).await
    }

    async fn audit_chain(&self, after: AuditPlace, limit: u32) -> StoreResult<Vec<Logged>> {
        Tables::<Sqlite>(&mut *self.reader().await?).audit_chain(after, limit).await
    }

    async fn chain_head(&self, chain: u32) -> StoreResult<ChainHead> {
        Tables::<Sqlite>(&mut *self.reader().await?).chain_head(chain).await
    }

    async fn chains(&self) -> StoreResult<Vec<ChainHead>> {
        Tables::<Sqlite>(&mut *self.reader().await?).other_chains(0).await
    }

    async fn misplaced_audit_rows(&self) -> StoreResult<u64> {
        Tables::<Sqlite>(&mut *self.reader().await?).misplaced_rows().await
    }

    async fn tombstones(&self) -> StoreResult<Vec<String>> {
        Tables::<Sqlite>(&mut *self.reader().await?).tombstones().await
    }

    async fn tenant_keys(&self, tenant: &TenantId) -> StoreResult<Vec<WrappedKey>> {
        Tables::<Sqlite>(&mut *self.reader().await?).tenant_keys(tenant).await
    }

    async fn change_keys(&self, request: KeyChangeRequest) -> StoreResult<(u64, Receipt)> {
        self.writer.write(|reply| Job::ChangeKeys(Box::new(request), reply)).await
    }

    async fn generations(&self, tenant: Option<&TenantId>) -> StoreResult<Vec<GenerationUse>> {
        Tables::<Sqlite>(&mut *self.reader().await?).generations(tenant).await
    }

    async fn stale_keys(
        &self,
        tenant: &TenantId,
        newest: u32,
        after: Option<&WrappedDataKey>,
        limit: u32,
    ) -> StoreResult<Vec<WrappedDataKey>> {
        Tables::<Sqlite>(&mut *self.reader().await?).stale_keys(tenant, newest, after, limit).await
    }

    async fn root_fingerprint(&self, fingerprint: &[u8]) -> StoreResult<Vec<u8>> {
        self.writer.write(|reply| Job::RootFingerprint(fingerprint.to_vec(), reply)).await
    }

    async fn vault_key(&self, root: &[u8], name: &'static str, wrapped: &[u8]) -> StoreResult<Vec<u8>> {
        self.writer.write(|reply| Job::VaultKey(root.to_vec(), name, wrapped.to_vec(), reply)).await
    }

    async fn kept_vault_key(&self, name: &'static str) -> StoreResult<Option<Vec<u8>>> {
        Tables::<Sqlite>(&mut *self.reader().await?).kept_vault_key(name).await
    }

    async fn ready(&self) -> StoreResult<()> {
        drop(self.reader().await?);
        self.writer.write(Job::Probe).await
    }

    async fn close(&self) {
        self.writer.close().await;
        self.readers.close().await;
    }
}

pub(super) fn options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        // What is destroyed is overwritten in the file, not merely forgotten.
        .pragma("secure_delete", "ON")
        .row_buffer_size(256)
}

async fn readers(options: &SqliteConnectOptions) -> StoreResult<SqlitePool> {
    let cores = std::thread::available_parallelism().map_or(4, |n| u32::try_from(n.get()).unwrap_or(4));
    let pool = SqlitePoolOptions::new()
        .max_connections(cores.max(4))
        // With its last connection the write-ahead log would go, and come back as another file.
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false);
    Ok(pool.connect_with(options.clone().pragma("query_only", "ON")).await?)
}

/// Checks that the database and its write-ahead log are the files that were opened: what is written to a file that was
/// removed or replaced is lost, and the database does not notice.
fn in_place(file: &Path) -> InPlace {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let database = (file.to_owned(), identity(file));
    let log = (file.with_extension("db-wal"), identity(&file.with_extension("db-wal")));
    Box::new(move || match [&database, &log].into_iter().find(|(path, opened)| identity(path) != *opened) {
        Some((path, _)) => Err(StoreError::Unfit(format!("{} is not the file that was opened", path.display()))),
        None => Ok(()),
    })
}

pub(super) fn make_directory(directory: &Path) -> StoreResult<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| StoreError::Unfit(format!("cannot make the data directory {}: {error}", directory.display())))
}

pub(super) fn lock(directory: &Path) -> StoreResult<File> {
    let unfit = |error: &dyn std::fmt::Display| {
        StoreError::Unfit(format!("cannot lock the data directory {}: {error}", directory.display()))
    };
    let file = private_file(&directory.join("portcullis.lock")).map_err(|error| unfit(&error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(unfit(&"another server is using it")),
        Err(TryLockError::Error(error)) => Err(unfit(&error)),
    }
}

/// Opens a file that nobody else may read. SQLite gives its `-wal` and `-shm` files the mode of the database.
pub(super) fn private_file(path: &Path) -> std::io::Result<File> {
    fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

/// Moves the log into the database, durably. After a sync that failed, the kernel may show in the log what the disk does
/// not have and never will: nothing that is acknowledged may come to stand behind that. Where a reader such as a backup
/// keeps the log in use, it is made durable where it stands.
async fn settle_log(connection: &mut SqliteConnection, log: &Path) -> StoreResult<()> {
    for _ in 0..SETTLE_TRIES {
        if Sqlite::settle_log(connection).await? {
            return Ok(());
        }
    }
    write_again(log).map_err(|error| StoreError::Unfit(format!("the log {} is not durable: {error}", log.display())))
}

/// Writes a file's bytes over themselves and has them synced: the kernel counts them as unsaved again, so the disk has
/// them after this. Readers see no difference; the caller holds the vault's lock, so nobody writes meanwhile.
fn write_again(path: &Path) -> std::io::Result<()> {
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let (mut chunk, mut at) = (vec![0; 1 << 16], 0);
    loop {
        let read = file.read_at(&mut chunk, at)?;
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else { return file.sync_all() };
        file.write_all_at(bytes, at)?;
        at += read as u64;
    }
}

async fn assert_library(connection: &mut SqliteConnection) -> StoreResult<()> {
    let version: String = sqlx::query("SELECT sqlite_version()").fetch_one(connection).await?.try_get(0)?;
    let numbers: Vec<u32> = version.split('.').filter_map(|part| part.parse().ok()).collect();
    if numbers.as_slice() < OLDEST_SQLITE.as_slice() {
        return Err(StoreError::Unfit(format!("SQLite {version} is too old: 3.51.3 or newer is needed")));
    }
    Ok(())
}

async fn migrate(connection: &mut SqliteConnection) -> StoreResult<()> {
    Ok(migrations::sqlite().run_direct(None, connection, false).await?)
}
