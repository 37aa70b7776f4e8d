//! SQLite's readers: connections that cannot write. Each serves one reading at a time, on a thread that may wait for the
//! disk.

use std::{
    ffi::OsString,
    mem,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::available_parallelism,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};
use tokio::{runtime::Handle, sync::Semaphore, task::spawn_blocking, time::timeout};

use super::{
    StoreError, StoreResult,
    direct::Sqlite,
    sql::{BUSY_TIMEOUT, CLOSING, Reading, Work},
};

/// How many connections there are at least, however few cores: some may wait for the disk.
const FEWEST: usize = 4;
/// How long a request waits for a free one.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many statements stay prepared on each: all that readers have.
const PREPARED: usize = 64;
/// After so many steps of SQLite's machine, about a millisecond's, a reading looks whether anyone still waits for it.
const STEPS: i32 = 10_000;

/// A database to read.
pub enum Source {
    /// One that is in use, or may come to be.
    InUse(PathBuf),
    /// One that nobody changes: nothing is made beside it.
    Immutable(PathBuf),
}

/// The connections.
pub struct Readers(Arc<Pool>);

struct Pool {
    source: Source,
    size: usize,
    turns: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    /// Opens a database to read. One connection stays open until the end: with the last one the write-ahead log would go,
    /// and come back as another file.
    ///
    /// # Errors
    ///
    /// Where there is no database.
    pub async fn open(source: Source) -> StoreResult<Self> {
        let size = available_parallelism().map_or(FEWEST, |cores| cores.get().max(FEWEST));
        let pool = Pool { source, size, turns: Arc::new(Semaphore::new(size)), idle: Mutex::default() };
        let readers = Self(Arc::new(pool));
        readers.give(|_| Ok(())).await?;
        Ok(readers)
    }

    /// Gives some work a connection. What nobody waits for any more comes to an end.
    async fn give<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let turn = timeout(PATIENCE, Arc::clone(&self.0.turns).acquire_owned()).await;
        let turn = Arc::new(turn.map_err(|_| StoreError::Late)?.map_err(|_| StoreError::Closed)?);
        let pool = Arc::clone(&self.0);
        let awaited = Arc::downgrade(&turn);
        let reading = spawn_blocking(move || {
            // What waits for a thread takes nobody's turn away once its caller is gone.
            let turn = awaited.upgrade().ok_or(StoreError::Late)?;
            let mut connection = pool.take()?;
            connection.progress_handler(STEPS, Some(move || awaited.strong_count() == 1))?;
            let read = work(&mut connection);
            pool.put(connection);
            drop(turn);
            read
        });
        let read = reading.await;
        drop(turn);
        read.map_err(|error| StoreError::Unfit(format!("the database could not be read: {error}")))?
    }
}

impl Reading for Sqlite {
    type Readers = Readers;

    async fn read<T: Send + 'static>(readers: &Readers, work: impl Work<Self, T>) -> StoreResult<T> {
        readers.give(|connection| Handle::current().block_on(work(connection))).await
    }

    async fn read_one_moment<T: Send + 'static>(readers: &Readers, work: impl Work<Self, T>) -> StoreResult<T> {
        let of_one_moment = |connection: &mut Connection| {
            connection.execute_batch("BEGIN")?;
            let read = Handle::current().block_on(work(connection));
            // What fails may have ended it.
            let ended = if connection.is_autocommit() { Ok(()) } else { connection.execute_batch("ROLLBACK") };
            let read = read?;
            ended?;
            Ok(read)
        };
        readers.give(of_one_moment).await
    }

    async fn close(readers: &Readers) {
        let pool = &readers.0;
        let all = u32::try_from(pool.size).unwrap_or(u32::MAX);
        let closing = async {
            let came_back = pool.turns.acquire_many(all).await;
            pool.turns.close();
            drop(came_back);
            let idle = mem::take(&mut *pool.idle());
            // The last one moves the log into the database.
            spawn_blocking(|| drop(idle)).await.ok();
        };
        if timeout(CLOSING, closing).await.is_err() {
            pool.turns.close();
            tracing::error!("the database does not answer: its readers are left behind");
        }
    }
}

impl Pool {
    fn take(&self) -> StoreResult<Connection> {
        let idle = self.idle().pop();
        idle.map_or_else(|| self.source.connect(), Ok)
    }

