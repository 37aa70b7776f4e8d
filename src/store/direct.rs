//! SQLite called on the thread that asks: for the writer, which has a thread of its own. The readers' driver keeps a thread
//! for each connection; to hand a statement over and to be woken by its answer took longer than most statements of a commit.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{
    Connection, OpenFlags, Statement, ToSql, ffi,
    types::{ToSqlOutput, ValueRef},
};
use sqlx::Sqlite;

use super::{
    StoreError, StoreResult,
    sql::{Arg, BUSY_TIMEOUT, Backend, CHAIN, Columns, Writing},
    statements::Statements,
};

/// How many statements stay prepared: all that the writer has, in all their lengths.
const PREPARED: usize = 128;
/// How many pages the log has when the writer moves them into the database. Twice SQLite's own number: what many writes
/// change is moved once, and its sync is waited for half as often, but somewhat longer.
const CHECKPOINT_PAGES: i64 = 2_000;
/// How long the writer waits for readers before it empties the write-ahead log.
const SETTLE_FOR: Duration = Duration::from_millis(20);

/// SQLite without a thread between.
pub struct DirectSqlite;

/// A row of an answer, cell by cell.
pub struct Cells(Vec<Cell>);

/// Text is read as such when it is asked for: one that is none concerns its own row alone.
enum Cell {
    Null,
    Int(i64),
    Real,
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl Backend for DirectSqlite {
    type Connection = Connection;
    type Row = Cells;

    const GET_MANY: &'static str = Sqlite::GET_MANY;
    const SOLE_CHAIN: Option<u32> = Sqlite::SOLE_CHAIN;
    const LOCK_SECRET: Option<&'static str> = Sqlite::LOCK_SECRET;
    const HOLD_ROOT: &'static str = Sqlite::HOLD_ROOT;
    const HOLD_VALUES: Option<&'static str> = Sqlite::HOLD_VALUES;

    fn statements() -> &'static Statements {
        Sqlite::statements()
    }

    async fn fetch(connection: &mut Connection, sql: &'static str, args: &[Arg<'_>]) -> StoreResult<Vec<Cells>> {
        let mut statement = connection.prepare_cached(sql)?;
        bind(&mut statement, args)?;
        let columns = statement.column_count();
        let mut rows = statement.raw_query();
        let mut fetched = Vec::new();
        while let Some(row) = rows.next()? {
            let cell = |column| row.get_ref(column).map(Cell::from);
            fetched.push(Cells((0..columns).map(cell).collect::<Result<_, _>>()?));
        }
        Ok(fetched)
    }

    async fn execute(connection: &mut Connection, sql: &'static str, args: &[Arg<'_>]) -> StoreResult<u64> {
        let mut statement = connection.prepare_cached(sql)?;
        bind(&mut statement, args)?;
        Ok(statement.raw_execute()? as u64)
    }
}

/// Nothing here lets others go on while SQLite is at work: what is waited for is over when it returns.
impl Writing for DirectSqlite {
    /// The database.
    type Options = PathBuf;

    const BEGIN: &'static str = "BEGIN IMMEDIATE";

    async fn connect(file: &PathBuf) -> StoreResult<Connection> {
        open(file)
    }

    async fn close(connection: Connection) {
        drop(connection);
    }

    async fn abandon(connection: Connection) {
        drop(connection);
    }

    async fn claim_chain(_: &mut Connection, _: Option<u32>) -> StoreResult<u32> {
        Ok(CHAIN)
    }

    async fn leave_waiting(connection: &mut Connection) -> StoreResult<()> {
        Ok(connection.busy_timeout(Duration::ZERO)?)
    }

    async fn settle_log(connection: &mut Connection) -> StoreResult<bool> {
        settle_log(connection)
    }

    fn is_locked(error: &StoreError) -> bool {
        code(error).is_some_and(|code| code & 0xff == ffi::SQLITE_BUSY)
    }

    fn is_failed_sync(error: &StoreError) -> bool {
        code(error).is_some_and(|code| [ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_DIR_FSYNC].contains(&code))
    }
}

