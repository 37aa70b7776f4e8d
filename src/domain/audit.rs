//! The audit log as the store keeps it: rows, one for each request, in chains. What stands in a row's body, and what
//! binds the rows of a chain, is the `audit` module's affair.

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use super::{TenantId, Timestamp};

/// The events of one request, packed, with the columns that queries select by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// When the request arrived.
    pub at: Timestamp,
    /// Whose log it belongs to; none where nobody was authenticated.
    pub tenant: Option<TenantId>,
    /// The principal.
    pub identity_id: Option<String>,
    /// What kind of principal.
    pub identity_type: Option<Cow<'static, str>>,
    /// The action that all events of the request share.
    pub action: Cow<'static, str>,
    /// The peer's address.
    pub source_ip: Option<String>,
    /// `req_…`.
    pub request_id: String,
    /// How many events the body holds.
    pub events: u32,
    /// The events, encoded by `audit`.
    pub body: Vec<u8>,
}

/// A row's place in the log. Each server that writes has a chain of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuditPlace {
    /// The chain: 1, 2, …
    pub chain: u32,
    /// The row's number in its chain: 1, 2, …
    pub number: i64,
}

impl fmt::Display for AuditPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.chain, self.number)
    }
}

/// What a row hangs from the row before it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link(pub [u8; 32]);

/// The last row of a chain; number 0 before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainHead {
    /// Where it stands.
    pub place: AuditPlace,
    /// What the next row hangs from.
    pub link: Link,
}

impl ChainHead {
    /// The head of a chain without rows.
    #[must_use]
    pub const fn origin(chain: u32) -> Self {
        Self { place: AuditPlace { chain, number: 0 }, link: Link([0; 32]) }
    }
}

/// A row as it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAuditRow {
    /// Its place in the log.
    pub place: AuditPlace,
    /// What was recorded.
    pub row: AuditRow,
    /// What it hangs by; of another length than 32 bytes where somebody altered it.
    pub link: Vec<u8>,
}

/// A signed word that the log had come so far: text that a client may keep, and hold against the log later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt(pub Arc<str>);

impl Receipt {
    /// The receipt of what left nothing in the log.
    #[must_use]
    pub fn none() -> Self {
        Self("".into())
    }
}

/// Where the receipt of a request is laid down for whoever answers it.
#[derive(Debug, Clone, Default)]
pub struct ReceiptSlot(Arc<Mutex<Option<Receipt>>>);

impl ReceiptSlot {
    /// Lays a receipt down, in the place of an earlier one: it vouches for that as well.
    pub fn put(&self, receipt: Receipt) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(receipt);
    }

    /// The last receipt; none where nothing was recorded.
    #[must_use]
    pub fn get(&self) -> Option<Receipt> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What binds the rows of a chain. The store calls it inside the transaction that appends them.
pub trait Chain: Send + Sync {
    /// What a row that follows `before` hangs by.
    fn link(&self, before: &ChainHead, row: &AuditRow) -> Link;

    /// The row that vouches for everything up to `head`, and for what is known of the `other` chains.
    fn checkpoint(&self, head: &ChainHead, others: &[ChainHead]) -> AuditRow;

    /// The signed word that the log has come to `head`. Called for what is about to be durable; given away after.
    fn receipt(&self, head: &ChainHead) -> Receipt;

    /// A checkpoint is durable; this is its receipt.
    fn passed_checkpoint(&self, receipt: &Receipt);
}

/// The order of a scan. Rows of one instant are ordered by their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuditOrder {
    /// By time, newest first.
    #[default]
    NewestFirst,
    /// By time, oldest first.
    OldestFirst,
}

/// Which rows of the log are wanted. Every condition that is given must hold.
#[derive(Debug, Clone, Default)]
pub struct AuditScan {
    /// The tenant whose rows are wanted.
    pub tenant: Option<TenantId>,
    /// Whether rows of no tenant (failed authentications, the vault's own events) are wanted too.
    pub with_untenanted: bool,
    /// Not before.
    pub from: Option<Timestamp>,
    /// Before.
    pub to: Option<Timestamp>,
    /// Of this principal.
    pub identity_id: Option<String>,
    /// Of this kind of principal.
    pub identity_type: Option<String>,
    /// From this address.
    pub source_ip: Option<String>,
    /// Of this request.
    pub request_id: Option<String>,
    /// In which order.
    pub order: AuditOrder,
    /// That row itself, or what comes after it in the order.
    pub start: Option<(Timestamp, AuditPlace)>,
}