    fn put(&self, connection: Connection) {
        // One that could not end its transaction would show the same moment for ever.
        if connection.is_autocommit() && !self.turns.is_closed() {
            self.idle().push(connection);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    fn connect(&self) -> StoreResult<Connection> {
        let any = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE;
        let connection = match self {
            Self::InUse(file) => Connection::open_with_flags(file, any | OpenFlags::SQLITE_OPEN_READ_WRITE)?,
            Self::Immutable(file) => {
                let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
                Connection::open_with_flags(immutable(file), any | flags)?
            }
        };
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(PREPARED);
        // What moves the log into the database at the end has to be durable.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.pragma_update(None, "query_only", true)?;
        // Only who looks opens the log.
        connection.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |_| Ok(()))?;
        Ok(connection)
    }
}

/// The name by which SQLite opens a file that does not change (sqlite.org/uri.html).
fn immutable(file: &Path) -> PathBuf {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let mut uri = b"file://".to_vec();
    for byte in file.as_os_str().as_bytes() {
        match byte {
            b'%' | b'?' | b'#' => uri.extend(format!("%{byte:02x}").into_bytes()),
            _ => uri.push(*byte),
        }
    }
    uri.extend(b"?immutable=1");
    OsString::from_vec(uri).into()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::Instant;

    use super::*;
    use crate::store::direct;

    /// What SQLite would never be done with.
    const ENDLESS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n";
    const COUNT: &str = "SELECT COUNT(*) FROM t";

    /// A database with a table of one row, its writer, and its readers.
    async fn database(name: &str) -> (tempfile::TempDir, PathBuf, Connection, Readers) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(name);
        fs::write(&file, b"").unwrap();
        let writer = direct::open(&file).unwrap();
        writer.execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1)").unwrap();
        let readers = Readers::open(Source::InUse(file.clone())).await.unwrap();
        (directory, file, writer, readers)
    }

    async fn count(readers: &Readers) -> StoreResult<i64> {
        readers.give(|connection| Ok(connection.query_row(COUNT, [], |row| row.get(0))?)).await
    }

    #[tokio::test]
    async fn a_reader_cannot_write() {
        let (_directory, _, _writer, readers) = database("vault.db").await;
        let written = readers.give(|connection| Ok(connection.execute("INSERT INTO t VALUES (2)", [])?)).await;
        assert!(written.unwrap_err().to_string().contains("readonly"));
        assert_eq!(count(&readers).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_comes_to_an_end() {
        let (_directory, _, _writer, readers) = database("vault.db").await;
        let endless = |connection: &mut Connection| Ok(connection.query_row(ENDLESS, [], |row| row.get::<_, i64>(0))?);
        // More than there are connections: later ones get those that earlier ones had.
        for _ in 0..=readers.0.size {
            timeout(Duration::from_millis(20), readers.give(endless)).await.unwrap_err();
        }
        assert_eq!(count(&readers).await.unwrap(), 1);
        let begun = Instant::now();
        Sqlite::close(&readers).await;
        assert!(begun.elapsed() < PATIENCE, "all came back");
    }

    #[tokio::test]
    async fn who_gets_no_connection_is_told_so_and_who_comes_after_the_end_too() {
        let (_directory, _, _writer, readers) = database("vault.db").await;
        let all = readers.0.turns.acquire_many(u32::try_from(readers.0.size).unwrap()).await.unwrap();
        assert!(matches!(count(&readers).await, Err(StoreError::Late)));
        drop(all);
        Sqlite::close(&readers).await;
        assert!(matches!(count(&readers).await, Err(StoreError::Closed)));
    }

    #[tokio::test]
    async fn one_moment_is_read_whatever_is_written_meanwhile() {
        let (_directory, _, writer, readers) = database("vault.db").await;
        let counts = Sqlite::read_one_moment(&readers, move |connection| {
            let count = |connection: &Connection| connection.query_row(COUNT, [], |row| row.get::<_, i64>(0));
            let before = count(connection);
            writer.execute_batch("INSERT INTO t VALUES (2)").unwrap();
            let after = count(connection);
            Box::pin(async { Ok([before?, after?]) })
        });
        assert_eq!(counts.await.unwrap(), [1, 1]);
        assert_eq!(count(&readers).await.unwrap(), 2, "and the next sees what was written");
    }

    #[tokio::test]
    async fn a_connection_that_is_stuck_in_a_moment_is_not_used_again() {
        let (_directory, _, writer, readers) = database("vault.db").await;
        let begun = readers.give(|connection| Ok(connection.execute_batch("BEGIN; SELECT COUNT(*) FROM t")?)).await;
        begun.unwrap();
        writer.execute_batch("INSERT INTO t VALUES (2)").unwrap();
        assert_eq!(count(&readers).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn the_log_is_open_from_the_beginning_and_whoever_goes_last_moves_it_into_the_database() {
        let (directory, file, writer, readers) = database("vault.db").await;
        drop(writer);
        let log = file.with_extension("db-wal");
        assert!(fs::metadata(&log).unwrap().len() > 0);
        Sqlite::close(&readers).await;
        assert!(!log.exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn what_does_not_change_is_read_under_any_name_and_leaves_nothing_beside_it() {
        let (directory, file, writer, readers) = database("a b?c#d%20.db").await;
        Sqlite::close(&readers).await;
        drop(writer);
        let readers = Readers::open(Source::Immutable(file)).await.unwrap();
        assert_eq!(count(&readers).await.unwrap(), 1);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(Readers::open(Source::Immutable(directory.path().join("none"))).await.is_err());
    }
}