/// Opens a vault's database to write to it.
///
/// # Errors
///
/// As SQLite says, or where it keeps no write-ahead log.
pub fn open(file: &Path) -> StoreResult<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let connection = Connection::open_with_flags(file, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(PREPARED);
    let mode = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
    if mode != "wal" {
        return Err(StoreError::Unfit(format!("the database keeps no write-ahead log, but a journal: {mode}")));
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // What is destroyed is overwritten in the file, not merely forgotten.
    connection.pragma_update(None, "secure_delete", true)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    // What a statement sets aside, such as new values, is not to be left in a temporary file.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(connection)
}

/// Moves the log into the database; false where a reader is in the way.
///
/// # Errors
///
/// As SQLite says.
pub fn settle_log(connection: &Connection) -> StoreResult<bool> {
    let before = connection.pragma_query_value(None, "busy_timeout", |row| row.get::<_, u32>(0))?;
    connection.busy_timeout(SETTLE_FOR)?;
    let busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
    connection.busy_timeout(Duration::from_millis(before.into()))?;
    Ok(busy? == 0)
}

/// Gives a statement its values: by the number in a placeholder's name (`$2`), or else by its place.
fn bind(statement: &mut Statement<'_>, args: &[Arg<'_>]) -> StoreResult<()> {
    for place in 1..=statement.parameter_count() {
        let number = statement.parameter_name(place).and_then(|name| name.get(1..)?.parse().ok()).unwrap_or(place);
        let arg = args.get(number - 1).ok_or(StoreError::Damaged("question"))?;
        statement.raw_bind_parameter(place, arg)?;
    }
    Ok(())
}

/// SQLite's extended result code.
fn code(error: &StoreError) -> Option<i32> {
    let StoreError::Sqlite(error) = error else { return None };
    error.sqlite_error().map(|error| error.extended_code)
}

impl ToSql for Arg<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match *self {
            Self::Text(text) | Self::MaybeText(Some(text)) => ValueRef::Text(text.as_bytes()),
            Self::Int(number) | Self::MaybeInt(Some(number)) => ValueRef::Integer(number),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
            Self::MaybeText(None) | Self::MaybeInt(None) => ValueRef::Null,
        }))
    }
}

impl From<ValueRef<'_>> for Cell {
    fn from(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(number) => Self::Int(number),
            ValueRef::Real(_) => Self::Real,
            ValueRef::Text(text) => Self::Text(text.to_vec()),
            ValueRef::Blob(bytes) => Self::Blob(bytes.to_vec()),
        }
    }
}

impl Cells {
    fn cell(&self, column: usize) -> StoreResult<&Cell> {
        self.0.get(column).ok_or(DAMAGED)
    }
}

/// A column of a type or with bytes that this program does not write.
const DAMAGED: StoreError = StoreError::Damaged("column");

impl Columns for Cells {
    fn text(&self, column: usize) -> StoreResult<String> {
        self.maybe_text(column)?.ok_or(DAMAGED)
    }

    fn maybe_text(&self, column: usize) -> StoreResult<Option<String>> {
        match self.cell(column)? {
            Cell::Null => Ok(None),
            Cell::Text(bytes) => String::from_utf8(bytes.clone()).map(Some).map_err(|_| DAMAGED),
            _ => Err(DAMAGED),
        }
    }

    fn int(&self, column: usize) -> StoreResult<i64> {
        self.maybe_int(column)?.ok_or(DAMAGED)
    }

    fn maybe_int(&self, column: usize) -> StoreResult<Option<i64>> {
        match self.cell(column)? {
            Cell::Null => Ok(None),
            Cell::Int(number) => Ok(Some(*number)),
            _ => Err(DAMAGED),
        }
    }

    fn blob(&self, column: usize) -> StoreResult<Vec<u8>> {
        self.maybe_blob(column)?.ok_or(DAMAGED)
    }

