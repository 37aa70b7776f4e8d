//! What the two databases have in common, so that each statement is written once.

use std::{future::Future, sync::LazyLock, time::Duration};

use sqlx::{Database, PgConnection, Postgres, Row, Sqlite, SqliteConnection, postgres::PgRow, sqlite::SqliteRow};

use super::{
    StoreError, StoreResult,
    statements::{Dialect, Statements},
};

/// A value for a placeholder.
#[derive(Clone, Copy)]
pub enum Arg<'a> {
    Text(&'a str),
    MaybeText(Option<&'a str>),
    Int(i64),
    MaybeInt(Option<i64>),
    Blob(&'a [u8]),
}

/// A row read by position.
pub trait Columns {
    fn text(&self, column: usize) -> StoreResult<String>;
    fn maybe_text(&self, column: usize) -> StoreResult<Option<String>>;
    fn int(&self, column: usize) -> StoreResult<i64>;
    fn maybe_int(&self, column: usize) -> StoreResult<Option<i64>>;
    fn blob(&self, column: usize) -> StoreResult<Vec<u8>>;
    fn maybe_blob(&self, column: usize) -> StoreResult<Option<Vec<u8>>>;
}

/// A database that the vault can live in, over connections of one kind.
pub trait Backend: Sized + 'static {
    /// A connection.
    type Connection: Send;
    /// A row of an answer.
    type Row: Columns + Send;

    /// The statement of [`super::SecretStore::get_many`]: `$1` the tenant, `$2` a JSON array of paths, `$3` a JSON array
    /// of as many versions (or NULL, where the newest are meant). Answers the place in the array, then the columns of
    /// [`head_columns`] and [`version_columns`]. Where versions have lost their head, a row of nulls says so: it must not
    /// look as if nothing were there.
    const GET_MANY: &'static str;
    /// The audit log's one chain, where one server alone writes, over one connection.
    const SOLE_CHAIN: Option<u32>;
    /// Keeps other changes of the secret (`$1` tenant, `$2` path) out until the transaction ends; none where the
    /// database lets only one transaction write.
    const LOCK_SECRET: Option<&'static str>;
    /// The root key's fingerprint, which nobody changes until the transaction ends.
    const HOLD_ROOT: &'static str;
    /// Keeps all others from writing values until the transaction ends; none where only one transaction writes anyway.
    const HOLD_VALUES: Option<&'static str>;

    /// The statements that take several rows. One that fails may end the transaction.
    fn statements() -> &'static Statements;

    fn fetch(
        connection: &mut Self::Connection,
        sql: &'static str,
        args: &[Arg<'_>],
    ) -> impl Future<Output = StoreResult<Vec<Self::Row>>> + Send;

    fn execute(
        connection: &mut Self::Connection,
        sql: &'static str,
        args: &[Arg<'_>],
    ) -> impl Future<Output = StoreResult<u64>> + Send;
}

/// What the readers need, whose connections are shared.
pub trait Reading: Database + Backend<Connection = <Self as Database>::Connection> {
    /// Begins a transaction that reads one snapshot.
    const SNAPSHOT: &'static str;
}

/// What the writer needs, which has one connection for itself.
pub trait Writing: Backend {
    /// How it is opened.
    type Options: Send;

    /// Begins a transaction that writes.
    const BEGIN: &'static str;

    fn connect(options: &Self::Options) -> impl Future<Output = StoreResult<Self::Connection>> + Send;

    /// Ends what the connection was doing, if that can be, and lets the database know.
    fn close(connection: Self::Connection) -> impl Future<Output = ()> + Send;

    /// Lets go of a connection that may be of no more use.
    fn abandon(connection: Self::Connection) -> impl Future<Output = ()> + Send;

    /// Takes a chain of the audit log for this connection alone, until it is closed: the wanted one if it can be had.
    fn claim_chain(
        connection: &mut Self::Connection,
        wanted: Option<u32>,
    ) -> impl Future<Output = StoreResult<u32>> + Send;

    /// From now on, a statement that finds the database held by another process fails at once.
    fn leave_waiting(connection: &mut Self::Connection) -> impl Future<Output = StoreResult<()>> + Send;

    /// Moves the log of what was written into the database, durably, and with it the last trace of what was destroyed.
    /// False where a reader is in the way.
    fn settle_log(connection: &mut Self::Connection) -> impl Future<Output = StoreResult<bool>> + Send;

    /// Whether another process holds the database, so that a statement that begins something did nothing.
    fn is_locked(error: &StoreError) -> bool;

    /// Whether the disk did not take what it was told to keep, so that the log may show what is not there.
    fn is_failed_sync(error: &StoreError) -> bool;
}

/// The columns of a secret, in the order that `tables::head` reads.
macro_rules! head_columns {
    ($t:literal) => {
        concat!(
            $t,
            ".path, ",
            $t,
            ".latest, ",
            $t,
            ".secret_type, ",
            $t,
            ".metadata, ",
            $t,
            ".created_at, ",
            $t,
            ".created_by, ",
            $t,
            ".updated_at, ",
            $t,
            ".updated_by, ",
            $t,
            ".expires_at, ",
            $t,
            ".deleted_at, ",
            $t,
            ".recoverable_until, ",
            $t,
            ".max_versions"
        )
    };
}

/// The columns of a version without its value, in the order that `tables::version` reads.
macro_rules! version_columns {
    ($t:literal) => {
        concat!(
            $t,
            ".version, ",
            $t,
            ".secret_type, ",
            $t,
            ".created_at, ",
            $t,
            ".created_by, ",
            $t,
            ".expires_at, ",
            $t,
            ".destroyed_at"
        )
    };
}

/// The columns of a version's value, in the order that `tables::sealed` reads.
macro_rules! value_columns {
    ($t:literal) => {
        concat!($t, ".key_generation, ", $t, ".wrapped_key, ", $t, ".ciphertext")
    };
}

/// A secret's newest version is the newest there is: a head that says otherwise is damaged, and has none.
macro_rules! newest_or_pinned {
    ($pinned:literal) => {
        concat!(
            "(",
            $pinned,
            " IS NOT NULL OR NOT EXISTS (SELECT 1 FROM versions AS n
                                         WHERE n.tenant = s.tenant AND n.path = s.path AND n.version > s.latest))"
        )
    };
}

/// The parts of [`Backend`] and [`Columns`] that read alike for both drivers but have no type in common.
macro_rules! driver {
    ($database:ty, $connection:ty, $row:ty, { $($constants:tt)* }) => {
        impl Columns for $row {
            fn text(&self, column: usize) -> StoreResult<String> {
                self.try_get(column).map_err(undecodable)
            }
            fn maybe_text(&self, column: usize) -> StoreResult<Option<String>> {
                self.try_get(column).map_err(undecodable)
            }
            fn int(&self, column: usize) -> StoreResult<i64> {
                self.try_get(column).map_err(undecodable)
            }
            fn maybe_int(&self, column: usize) -> StoreResult<Option<i64>> {
                self.try_get(column).map_err(undecodable)
            }
            fn blob(&self, column: usize) -> StoreResult<Vec<u8>> {
                self.try_get(column).map_err(undecodable)
            }
            fn maybe_blob(&self, column: usize) -> StoreResult<Option<Vec<u8>>> {
                self.try_get(column).map_err(undecodable)
            }
        }

        impl Backend for $database {
            type Connection = $connection;
            type Row = $row;

            $($constants)*

            async fn fetch(connection: &mut $connection, sql: &'static str, args: &[Arg<'_>]) -> StoreResult<Vec<$row>> {
                let query = args.iter().fold(sqlx::query::<$database>(sql), bind!());
                query.fetch_all(connection).await.map_err(StoreError::from)
            }

            async fn execute(connection: &mut $connection, sql: &'static str, args: &[Arg<'_>]) -> StoreResult<u64> {
                let query = args.iter().fold(sqlx::query::<$database>(sql), bind!());
                Ok(query.execute(connection).await?.rows_affected())
            }
        }
    };
}

