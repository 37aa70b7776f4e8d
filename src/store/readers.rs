//! SQLite's readers: threads, each with a connection of its own that cannot write. Each serves one reading at a time.

use std::{
    ffi::OsString,
    fs::File,
    mem,
    os::unix::ffi::{OsStrExt, OsStringExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, available_parallelism},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

use super::{
    StoreError, StoreResult,
    direct::Sqlite,
    sql::{BUSY_TIMEOUT, CLOSING, Reading, Work},
};

/// How many there are at least, however few cores: some may wait for the disk.
const FEWEST: usize = 4;
/// How long a request waits for a free one.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many statements stay prepared on each connection: all that readers have.
const PREPARED: usize = 64;
/// After so many steps of SQLite's machine, about a millisecond's, a reading looks whether anyone still waits for it.
const STEPS: i32 = 10_000;

/// A database to read.
#[derive(Clone)]
pub enum Source {
    /// One that is in use, or may come to be.
    InUse(PathBuf),
    /// One that nobody changes: nothing is made beside it.
    Immutable(PathBuf),
}

/// All readers of a database.
pub struct Readers {
    pool: Arc<Pool>,
    /// Fails when all threads have ended, and have let go of their connections and of the lock.
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

struct Pool {
    size: usize,
    turns: Arc<Semaphore>,
    idle: Mutex<Vec<Reader>>,
}

/// The way to a thread that reads. It ends with this.
struct Reader(mpsc::Sender<Job>);

/// What a thread does with its line.
type Job = Box<dyn FnOnce(&mut Line) + Send>;

/// A thread's line to the database.
struct Line {
    source: Source,
    connection: Option<Connection>,
}

/// A reader that serves nobody else. Dropped, it is the next one's.
struct Turn {
    reader: Option<Reader>,
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Readers {
    /// Opens a database to read. All connections stay open until the end: with the last one of all the write-ahead log
    /// would go, and come back as another file. The lock is held as long as any of them.
    ///
    /// # Errors
    ///
    /// Where there is no database, or the system has no thread to give.
    pub async fn open(source: &Source, lock: Option<&Arc<File>>) -> StoreResult<Self> {
        let size = available_parallelism().map_or(FEWEST, |cores| cores.get().max(FEWEST));
        let (at_work, ended) = oneshot::channel::<()>();
        let held = Arc::new((lock.cloned(), at_work));
        let mut idle = Vec::with_capacity(size);
        for _ in 0..size {
            let reader = Reader::start(source.clone(), Arc::clone(&held))?;
            reader.ask(|line| line.connection().map(drop)).await?;
            idle.push(reader);
        }
        let pool = Pool { size, turns: Arc::new(Semaphore::new(size)), idle: Mutex::new(idle) };
        Ok(Self { pool: Arc::new(pool), ended: Mutex::new(Some(ended)) })
    }

    /// Gives some work a connection. What nobody waits for any more comes to an end.
    async fn give<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let turn = Arc::new(self.pool.turn().await?);
        let awaited = Arc::downgrade(&turn);
        let reading = move |line: &mut Line| {
            // The reader is nobody else's until this is done, whether or not it is still waited for.
            let _turn = awaited.upgrade().ok_or(StoreError::Late)?;
            let connection = line.connection()?;
            connection.progress_handler(STEPS, Some(move || awaited.strong_count() == 1))?;
            work(connection)
        };
        match &turn.reader {
            Some(reader) => reader.ask(reading).await,
            None => Err(StoreError::Closed),
        }
    }
}

impl Reading for Sqlite {
    type Readers = Readers;

    async fn read<T: Send + 'static>(readers: &Readers, work: impl Work<Self, T>) -> StoreResult<T> {
        let runtime = Handle::current();
        readers.give(move |connection| runtime.block_on(work(connection))).await
    }

    async fn read_one_moment<T: Send + 'static>(readers: &Readers, work: impl Work<Self, T>) -> StoreResult<T> {
        let runtime = Handle::current();
        let of_one_moment = move |connection: &mut Connection| {
            connection.execute_batch("BEGIN")?;
            let read = runtime.block_on(work(connection));
            // What fails may have ended it.
            let ended = if connection.is_autocommit() { Ok(()) } else { connection.execute_batch("ROLLBACK") };
            let read = read?;
            ended?;
            Ok(read)
        };
        readers.give(of_one_moment).await
    }

    async fn close(readers: &Readers) {
        let pool = &readers.pool;
        let all = u32::try_from(pool.size).unwrap_or(u32::MAX);
        let ended = readers.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        let closing = async {
            let came_back = pool.turns.acquire_many(all).await;
            pool.close();
            drop(came_back);
            // The last one moves the log into the database.
            if let Some(ended) = ended {
                ended.await.ok();
            }
        };
        if timeout(CLOSING, closing).await.is_err() {
            pool.close();
            tracing::error!("the database does not answer: its readers are left behind, and with them its lock");
        }
    }
}

