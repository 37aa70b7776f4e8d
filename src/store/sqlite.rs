//! How the vault's SQLite file is opened: readers that cannot write, one writer, and nobody else's server.

use std::{
    fs::{self, File, TryLockError},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use sqlx::{
    ConnectOptions, Connection, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::task::spawn_blocking;

use super::{
    StoreError, StoreResult,
    cache::RecordCache,
    direct::{self, Sqlite},
    log_check, migrations,
    readers::{Readers, Source},
    sql::BUSY_TIMEOUT,
    sql_store::{Memory, SqlStore},
    writer::{InPlace, WriterHandle},
};

/// The database's name in a data directory.
pub(super) const DATABASE: &str = "portcullis.db";
/// The first release without the defect by which two connections could corrupt a write-ahead log
/// (sqlite.org/wal.html, "WAL-reset bug").
const OLDEST_SQLITE: i32 = 3_051_003;
/// How often the log is tried to be emptied at the start, where another process reads it.
const SETTLE_TRIES: usize = 10;

/// A process that is being started holds all files of the one that starts it, until it has its own program: so long may a
/// lock be held that was let go.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_AGAIN: Duration = Duration::from_millis(5);

/// The vault in one SQLite file of a data directory that no other server uses.
pub type SqliteStore = SqlStore<Sqlite>;

impl SqliteStore {
    /// Opens `portcullis.db` in the directory, making both where they are missing (modes 0700 and 0600). About so many
    /// bytes of records, as they are stored, are kept in memory.
    ///
    /// # Errors
    ///
    /// A directory that another server holds, a library that is too old, a failed migration, and the database's own.
    pub async fn open(directory: &Path, cache: u64) -> StoreResult<Self> {
        let unfit = |what: &str, error: &dyn std::fmt::Display| {
            StoreError::Unfit(format!("{what} {}: {error}", directory.display()))
        };
        make_directory(directory)?;
        let lock = Arc::new(lock(directory)?);
        let file = directory.join(DATABASE);
        private_file(&file).map_err(|error| unfit("cannot make the database in", &error))?;
        let damage = log_check::damage(&log_of(&file));
        if let Some(damage) = damage.map_err(|error| unfit("cannot read the database's log in", &error))? {
            return Err(unfit(
                "acknowledged changes are damaged in the database's log: a backup is needed for",
                &damage,
            ));
        }
        assert_library()?;
        let mut connection = options(&file).connect().await?;
        let opened = async {
            settle_log(file.clone()).await?;
            migrate(&mut connection, &file).await?;
            Readers::open(&Source::InUse(file.clone()), Some(&lock)).await
        };
        let opened = opened.await;
        // In any case before the lock goes.
        let closed = connection.close().await;
        let readers = opened?;
        closed?;
        let cache = (cache > 0).then(|| Arc::new(RecordCache::new(cache)));
        let writer = WriterHandle::start::<Sqlite>(file.clone(), Some(lock), in_place(&file), cache.clone())?;
        Ok(Self { readers, writer, memory: cache.map_or(Memory::None, Memory::Own) })
    }

    /// Opens the database to read, whether or not a server is using it. Nothing can be written; where no server is using
    /// it, the end of this moves what is in the log into the database.
    ///
    /// # Errors
    ///
    /// Where there is none, its log is damaged, or it cannot be opened.
    pub async fn open_to_read(directory: &Path) -> StoreResult<Self> {
        refuse_damaged_log(directory)?;
        Self::reading(Source::InUse(directory.join(DATABASE))).await
    }

    pub(super) async fn reading(source: Source) -> StoreResult<Self> {
        Ok(Self::of_readers(Readers::open(&source, None).await?))
    }
}

/// How the tables are brought to this version's form.
pub(super) fn options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        // What is destroyed is overwritten in the file, not merely forgotten.
        .pragma("secure_delete", "ON")
}

/// Checks that the database and its write-ahead log are the files that were opened: what is written to a file that was
/// removed or replaced is lost, and the database does not notice.
fn in_place(file: &Path) -> InPlace {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let database = (file.to_owned(), identity(file));
    let log = (log_of(file), identity(&log_of(file)));
    Box::new(move || match [&database, &log].into_iter().find(|(path, opened)| identity(path) != *opened) {
        Some((path, _)) => Err(StoreError::Unfit(format!("{} is not the file that was opened", path.display()))),
        None => Ok(()),
    })
}

/// A database's write-ahead log.
pub(super) fn log_of(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    name.into()
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
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if began.elapsed() < LOCK_PATIENCE => sleep(LOCK_AGAIN),
            Err(TryLockError::WouldBlock) => {
                return Err(unfit(&"another server is using it, or one that was sealed is not done with it"));
            }
            Err(TryLockError::Error(error)) => return Err(unfit(&error)),
        }
    }
}

