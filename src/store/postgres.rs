//! How a PostgreSQL database is opened that several servers may share.

use std::time::Duration;

use sqlx::{
    ConnectOptions, Connection, PgPool, Postgres,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::{StoreResult, migrations, sql_store::SqlStore, writer::WriterHandle};

/// How long a request waits for a free connection before it is told that the store is not there.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

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
    /// Connects and brings the tables to this program's version.
    ///
    /// # Errors
    ///
    /// A bad URL, no connection, a failed migration.
    pub async fn connect(url: &str, max_connections: u32) -> StoreResult<Self> {
        let options = url.parse::<PgConnectOptions>()?;
        migrate(&options).await?;
        let options = options.options(SESSION);
        let readers = pool(options.clone(), max_connections).await?;
        let writer = WriterHandle::start::<Postgres>(options, Box::new(|| Ok(())), None)?;
        Ok(Self { readers, writer, cache: None, _lock: None })
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
