//! The vault in one SQLite file: readers that cannot write, and one writer that commits for all who wait.

use std::{
    fs::{self, File, TryLockError},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions, Connection, Row, Sqlite, SqliteConnection, SqlitePool,
    pool::PoolConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{
    ChangeRequest, Committed, ListScan, Refusal, SecretStore, StoreError, StoreResult, Stored, log_check, migrations,
    tables::Tables,
};
use crate::domain::{
    AuditRow, AuditScan, AuditSequence, Head, SecretPath, StoredAuditRow, TenantId, Timestamp, Version, VersionRecord,
    WrappedKey,
};

/// The first release without the defect by which two connections could corrupt a write-ahead log
/// (sqlite.org/wal.html, "WAL-reset bug").
const OLDEST_SQLITE: [u32; 3] = [3, 51, 3];
/// How many requests may wait for the writer before a new one waits to be let in.
const QUEUE: usize = 1_024;
/// How many requests one transaction serves at most.
const GROUP: usize = 256;
/// How long a request waits for a free reader.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// [`SecretStore`] on SQLite.
pub struct SqliteStore {
    readers: SqlitePool,
    writer: mpsc::Sender<Job>,
    task: tokio::sync::Mutex<Option<JoinHandle<()>>>,
    /// Held while the store is open: a second server on the same directory is refused.
    _lock: File,
}

enum Job {
    Commit(Box<ChangeRequest>, oneshot::Sender<StoreResult<Result<Committed, Refusal>>>),
    Append(Box<AuditRow>, oneshot::Sender<StoreResult<AuditSequence>>),
    AddTenantKey(TenantId, WrappedKey, oneshot::Sender<StoreResult<Vec<WrappedKey>>>),
    RootFingerprint(Vec<u8>, oneshot::Sender<StoreResult<Vec<u8>>>),
    VaultKey(&'static str, Vec<u8>, oneshot::Sender<StoreResult<Vec<u8>>>),
    Probe(oneshot::Sender<StoreResult<()>>),
    Close,
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
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| unfit("cannot make the data directory", &error))?;
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
        let options = SqliteConnectOptions::new()
            .filename(&file)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(ACQUIRE_TIMEOUT)
            // What is destroyed is overwritten in the file, not merely forgotten.
            .pragma("secure_delete", "ON")
            .row_buffer_size(256);
        let mut connection = options.connect().await?;
        assert_library(&mut connection).await?;
        empty_log(&mut connection).await?;
        migrate(&mut connection).await?;
        let cores = std::thread::available_parallelism().map_or(4, |n| u32::try_from(n.get()).unwrap_or(4));
        let readers = SqlitePoolOptions::new()
            .max_connections(cores.max(4))
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .connect_with(options.clone().pragma("query_only", "ON"))
            .await?;
        let (writer, jobs) = mpsc::channel(QUEUE);
        let task = tokio::spawn(Writer { options, connection: Some(connection), unsynced: false }.run(jobs));
        Ok(Self { readers, writer, task: tokio::sync::Mutex::new(Some(task)), _lock: lock })
    }

    async fn reader(&self) -> StoreResult<PoolConnection<Sqlite>> {
        Ok(self.readers.acquire().await?)
    }

    async fn write<T>(&self, job: impl FnOnce(oneshot::Sender<StoreResult<T>>) -> Job) -> StoreResult<T> {
        let (reply, answer) = oneshot::channel();
        self.writer.send(job(reply)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Uncommitted)?
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

    async fn commit(&self, request: ChangeRequest) -> StoreResult<Result<Committed, Refusal>> {
        self.write(|reply| Job::Commit(Box::new(request), reply)).await
    }

    async fn append(&self, row: AuditRow) -> StoreResult<AuditSequence> {
        self.write(|reply| Job::Append(Box::new(row), reply)).await
    }

    async fn audit_rows(&self, scan: &AuditScan, limit: u32) -> StoreResult<Vec<StoredAuditRow>> {
        Tables::<Sqlite>(&mut *self.reader().await?).audit_rows(scan, limit).await
    }

    async fn tenant_keys(&self, tenant: &TenantId) -> StoreResult<Vec<WrappedKey>> {
        Tables::<Sqlite>(&mut *self.reader().await?).tenant_keys(tenant).await
    }

    async fn add_tenant_key(&self, tenant: &TenantId, key: WrappedKey) -> StoreResult<Vec<WrappedKey>> {
        self.write(|reply| Job::AddTenantKey(tenant.clone(), key, reply)).await
    }

    async fn root_fingerprint(&self, fingerprint: &[u8]) -> StoreResult<Vec<u8>> {
        self.write(|reply| Job::RootFingerprint(fingerprint.to_vec(), reply)).await
    }

    async fn vault_key(&self, name: &'static str, wrapped: &[u8]) -> StoreResult<Vec<u8>> {
        self.write(|reply| Job::VaultKey(name, wrapped.to_vec(), reply)).await
    }

    async fn ready(&self) -> StoreResult<()> {
        drop(self.reader().await?);
        self.write(Job::Probe).await
    }

    async fn close(&self) {
        if self.writer.send(Job::Close).await.is_ok()
            && let Some(task) = self.task.lock().await.take()
        {
            task.await.ok();
        }
        self.readers.close().await;
    }
}

/// The one connection that writes.
struct Writer {
    options: SqliteConnectOptions,
    /// None after a failure: what SQLite knows of the log is not to be trusted then, so it is opened anew.
    connection: Option<SqliteConnection>,
    /// Whether the log may hold what the disk does not.
    unsynced: bool,
}

/// Sends an answer, once what it tells is durable.
type Reply = Box<dyn FnOnce() + Send>;

impl Writer {
    async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(first) = jobs.recv().await {
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(job) = jobs.try_recv()
            {
                group.push(job);
            }
            if group.iter().any(|job| matches!(job, Job::Close)) {
                // Nothing more is let in; what waits already is still served.
                jobs.close();
            }
            group.retain(Job::is_awaited);
            if !group.is_empty() {
                self.serve(group).await;
            }
        }
        if let Some(connection) = self.connection.take() {
            connection.close().await.ok();
        }
    }

    /// Serves a group in one transaction, and answers everyone after it is durable. Who gets no answer hears of the
    /// failure by that.
    async fn serve(&mut self, group: Vec<Job>) {
        match self.commit(group).await {
            Ok(replies) => replies.into_iter().for_each(|reply| reply()),
            Err(error) => {
                tracing::error!(%error, "nothing of a group of changes could be committed");
                self.unsynced |= is_failed_sync(&error);
                if let Some(connection) = self.connection.take() {
                    connection.close_hard().await.ok();
                }
            }
        }
    }

    async fn commit(&mut self, group: Vec<Job>) -> StoreResult<Vec<Reply>> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.options.connect().await?,
        };
        if self.unsynced {
            empty_log(&mut connection).await?;
            self.unsynced = false;
        }
        let mut transaction = self.connection.insert(connection).begin_with("BEGIN IMMEDIATE").await?;
        let mut replies = Vec::with_capacity(group.len());
        // Whoever gave up while the transaction waited to begin was told that nothing was done.
        for job in group.into_iter().filter(Job::is_awaited) {
            replies.push(perform(job, &mut transaction).await?);
        }
        transaction.commit().await?;
        Ok(replies)
    }
}