/// Without a server, whoever opens the database last empties its log: what is damaged there would be gone unnoticed.
pub(super) fn refuse_damaged_log(directory: &Path) -> StoreResult<()> {
    let log = log_of(&directory.join(DATABASE));
    let unfit =
        |what: &str, error: &dyn std::fmt::Display| StoreError::Unfit(format!("{what} {}: {error}", log.display()));
    let damage = || log_check::damage(&log).map_err(|error| unfit("cannot read", &error));
    if damage()?.is_none() {
        return Ok(());
    }
    // A server that is writing looked at its start, and what it is writing now may look torn.
    let Ok(_lock) = lock(directory) else { return Ok(()) };
    damage()?.map_or(Ok(()), |damage| Err(unfit("acknowledged changes are damaged in", &damage)))
}

/// Opens a file that nobody else may read. SQLite gives its `-wal` and `-shm` files the mode of the database.
pub(super) fn private_file(path: &Path) -> std::io::Result<File> {
    fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

/// Moves the log into the database, durably. After a sync that failed, the kernel may show in the log what the disk does
/// not have and never will: nothing that is acknowledged may come to stand behind that. Where a reader such as a backup
/// keeps the log in use, it is made durable where it stands.
async fn settle_log(file: PathBuf) -> StoreResult<()> {
    let settle = move || {
        let connection = direct::open(&file)?;
        for _ in 0..SETTLE_TRIES {
            if direct::settle_log(&connection)? {
                return Ok(());
            }
        }
        let log = log_of(&file);
        write_again(&log)
            .map_err(|error| StoreError::Unfit(format!("the log {} is not durable: {error}", log.display())))
    };
    // A large log takes a while; requests may be served beside.
    spawn_blocking(settle).await.map_err(|error| StoreError::Unfit(format!("the log could not be settled: {error}")))?
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

fn assert_library() -> StoreResult<()> {
    if rusqlite::version_number() < OLDEST_SQLITE {
        let found = rusqlite::version();
        return Err(StoreError::Unfit(format!("SQLite {found} is too old: 3.51.3 or newer is needed")));
    }
    Ok(())
}

async fn migrate(connection: &mut SqliteConnection, file: &Path) -> StoreResult<()> {
    // A new database has no such table.
    let applied = sqlx::query("SELECT COUNT(*) FROM _sqlx_migrations").fetch_one(&mut *connection).await.ok();
    let applied = applied.and_then(|row| usize::try_from(row.try_get::<i64, _>(0).ok()?).ok());
    if applied.is_none_or(|applied| applied >= migrations::sqlite().iter().count()) {
        return migrations::run_sqlite(connection).await;
    }
    tracing::info!(
        "the database is brought to this version's form: where it is large, that may take minutes, and room on its disk for \
         it twice more"
    );
    migrations::run_sqlite(connection).await?;
    // It may hold all of the audit log and all values now.
    settle_log(file.to_owned()).await
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_lock_that_a_starting_process_still_holds_is_waited_for_and_a_server_s_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let of_a_server = lock(directory.path()).unwrap();
        assert!(lock(directory.path()).unwrap_err().to_string().contains("another server is using it"));
        let of_its_child = of_a_server.try_clone().unwrap();
        drop(of_a_server);
        thread::spawn(move || {
            sleep(LOCK_PATIENCE / 5);
            drop(of_its_child);
        });
        lock(directory.path()).unwrap();
    }
}