macro_rules! bind {
    () => {
        |query, arg| match *arg {
            Arg::Text(text) => query.bind(text),
            Arg::MaybeText(text) => query.bind(text),
            Arg::Int(number) => query.bind(number),
            Arg::MaybeInt(number) => query.bind(number),
            Arg::Blob(bytes) => query.bind(bytes),
        }
    };
}

driver!(Sqlite, SqliteConnection, SqliteRow, {
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
                                AND ",
        newest_or_pinned!("$3 ->> wanted.key"),
        "
         WHERE s.path IS NOT NULL
            OR EXISTS (SELECT 1 FROM versions AS o WHERE o.tenant = $1 AND o.path = wanted.value)"
    );
    const SOLE_CHAIN: Option<u32> = Some(CHAIN);
    const LOCK_SECRET: Option<&'static str> = None;
    const HOLD_ROOT: &'static str = "SELECT fingerprint FROM root_key WHERE id = 1";
    const HOLD_VALUES: Option<&'static str> = None;

    fn statements() -> &'static Statements {
        // An insertion keeps nothing to undo it alone, which would copy each page that it writes to (unless it updates, too).
        // Values without names, since names are looked for in a list.
        const DIALECT: Dialect = Dialect { insert: "INSERT OR ROLLBACK", place: |_| "?".to_owned() };
        static STATEMENTS: LazyLock<Statements> = LazyLock::new(|| Statements::of(&DIALECT));
        &STATEMENTS
    }
});

