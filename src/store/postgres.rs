//! How a PostgreSQL database is opened that several servers may share.

use std::{sync::LazyLock, time::Duration};

use sqlx::{
    ConnectOptions, Connection, PgConnection, PgPool, Postgres, Row,
    postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow},
    query::Query,
};

use super::{
    StoreError, StoreResult,
    known::KnownRecords,
    migrations,
    sql::{Arg, Backend, Columns, DAMAGED, Reading, Work, Writing, head_columns, value_columns, version_columns},
    sql_store::{Memory, SqlStore},
    statements::{Dialect, Statements},
    writer::WriterHandle,
};

/// How long a request waits for a free connection before it is told that the store is not there.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// How many servers may share a database.
const MOST_CHAINS: u32 = 1_000;
/// The space of the locks on chains: the ASCII of `chai`.
const CHAIN_LOCKS: i64 = 0x6368_6169;

/// What every session is set to, whatever the database's own defaults are. An acknowledged write must survive a crash;
/// and what no request waits for any longer must not hold a connection or a lock.
const SESSION: [(&str, &str); 4] = [
    ("synchronous_commit", "on"),
    ("lock_timeout", "2s"),
    ("statement_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "10s"),
];

/// The vault in a PostgreSQL database. Stateless: any number of servers may use one.
pub type PostgresStore = SqlStore<Postgres>;

impl PostgresStore {
    /// Connects and brings the tables to this program's version. About so many bytes of records, as they are stored, are
    /// kept in memory.
    ///
    /// # Errors
    ///
    /// A bad URL, no connection, a failed migration.
    pub async fn connect(url: &str, max_connections: u32, cache: u64) -> StoreResult<Self> {
        let options = url.parse::<PgConnectOptions>()?;
        migrate(&options).await?;
        let options = options.options(SESSION);
        let readers = pool(options.clone(), max_connections).await?;
        let writer = WriterHandle::start::<Postgres>(options, None, Box::new(|| Ok(())), None)?;
        let memory = if cache > 0 { Memory::Shared(KnownRecords::new(cache)) } else { Memory::None };
        Ok(Self { readers, writer, memory })
    }

    /// Connects to read alone. Nothing is made, and nothing can be written.
    ///
    /// # Errors
    ///
    /// A bad URL, no connection.
    pub async fn connect_to_read(url: &str) -> StoreResult<Self> {
        let options = url.parse::<PgConnectOptions>()?.options([("default_transaction_read_only", "on")]);
        Ok(Self::of_readers(pool(options, 1).await?))
    }
}

async fn pool(options: PgConnectOptions, max_connections: u32) -> StoreResult<PgPool> {
    let pool = PgPoolOptions::new().max_connections(max_connections).acquire_timeout(ACQUIRE_TIMEOUT);
    Ok(pool.connect_with(options).await?)
}

/// Brings the tables to this program's version, on a connection without time limits: a migration takes what it takes.
async fn migrate(options: &PgConnectOptions) -> StoreResult<()> {
    let mut connection = options.connect().await?;
    migrations::postgres().run_direct(None, &mut connection, false).await?;
    Ok(connection.close().await?)
}

/// Whether there are versions. (As an `EXISTS`, it might be asked of all rows at once.)
macro_rules! left_over {
    () => {
        "(SELECT true FROM versions WHERE tenant = $1 AND path = wanted.path LIMIT 1)"
    };
}

/// Which rows a secret and its version are: another one has another number of the transaction that made it. The time is
/// for a database that was taken back to an earlier state, and gives the same numbers again.
macro_rules! stamp {
    () => {
        "(s.xmin || ' ' || v.xmin || ' ' || s.updated_at)"
    };
}

impl Backend for Postgres {
    type Connection = PgConnection;

    // The limits forbid the planner to join all of the tables' rows: it does not know how few paths there are. The newest
    // version is the newest there is, whatever the head says: where they differ, it is damaged.
    const GET_MANY: &'static str = concat!(
        "SELECT CASE WHEN s.path IS NOT NULL OR ",
        left_over!(),
        " THEN wanted.place - 1 ELSE -wanted.place END, ",
        head_columns!("s"),
        ", ",
        version_columns!("v"),
        ", ",
        value_columns!("v"),
        ", ",
        stamp!(),
        "
         FROM ROWS FROM (json_array_elements_text($2::text::json),
                         json_array_elements_text($3::text::json),
                         json_array_elements_text($4::text::json))
              WITH ORDINALITY AS wanted (path, pinned, known, place)
         LEFT JOIN LATERAL (
              SELECT *, xmin FROM secrets WHERE tenant = $1 AND path = wanted.path LIMIT 1) AS s ON true
         LEFT JOIN LATERAL (
              SELECT *, xmin FROM versions
              WHERE tenant = $1 AND path = wanted.path
                AND version >= COALESCE(wanted.pinned::bigint, 0)
                AND version <= COALESCE(wanted.pinned::bigint, 9223372036854775807)
              ORDER BY version DESC LIMIT 1) AS v ON true
         WHERE CASE WHEN wanted.known IS NOT NULL THEN wanted.known IS DISTINCT FROM ",
        stamp!(),
        " ELSE s.path IS NOT NULL OR ",
        left_over!(),
        " END"
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

    async fn fetch<T: Send>(
        connection: &mut PgConnection,
        sql: &'static str,
        args: &[Arg<'_>],
        read: impl FnMut(&dyn Columns) -> StoreResult<T> + Send,
    ) -> StoreResult<Vec<T>> {
        let rows = query(sql, args).fetch_all(connection).await?;
        rows.iter().map(|row| row as &dyn Columns).map(read).collect()
    }

    async fn execute(connection: &mut PgConnection, sql: &'static str, args: &[Arg<'_>]) -> StoreResult<u64> {
        Ok(query(sql, args).execute(connection).await?.rows_affected())
    }
}

fn query<'a>(sql: &'static str, args: &[Arg<'a>]) -> Query<'a, Postgres, PgArguments> {
    args.iter().fold(sqlx::query(sql), |query, arg| match *arg {
        Arg::Text(text) => query.bind(text),
        Arg::MaybeText(text) => query.bind(text),
        Arg::Int(number) => query.bind(number),
        Arg::MaybeInt(number) => query.bind(number),
        Arg::Blob(bytes) => query.bind(bytes),
    })
}

impl Columns for PgRow {
    fn maybe_text(&self, column: usize) -> StoreResult<Option<&str>> {
        self.try_get(column).map_err(|_| DAMAGED)
    }

    fn maybe_int(&self, column: usize) -> StoreResult<Option<i64>> {
        self.try_get(column).map_err(|_| DAMAGED)
    }

    fn maybe_blob(&self, column: usize) -> StoreResult<Option<&[u8]>> {
        self.try_get(column).map_err(|_| DAMAGED)
    }
}

impl Reading for Postgres {
    type Readers = PgPool;

    async fn read<T: Send + 'static>(readers: &PgPool, work: impl Work<Self, T>) -> StoreResult<T> {
        work(&mut *readers.acquire().await?).await
    }

    async fn read_one_moment<T: Send + 'static>(readers: &PgPool, work: impl Work<Self, T>) -> StoreResult<T> {
        work(&mut *readers.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?).await
    }

    async fn close(readers: &PgPool) {
        readers.close().await;
    }
}