    fn maybe_blob(&self, column: usize) -> StoreResult<Option<Vec<u8>>> {
        match self.cell(column)? {
            Cell::Null => Ok(None),
            Cell::Blob(bytes) => Ok(Some(bytes.clone())),
            _ => Err(DAMAGED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn database() -> (tempfile::TempDir, Connection) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("direct.db");
        std::fs::write(&file, b"").unwrap();
        let connection = DirectSqlite::connect(&file).await.unwrap();
        (directory, connection)
    }

    /// How long a statement waits for others, in milliseconds.
    fn waits(connection: &Connection) -> i64 {
        connection.pragma_query_value(None, "busy_timeout", |row| row.get(0)).unwrap()
    }

    async fn fetch(connection: &mut Connection, sql: &'static str, args: &[Arg<'_>]) -> Vec<Cells> {
        DirectSqlite::fetch(connection, sql, args).await.unwrap()
    }

    #[tokio::test]
    async fn values_go_where_their_numbers_say() {
        let (_directory, mut connection) = database().await;
        let (one, two) = (Arg::Text("one"), Arg::Int(2));
        for (sql, wanted) in
            [("SELECT $1, $2", ["one", "2"]), ("SELECT $2, $1", ["2", "one"]), ("SELECT ?, ?", ["one", "2"])]
        {
            let rows = fetch(&mut connection, sql, &[one, two]).await;
            let told = |column| rows[0].text(column).or_else(|_| rows[0].int(column).map(|number| number.to_string()));
            assert_eq!([told(0).unwrap(), told(1).unwrap()], wanted, "{sql}");
        }
        let missing = DirectSqlite::fetch(&mut connection, "SELECT $3", &[one, two]).await;
        assert!(matches!(missing, Err(StoreError::Damaged("question"))));
    }

    #[tokio::test]
    async fn a_cell_of_another_type_is_damage_and_the_others_are_read() {
        let (_directory, mut connection) = database().await;
        let sql = "SELECT NULL, 7, 'text', x'00ff', 1.5, CAST(x'ff' AS TEXT)";
        let rows = fetch(&mut connection, sql, &[]).await;
        let row = &rows[0];
        let texts: Vec<_> = (0..7).map(|column| row.maybe_text(column).ok()).collect();
        assert_eq!(texts, [Some(None), None, Some(Some("text".to_owned())), None, None, None, None]);
        let numbers: Vec<_> = (0..7).map(|column| row.maybe_int(column).ok()).collect();
        assert_eq!(numbers, [Some(None), Some(Some(7)), None, None, None, None, None]);
        let blobs: Vec<_> = (0..7).map(|column| row.maybe_blob(column).ok()).collect();
        assert_eq!(blobs, [Some(None), None, None, Some(Some(vec![0, 255])), None, None, None]);
        let nulls = [row.text(0).is_err(), row.int(0).is_err(), row.blob(0).is_err()];
        assert_eq!(nulls, [true; 3], "what must be there is not");
    }

    #[tokio::test]
    async fn what_another_process_holds_is_told_at_once() {
        let (directory, mut connection) = database().await;
        DirectSqlite::execute(&mut connection, "CREATE TABLE t (a)", &[]).await.unwrap();
        let other = Connection::open(directory.path().join("direct.db")).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert_eq!(waits(&connection), 2_000);
        DirectSqlite::leave_waiting(&mut connection).await.unwrap();
        assert_eq!(waits(&connection), 0);
        let refused = DirectSqlite::execute(&mut connection, DirectSqlite::BEGIN, &[]).await.unwrap_err();
        assert!(DirectSqlite::is_locked(&refused) && !DirectSqlite::is_failed_sync(&refused), "{refused}");
        other.execute_batch("ROLLBACK").unwrap();
        assert_eq!(
            DirectSqlite::execute(&mut connection, "INSERT INTO t VALUES (?), (?)", &[Arg::Int(1); 2]).await.unwrap(),
            2
        );
        assert!(settle_log(&connection).unwrap());
        assert_eq!(waits(&connection), 0, "as before");
    }
}
