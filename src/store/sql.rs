//! What the two databases have in common, so that each statement is written once.

use std::future::Future;

use sqlx::{Database, PgConnection, Postgres, Row, Sqlite, SqliteConnection, postgres::PgRow, sqlite::SqliteRow};

use super::{StoreError, StoreResult};

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
    fn int(&self, column: usize) -> StoreResult<i64>;
    fn maybe_int(&self, column: usize) -> StoreResult<Option<i64>>;
    fn blob(&self, column: usize) -> StoreResult<Vec<u8>>;
    fn maybe_blob(&self, column: usize) -> StoreResult<Option<Vec<u8>>>;
}

/// A database that the vault can live in.
pub trait Backend: Database<Row: Columns> {
    /// The statement of [`super::SecretStore::get_many`]: `$1` the tenant, `$2` a JSON array of paths, `$3` a JSON array
    /// of as many versions (or NULL, where the newest are meant). Answers the place in the array, then the columns of
    /// [`head_columns`] and [`version_columns`].
    const GET_MANY: &'static str;
    /// Keeps other changes of the secret (`$1` tenant, `$2` path) out until the transaction ends; none where the
    /// database lets only one transaction write.
    const LOCK_SECRET: Option<&'static str>;
    /// Appends an audit row at the place 0, which no other row takes.
    const PROBE: &'static str;

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

/// Where versions have lost their head, a row of nulls says so: it must not look as if nothing were there.
macro_rules! here_or_damaged {
    ($path:literal) => {
        concat!(
            "s.path IS NOT NULL OR EXISTS (SELECT 1 FROM versions AS o WHERE o.tenant = $1 AND o.path = ",
            $path,
            ")"
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
         WHERE ",
        here_or_damaged!("wanted.value")
    );
    const LOCK_SECRET: Option<&'static str> = None;
    const PROBE: &'static str =
        "INSERT INTO audit_log (sequence, at, action, request_id, body) VALUES (0, 0, 'probe', '', x'')";
});

driver!(Postgres, PgConnection, PgRow, {
    const GET_MANY: &'static str = concat!(
        "SELECT wanted.place - 1, ",
        head_columns!("s"),
        ", ",
        version_columns!("v"),
        ", ",
        value_columns!("v"),
        "
         FROM json_array_elements_text($2::text::json) WITH ORDINALITY AS wanted (path, place)
         LEFT JOIN secrets AS s ON s.tenant = $1 AND s.path = wanted.path
         LEFT JOIN versions AS v ON v.tenant = s.tenant AND v.path = s.path
              AND v.version = COALESCE(($3::text::json ->> (wanted.place - 1)::int)::bigint, s.latest)
              AND ",
        newest_or_pinned!("$3::text::json ->> (wanted.place - 1)::int"),
        "
         WHERE ",
        here_or_damaged!("wanted.path")
    );
    // The key is a hash of the whole name: where two names clash, one writer waits for the other, and no more.
    const LOCK_SECRET: Option<&'static str> =
        Some("SELECT pg_advisory_xact_lock(hashtextextended($1 || '/' || $2, 0))");
    const PROBE: &'static str = "INSERT INTO audit_log (sequence, at, action, request_id, body)
                                 OVERRIDING SYSTEM VALUE VALUES (0, 0, 'probe', '', '')";
});

/// A column of a type or with bytes that this program does not write.
fn undecodable(_: sqlx::Error) -> StoreError {
    StoreError::Damaged("column")
}

pub(super) use {head_columns, version_columns};