impl Job {
    /// Whether somebody still waits for it. What was given up is not begun: its caller was told that it failed.
    fn is_awaited(&self) -> bool {
        match self {
            Self::Commit(_, answer) => !answer.is_closed(),
            Self::Append(_, answer) => !answer.is_closed(),
            Self::AddTenantKey(_, _, answer) => !answer.is_closed(),
            Self::RootFingerprint(_, answer) => !answer.is_closed(),
            Self::VaultKey(_, _, answer) => !answer.is_closed(),
            Self::Probe(answer) => !answer.is_closed(),
            Self::Close => false,
        }
    }
}

/// Does one job inside the group's transaction. A job that fails alone is undone and answered at once; an error that is
/// returned ends the group.
async fn perform(job: Job, group: &mut SqliteConnection) -> StoreResult<Reply> {
    // One statement, and where it fails no one's event can be recorded: it needs no savepoint.
    if let Job::Append(row, answer) = job {
        let sequence = Tables::<Sqlite>(group).append(&row).await?;
        return Ok(settle(Ok(sequence), answer).unwrap_or_else(|| Box::new(|| ())));
    }
    let mut savepoint = group.begin().await?;
    let mut tables = Tables::<Sqlite>(&mut savepoint);
    let reply = match job {
        Job::Commit(request, answer) => settle(tables.apply(*request).await, answer),
        Job::AddTenantKey(tenant, key, answer) => settle(tables.add_tenant_key(&tenant, &key).await, answer),
        Job::RootFingerprint(fingerprint, answer) => settle(tables.root_fingerprint(&fingerprint).await, answer),
        Job::VaultKey(name, wrapped, answer) => settle(tables.vault_key(name, &wrapped).await, answer),
        Job::Probe(answer) => settle(tables.probe().await, answer),
        Job::Append(..) | Job::Close => None,
    };
    if let Some(reply) = reply {
        savepoint.commit().await?;
        return Ok(reply);
    }
    // Where SQLite gave up the whole transaction, there is no savepoint to go back to, and this fails too.
    savepoint.rollback().await?;
    Ok(Box::new(|| ()))
}

/// Keeps an answer back until it is durable; a failure is told at once.
fn settle<T: Send + 'static>(result: StoreResult<T>, answer: oneshot::Sender<StoreResult<T>>) -> Option<Reply> {
    match result {
        // Nobody listens where the request was given up; what was done stands and is in the audit.
        Ok(value) => Some(Box::new(|| drop(answer.send(Ok(value))))),
        Err(error) => {
            answer.send(Err(error)).ok();
            None
        }
    }
}

fn lock(directory: &Path) -> StoreResult<File> {
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
fn private_file(path: &Path) -> std::io::Result<File> {
    fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

/// Moves the log into the database, durably. After a sync that failed, the kernel may show in the log what the disk does
/// not have and never will: nothing that is acknowledged may come to stand behind that.
async fn empty_log(connection: &mut SqliteConnection) -> StoreResult<()> {
    let busy: i64 = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(connection).await?.try_get(0)?;
    if busy == 0 {
        return Ok(());
    }
    Err(StoreError::Unfit("the database's log is in use: it cannot be emptied".to_owned()))
}

/// Whether the disk did not take what it was told to keep: `SQLITE_IOERR_FSYNC`, `SQLITE_IOERR_DIR_FSYNC`.
fn is_failed_sync(error: &StoreError) -> bool {
    let StoreError::Database(sqlx::Error::Database(error)) = error else { return false };
    error.code().is_some_and(|code| ["1034", "1290"].contains(&&*code))
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