impl Reading for Sqlite {
    const SNAPSHOT: &'static str = "BEGIN";
}

driver!(Postgres, PgConnection, PgRow, {
    // The limits forbid the planner to join all of the tables' rows: it does not know how few paths there are.
    const GET_MANY: &'static str = concat!(
        "SELECT wanted.place - 1, ",
        head_columns!("s"),
        ", ",
        version_columns!("v"),
        ", ",
        value_columns!("v"),
        "
         FROM json_array_elements_text($2::text::json) WITH ORDINALITY AS wanted (path, place)
         LEFT JOIN LATERAL (SELECT * FROM secrets WHERE tenant = $1 AND path = wanted.path LIMIT 1) AS s ON true
         LEFT JOIN LATERAL (
              SELECT * FROM versions
              WHERE tenant = s.tenant AND path = s.path
                AND version = COALESCE(($3::text::json ->> (wanted.place - 1)::int)::bigint, s.latest)
                AND ",
        newest_or_pinned!("$3::text::json ->> (wanted.place - 1)::int"),
        "
              LIMIT 1) AS v ON true
         LEFT JOIN LATERAL (
              SELECT true AS behind FROM versions
              WHERE s.path IS NULL AND tenant = $1 AND path = wanted.path LIMIT 1) AS left_over ON true
         WHERE s.path IS NOT NULL OR left_over.behind"
    );
    const SOLE_CHAIN: Option<u32> = None;
    // The key is a hash of the whole name: where two names clash, one writer waits for the other, and no more.
    const LOCK_SECRET: Option<&'static str> =
        Some("SELECT pg_advisory_xact_lock(hashtextextended($1 || '/' || $2, 0))");
    const HOLD_ROOT: &'static str = "SELECT fingerprint FROM root_key WHERE id = 1 FOR SHARE";
    const HOLD_VALUES: Option<&'static str> = Some("LOCK TABLE versions IN SHARE ROW EXCLUSIVE MODE");

    fn statements() -> &'static Statements {
        const DIALECT: Dialect = Dialect { insert: "INSERT", place: |number| format!("${number}") };
        static STATEMENTS: LazyLock<Statements> = LazyLock::new(|| Statements::of(&DIALECT));
        &STATEMENTS
    }
});

impl Reading for Postgres {
    const SNAPSHOT: &'static str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
}

/// SQLite's chain.
pub const CHAIN: u32 = 1;
/// How long SQLite waits for a lock.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// A column of a type or with bytes that this program does not write.
fn undecodable(_: sqlx::Error) -> StoreError {
    StoreError::Damaged("column")
}

pub(super) use {head_columns, version_columns};
