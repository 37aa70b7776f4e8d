//! The vault in one SQLite file: readers that cannot write, and one writer that commits for all who wait.

use std::{
    fs::{self, File, TryLockError},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions, Connection, Row, SqlSafeStr, Sqlite, SqliteConnection, SqlitePool,
    migrate::{Migration, MigrationType, Migrator},
    pool::PoolConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{ChangeRequest, Committed, ListScan, Refusal, SecretStore, StoreError, StoreResult, tables::Tables};
use crate::domain::{
    AuditRow, AuditScan, AuditSequence, Head, Record, SecretPath, StoredAuditRow, TenantId, Timestamp, Version,
    VersionRecord, WrappedKey,
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
        migrate(&mut connection).await?;
        let cores = std::thread::available_parallelism().map_or(4, |n| u32::try_from(n.get()).unwrap_or(4));
        let readers = SqlitePoolOptions::new()
            .max_connections(cores.max(4))
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .connect_with(options.clone().pragma("query_only", "ON"))
            .await?;
        let (writer, jobs) = mpsc::channel(QUEUE);
        let task = tokio::spawn(Writer { options, connection: Some(connection) }.run(jobs));
        Ok(Self { readers, writer, task: tokio::sync::Mutex::new(Some(task)), _lock: lock })
    }

    async fn reader(&self) -> StoreResult<PoolConnection<Sqlite>> {
        Ok(self.readers.acquire().await?)
    }

    async fn write<T>(&self, job: impl FnOnce(oneshot::Sender<StoreResult<T>>) -> Job) -> StoreResult<T> {
        let (reply, answer) = oneshot::channel();
        self.writer.send(job(reply)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

#[async_trait]
impl SecretStore for SqliteStore {
    async fn get_many(
        &self,
        tenant: &TenantId,
        wanted: &[(SecretPath, Option<Version>)],
    ) -> StoreResult<Vec<Option<Record>>> {
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
    /// None after a failed commit: what SQLite knows of the log is not to be trusted then, so it is opened anew.
    connection: Option<SqliteConnection>,
}

impl Writer {
    async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut open = true;
        while open && let Some(first) = jobs.recv().await {
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(job) = jobs.try_recv()
            {
                group.push(job);
            }
            open = self.serve(group).await;
        }
        if let Some(connection) = self.connection.take() {
            connection.close().await.ok();
        }
    }

    /// Serves a group in one transaction, and answers everyone after it is durable. False once asked to close.
    async fn serve(&mut self, group: Vec<Job>) -> bool {
        let mut open = true;
        let mut replies: Vec<Box<dyn FnOnce(StoreResult<()>) + Send>> = Vec::with_capacity(group.len());
        let mut fate = self.begin().await;
        for job in group {
            if matches!(job, Job::Close) {
                open = false;
                continue;
            }
            let reply = match (&fate, self.connection.as_mut()) {
                (Ok(()), Some(connection)) => match perform(job, connection).await {
                    Ok(reply) => reply,
                    Err((error, reply)) => {
                        fate = Err(error);
                        reply
                    }
                },
                _ => refuse(job),
            };
            replies.push(reply);
        }
        let fate = self.finish(fate).await;
        for reply in replies {
            reply(fate.as_ref().map(|()| ()).map_err(again));
        }
        open
    }

    async fn begin(&mut self) -> StoreResult<()> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.options.connect().await?,
        };
        sqlx::query("BEGIN IMMEDIATE").execute(self.connection.insert(connection)).await?;
        Ok(())
    }

    async fn finish(&mut self, fate: StoreResult<()>) -> StoreResult<()> {
        let Some(connection) = self.connection.as_mut() else { return fate };
        let ended = match fate {
            Ok(()) => sqlx::query("COMMIT").execute(connection).await.map(drop).map_err(StoreError::from),
            Err(error) => {
                sqlx::query("ROLLBACK").execute(connection).await.ok();
                Err(error)
            }
        };
        if ended.is_err()
            && let Some(connection) = self.connection.take()
        {
            connection.close_hard().await.ok();
        }
        ended
    }
}

/// Sends the answer once the fate of the whole group is known.
type Reply = Box<dyn FnOnce(StoreResult<()>) + Send>;

fn reply_with<T: Send + 'static>(sender: oneshot::Sender<StoreResult<T>>, value: StoreResult<T>) -> Reply {
    Box::new(move |fate| {
        // Nobody listens where the request was given up; what was done stands and is in the audit.
        sender.send(fate.and(value)).ok();
    })
}

/// Does one job inside the group's transaction.
async fn perform(job: Job, connection: &mut SqliteConnection) -> Result<Reply, (StoreError, Reply)> {
    let mut tables = Tables::<Sqlite>(connection);
    match job {
        Job::Commit(request, sender) => settle(tables.apply(*request).await, sender),
        Job::Append(row, sender) => settle(tables.append(&row).await, sender),
        Job::AddTenantKey(tenant, key, sender) => {
            let kept = match tables.add_tenant_key(&tenant, &key).await {
                Ok(()) => tables.tenant_keys(&tenant).await,
                Err(error) => Err(error),
            };
            settle(kept, sender)
        }
        Job::RootFingerprint(fingerprint, sender) => settle(tables.root_fingerprint(&fingerprint).await, sender),
        Job::Probe(sender) => settle(tables.probe_write().await, sender),
        Job::Close => Ok(Box::new(|_| ())),
    }
}

fn settle<T: Send + 'static>(
    result: StoreResult<T>,
    sender: oneshot::Sender<StoreResult<T>>,
) -> Result<Reply, (StoreError, Reply)> {
    match result {
        // A seal fails before anything is written: the others of the group are not concerned.
        Err(StoreError::Unsealable) => Ok(reply_with(sender, Err(StoreError::Unsealable))),
        Err(error) => {
            let reply = reply_with(sender, Err(again(&error)));
            Err((error, reply))
        }
        Ok(value) => Ok(reply_with(sender, Ok(value))),
    }
}

fn refuse(job: Job) -> Reply {
    match job {
        Job::Commit(_, sender) => reply_with(sender, Err(StoreError::Closed)),
        Job::Append(_, sender) => reply_with(sender, Err(StoreError::Closed)),
        Job::AddTenantKey(_, _, sender) => reply_with(sender, Err(StoreError::Closed)),
        Job::RootFingerprint(_, sender) => reply_with(sender, Err(StoreError::Closed)),
        Job::Probe(sender) => reply_with(sender, Err(StoreError::Closed)),
        Job::Close => Box::new(|_| ()),
    }
}

/// The same error for each member of a group.
fn again(error: &StoreError) -> StoreError {
    StoreError::Unfit(error.to_string())
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

async fn assert_library(connection: &mut SqliteConnection) -> StoreResult<()> {
    let version: String = sqlx::query("SELECT sqlite_version()").fetch_one(connection).await?.try_get(0)?;
    let numbers: Vec<u32> = version.split('.').filter_map(|part| part.parse().ok()).collect();
    if numbers.as_slice() < OLDEST_SQLITE.as_slice() {
        return Err(StoreError::Unfit(format!("SQLite {version} is too old: 3.51.3 or newer is needed")));
    }
    Ok(())
}

async fn migrate(connection: &mut SqliteConnection) -> StoreResult<()> {
    let sql = include_str!("migrations/sqlite/0001_vault.sql").into_sql_str();
    let first = Migration::new(1, "vault".into(), MigrationType::Simple, sql, false);
    Ok(Migrator::with_migrations(vec![first]).run_direct(None, connection, false).await?)
}