impl Writing for Postgres {
    type Options = PgConnectOptions;

    const BEGIN: &'static str = "BEGIN";

    async fn connect(options: &PgConnectOptions) -> StoreResult<PgConnection> {
        Ok(options.connect().await?)
    }

    async fn close(connection: PgConnection) {
        Connection::close(connection).await.ok();
    }

    async fn abandon(connection: PgConnection) {
        connection.close_hard().await.ok();
    }

    async fn claim_chain(connection: &mut PgConnection, wanted: Option<u32>) -> StoreResult<u32> {
        if let Some(chain) = wanted {
            // What held it may be a connection of this server that the database has not given up yet.
            let again = claim(connection, "SELECT true FROM pg_advisory_lock($1::int, $2::int)", chain).await;
            if again.is_ok_and(|taken| taken) {
                return Ok(chain);
            }
        }
        for chain in 1..=MOST_CHAINS {
            if claim(connection, "SELECT pg_try_advisory_lock($1::int, $2::int)", chain).await? {
                return Ok(chain);
            }
        }
        Err(StoreError::Unfit(format!("{MOST_CHAINS} servers write to this database already")))
    }

    async fn leave_waiting(_: &mut PgConnection) -> StoreResult<()> {
        Ok(())
    }

    /// The log of transactions is the database's own affair, and is written over in its time.
    async fn settle_log(_: &mut PgConnection) -> StoreResult<bool> {
        Ok(true)
    }

    /// Locks are of rows and names; a statement that waits too long for one has failed.
    fn is_locked(_: &StoreError) -> bool {
        false
    }

    /// The database stops by itself then.
    fn is_failed_sync(_: &StoreError) -> bool {
        false
    }
}

async fn claim(connection: &mut PgConnection, sql: &'static str, chain: u32) -> StoreResult<bool> {
    let row = sqlx::query(sql).bind(CHAIN_LOCKS).bind(i64::from(chain)).fetch_one(connection).await?;
    Ok(row.try_get(0)?)
}
