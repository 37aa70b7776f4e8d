//! What the two databases have in common, so that each statement is written once.

use std::{future::Future, pin::Pin, time::Duration};

use super::{StoreError, StoreResult, statements::Statements};

/// How long a lock is waited for that somebody else holds.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the end is waited for: a transaction, and the last checkpoint after it.
pub const CLOSING: Duration = Duration::from_secs(15);

/// A value for a placeholder.
#[derive(Clone, Copy)]
pub enum Arg<'a> {
    Text(&'a str),
    MaybeText(Option<&'a str>),
    Int(i64),
    MaybeInt(Option<i64>),
    Blob(&'a [u8]),
}

/// A row that is read by position, while it is at hand.
pub trait Columns {
    fn maybe_text(&self, column: usize) -> StoreResult<Option<&str>>;
    fn maybe_int(&self, column: usize) -> StoreResult<Option<i64>>;
    fn maybe_blob(&self, column: usize) -> StoreResult<Option<&[u8]>>;

    fn text(&self, column: usize) -> StoreResult<&str> {
        self.maybe_text(column)?.ok_or(DAMAGED)
    }
    fn int(&self, column: usize) -> StoreResult<i64> {
        self.maybe_int(column)?.ok_or(DAMAGED)
    }
    fn blob(&self, column: usize) -> StoreResult<&[u8]> {
        self.maybe_blob(column)?.ok_or(DAMAGED)
    }
}

/// A column of a type or with bytes that this program does not write.
pub const DAMAGED: StoreError = StoreError::Damaged("column");

/// A database that the vault can live in, over connections of one kind.
pub trait Backend: Sized + 'static {
    /// A connection.
    type Connection: Send;

    /// The statement of [`super::SecretStore::get_many`]: `$1` the tenant, `$2` a JSON array of paths, `$3` a JSON array
    /// of as many versions (or NULL, where the newest are meant). Answers the place in the array, then the columns of
    /// [`head_columns`], [`version_columns`] and [`value_columns`]. Where versions have lost their head, a row of nulls
    /// says so: it must not look as if nothing were there.
    ///
    /// Where the database is shared, `$4` is a JSON array of as many stamps of what is known (or NULL), and the last
    /// column is the stamp. What still is as it is known has no row; what is known and gone has the complement of its place.
    const GET_MANY: &'static str;
    /// Whether other servers write to it, too.
    const IS_SHARED: bool = Self::SOLE_CHAIN.is_none();
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

    /// What is read of each row of a statement's answer.
    fn fetch<T: Send>(
        connection: &mut Self::Connection,
        sql: &'static str,
        args: &[Arg<'_>],
        read: impl FnMut(&dyn Columns) -> StoreResult<T> + Send,
    ) -> impl Future<Output = StoreResult<Vec<T>>> + Send;

    /// How many rows a statement changed.
    fn execute(
        connection: &mut Self::Connection,
        sql: &'static str,
        args: &[Arg<'_>],
    ) -> impl Future<Output = StoreResult<u64>> + Send;
}

/// What the readers need, whose connections are shared.
pub trait Reading: Backend {
    /// The connections.
    type Readers: Send + Sync;

    /// Gives some work a connection that nobody else uses meanwhile.
    fn read<T: Send + 'static>(
        readers: &Self::Readers,
        work: impl Work<Self, T>,
    ) -> impl Future<Output = StoreResult<T>> + Send;

    /// The same, where all that is read is to be of one moment.
    fn read_one_moment<T: Send + 'static>(
        readers: &Self::Readers,
        work: impl Work<Self, T>,
    ) -> impl Future<Output = StoreResult<T>> + Send;

    /// Lets go of the connections when their work is done, or takes too long.
    fn close(readers: &Self::Readers) -> impl Future<Output = ()> + Send;
}

/// Something that is read over a connection.
pub trait Work<B: Backend, T>:
    for<'c> FnOnce(&'c mut B::Connection) -> Pending<'c, StoreResult<T>> + Send + 'static
{
}

impl<B: Backend, T, W> Work<B, T> for W where
    W: for<'c> FnOnce(&'c mut B::Connection) -> Pending<'c, StoreResult<T>> + Send + 'static
{
}

/// What will be known.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

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

pub(super) use {head_columns, value_columns, version_columns};