impl Pool {
    async fn turn(self: &Arc<Self>) -> StoreResult<Turn> {
        let permit = timeout(PATIENCE, Arc::clone(&self.turns).acquire_owned()).await;
        let permit = permit.map_err(|_| StoreError::Late)?.map_err(|_| StoreError::Closed)?;
        Ok(Turn { reader: self.idle().pop(), pool: Arc::clone(self), _permit: permit })
    }

    fn put(&self, reader: Reader) {
        let mut idle = self.idle();
        if !self.turns.is_closed() {
            idle.push(reader);
        }
    }

    /// Ends the readers that are idle, and each of the others when its work is done.
    fn close(&self) {
        let mut idle = self.idle();
        self.turns.close();
        drop(mem::take(&mut *idle));
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Reader>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.pool.put(reader);
        }
    }
}

impl Reader {
    /// Starts a thread that reads. What it is to hold, it holds until its connection is closed.
    fn start(source: Source, held: impl Send + 'static) -> StoreResult<Self> {
        let (jobs, queue) = mpsc::channel();
        let serve = move || {
            serve(Line { source, connection: None }, queue);
            drop(held);
        };
        let thread = thread::Builder::new().name("reader".to_owned()).spawn(serve);
        thread.map_err(|error| StoreError::Unfit(format!("a reader of the database has no thread: {error}")))?;
        Ok(Self(jobs))
    }

    /// Has something read, and waits for it.
    async fn ask<T: Send + 'static>(
        &self,
        reading: impl FnOnce(&mut Line) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let (answer, read) = oneshot::channel();
        // Where nobody waits any more, nobody is told.
        let job: Job = Box::new(move |line| drop(answer.send(reading(line))));
        self.0.send(job).map_err(|_| StoreError::Closed)?;
        read.await.map_err(|_| StoreError::Unread)?
    }
}

/// Serves a thread's readings, one after the other.
fn serve(mut line: Line, jobs: mpsc::Receiver<Job>) {
    for job in jobs {
        // A panic has told of itself, and is its own reading's affair alone.
        catch_unwind(AssertUnwindSafe(|| job(&mut line))).ok();
        line.leave_moment();
    }
}

impl Line {
    fn connection(&mut self) -> StoreResult<&mut Connection> {
        match &mut self.connection {
            Some(connection) => Ok(connection),
            none => Ok(none.insert(self.source.connect()?)),
        }
    }

    /// A connection that is stuck in a transaction would show the same moment for ever, and keep the log from being moved.
    fn leave_moment(&mut self) {
        if !self.connection.as_ref().is_some_and(Connection::is_autocommit) {
            self.connection = None;
        }
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
        let readers = Readers::open(&Source::InUse(file.clone()), None).await.unwrap();
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
        for _ in 0..=readers.pool.size {
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
        let all = readers.pool.turns.acquire_many(u32::try_from(readers.pool.size).unwrap()).await.unwrap();
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
    async fn a_moment_ends_with_the_reading_that_left_it() {
        let (_directory, file, _writer, readers) = database("vault.db").await;
        let left = readers.give(|connection| -> StoreResult<()> {
            connection.execute_batch("BEGIN; SELECT COUNT(*) FROM t")?;
            panic!("on purpose")
        });
        left.await.unwrap_err();
        let mut settled = false;
        for _ in 0..100 {
            settled = settled || direct::settle_log(&direct::open(&file).unwrap()).unwrap();
        }
        assert!(settled, "no reading keeps the log");
    }

    #[tokio::test]
    async fn a_reading_that_panics_fails_alone() {
        let (_directory, _, writer, readers) = database("vault.db").await;
        for _ in 0..=readers.pool.size {
            let failed = readers.give(|connection| -> StoreResult<()> {
                connection.execute_batch("BEGIN; SELECT COUNT(*) FROM t")?;
                panic!("on purpose")
            });
            assert!(matches!(failed.await, Err(StoreError::Unread)));
        }
        writer.execute_batch("INSERT INTO t VALUES (2)").unwrap();
        assert_eq!(count(&readers).await.unwrap(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_is_left_behind_keeps_the_lock() {
        let (directory, file, _writer, readers) = database("vault.db").await;
        Sqlite::close(&readers).await;
        let lock = || File::create(directory.path().join("lock")).unwrap();
        let held = lock();
        held.lock().unwrap();
        let readers = Readers::open(&Source::InUse(file), Some(&Arc::new(held))).await.unwrap();
        let (answer, waits) = mpsc::channel::<()>();
        let stuck = readers.give(move |_| Ok(waits.recv().is_err()));
        let close = async {
            Sqlite::close(&readers).await;
            assert!(lock().try_lock().is_err());
            drop(answer);
        };
        assert!(tokio::join!(stuck, close).0.unwrap());
        // Nobody waits for this end.
        lock().lock().unwrap();
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
        let readers = Readers::open(&Source::Immutable(file), None).await.unwrap();
        assert_eq!(count(&readers).await.unwrap(), 1);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(Readers::open(&Source::Immutable(directory.path().join("none")), None).await.is_err());
    }
}
