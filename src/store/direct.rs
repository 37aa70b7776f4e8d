//! SQLite called on the thread that runs the statement: the writer's own, or a reader's. A driver with a thread for each
//! connection takes longer to hand a statement over, and its rows back one by one, than most statements take.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use rusqlite::{
    Connection, OpenFlags, Row, Statement, ToSql, ffi,
    types::{ToSqlOutput, ValueRef},
};

use super::{
    StoreError, StoreResult,
    key_tables::ROOT,
    sql::{Arg, BUSY_TIMEOUT, Backend, Columns, DAMAGED, Writing, head_columns, value_columns, version_columns},
    statements::{Dialect, Statements},
};

/// SQLite's chain.
pub const CHAIN: u32 = 1;

/// How many statements stay prepared: all that the writer has, in all their lengths.
const PREPARED: usize = 128;
/// How many pages the log has when the writer moves them into the database. Twice SQLite's own number: what many writes
/// change is moved once, and its sync is waited for half as often, but somewhat longer.
const CHECKPOINT_PAGES: i64 = 2_000;
/// How long the writer waits for readers before it empties the write-ahead log.
const SETTLE_FOR: Duration = Duration::from_millis(20);

/// SQLite without a driver's thread between.
pub struct Sqlite;

impl Backend for Sqlite {
    type Connection = Connection;

    // A secret's newest version is the newest there is: a head that says otherwise is damaged, and has none.
    const GET_MANY: &'static str = concat!(
        "SELECT wanted.key, ",
        head_columns!("s"),
        ", ",
        version_columns!("v"),
        ", ",
        value_columns!("v"),
        "
         FROM json_each($2) AS wanted
         LEFT JOIN secrets AS s ON s.tenant = $1 AND s.path = wanted.value
         LEFT JOIN versions AS v ON v.tenant = s.tenant AND v.path = s.path
                                AND v.version = COALESCE($3 ->> wanted.key, s.latest)
                                AND ($3 ->> wanted.key IS NOT NULL
                                     OR NOT EXISTS (SELECT 1 FROM versions AS n
                                                    WHERE n.tenant = s.tenant AND n.path = s.path
                                                      AND n.version > s.latest))
         WHERE s.path IS NOT NULL
            OR EXISTS (SELECT 1 FROM versions AS o WHERE o.tenant = $1 AND o.path = wanted.value)"
    );
    const SOLE_CHAIN: Option<u32> = Some(CHAIN);
    const LOCK_SECRET: Option<&'static str> = None;
    const HOLD_ROOT: &'static str = ROOT;
    const HOLD_VALUES: Option<&'static str> = None;

    fn statements() -> &'static Statements {
        // An insertion keeps nothing to undo it alone, which would copy each page that it writes to (unless it updates, too).
        // Values without names, since names are looked for in a list.
        const DIALECT: Dialect = Dialect { insert: "INSERT OR ROLLBACK", place: |_| "?".to_owned() };
        static STATEMENTS: LazyLock<Statements> = LazyLock::new(|| Statements::of(&DIALECT));
        &STATEMENTS
    }

    async fn fetch<T: Send>(
        connection: &mut Connection,
        sql: &'static str,
        args: &[Arg<'_>],
        mut read: impl FnMut(&dyn Columns) -> StoreResult<T> + Send,
    ) -> StoreResult<Vec<T>> {
        let mut statement = connection.prepare_cached(sql)?;
        bind(&mut statement, args)?;
        let mut rows = statement.raw_query();
        let mut fetched = Vec::new();
        while let Some(row) = rows.next()? {
            fetched.push(read(row)?);
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
impl Writing for Sqlite {
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

/// Text is read as such when it is asked for: one that is none concerns its own row alone.
impl Columns for Row<'_> {
    fn maybe_text(&self, column: usize) -> StoreResult<Option<&str>> {
        cell(self, column)?.as_str_or_null().map_err(|_| DAMAGED)
    }

    fn maybe_int(&self, column: usize) -> StoreResult<Option<i64>> {
        cell(self, column)?.as_i64_or_null().map_err(|_| DAMAGED)
    }

    fn maybe_blob(&self, column: usize) -> StoreResult<Option<&[u8]>> {
        cell(self, column)?.as_blob_or_null().map_err(|_| DAMAGED)
    }
}

fn cell<'row>(row: &'row Row<'_>, column: usize) -> StoreResult<ValueRef<'row>> {
    row.get_ref(column).map_err(|_| DAMAGED)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn database() -> (tempfile::TempDir, Connection) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("direct.db");
        std::fs::write(&file, b"").unwrap();
        let connection = Sqlite::connect(&file).await.unwrap();
        (directory, connection)
    }

    /// How long a statement waits for others, in milliseconds.
    fn waits(connection: &Connection) -> i64 {
        connection.pragma_query_value(None, "busy_timeout", |row| row.get(0)).unwrap()
    }

    /// What is read of the one row of an answer.
    async fn first<T: Send>(
        connection: &mut Connection,
        sql: &'static str,
        args: &[Arg<'_>],
        read: impl FnMut(&dyn Columns) -> T + Send,
    ) -> StoreResult<T> {
        let mut read = read;
        Ok(Sqlite::fetch(connection, sql, args, |row| Ok(read(row))).await?.pop().unwrap())
    }

    #[tokio::test]
    async fn values_go_where_their_numbers_say() {
        let (_directory, mut connection) = database().await;
        let (one, two) = (Arg::Text("one"), Arg::Int(2));
        for (sql, wanted) in
            [("SELECT $1, $2", ["one", "2"]), ("SELECT $2, $1", ["2", "one"]), ("SELECT ?, ?", ["one", "2"])]
        {
            let text = |row: &dyn Columns, column| {
                row.text(column)
                    .map(str::to_owned)
                    .or_else(|_| row.int(column).map(|number| number.to_string()))
                    .unwrap()
            };
            let told = first(&mut connection, sql, &[one, two], |row| [text(row, 0), text(row, 1)]).await;
            assert_eq!(told.unwrap(), wanted, "{sql}");
        }
        let missing = first(&mut connection, "SELECT $3", &[one, two], |_| ()).await;
        assert!(matches!(missing, Err(StoreError::Damaged("question"))));
    }

    #[tokio::test]
    async fn a_cell_of_another_type_is_damage_and_the_others_are_read() {
        let (_directory, mut connection) = database().await;
        let sql = "SELECT NULL, 7, 'text', x'00ff', 1.5, CAST(x'ff' AS TEXT)";
        let texts = |row: &dyn Columns| -> Vec<_> {
            (0..7).map(|column| row.maybe_text(column).ok().map(|text| text.map(str::to_owned))).collect()
        };
        let texts = first(&mut connection, sql, &[], texts).await.unwrap();
        assert_eq!(texts, [Some(None), None, Some(Some("text".to_owned())), None, None, None, None]);
        let numbers = |row: &dyn Columns| -> Vec<_> { (0..7).map(|column| row.maybe_int(column).ok()).collect() };
        let numbers = first(&mut connection, sql, &[], numbers).await.unwrap();
        assert_eq!(numbers, [Some(None), Some(Some(7)), None, None, None, None, None]);
        let blobs = |row: &dyn Columns| -> Vec<_> {
            (0..7).map(|column| row.maybe_blob(column).ok().map(|blob| blob.map(<[u8]>::to_vec))).collect()
        };
        let blobs = first(&mut connection, sql, &[], blobs).await.unwrap();
        assert_eq!(blobs, [Some(None), None, None, Some(Some(vec![0, 255])), None, None, None]);
        let nulls = |row: &dyn Columns| [row.text(0).is_err(), row.int(0).is_err(), row.blob(0).is_err()];
        assert_eq!(first(&mut connection, sql, &[], nulls).await.unwrap(), [true; 3], "what must be there is not");
    }

    #[tokio::test]
    async fn what_another_process_holds_is_told_at_once() {
        let (directory, mut connection) = database().await;
        Sqlite::execute(&mut connection, "CREATE TABLE t (a)", &[]).await.unwrap();
        let other = Connection::open(directory.path().join("direct.db")).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert_eq!(waits(&connection), 2_000);
        Sqlite::leave_waiting(&mut connection).await.unwrap();
        assert_eq!(waits(&connection), 0);
        let refused = Sqlite::execute(&mut connection, Sqlite::BEGIN, &[]).await.unwrap_err();
        assert!(Sqlite::is_locked(&refused) && !Sqlite::is_failed_sync(&refused), "{refused}");
        other.execute_batch("ROLLBACK").unwrap();
        assert_eq!(
            Sqlite::execute(&mut connection, "INSERT INTO t VALUES (?), (?)", &[Arg::Int(1); 2]).await.unwrap(),
            2
        );
        assert!(settle_log(&connection).unwrap());
        assert_eq!(waits(&connection), 0, "as before");
    }
}
