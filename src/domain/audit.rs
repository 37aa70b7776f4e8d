//! The audit log as the store keeps it. What stands in a row's body is the `audit` module's affair.

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
    pub identity_type: Option<&'static str>,
    /// The action that all events of the request share.
    pub action: &'static str,
    /// The peer's address.
    pub source_ip: Option<String>,
    /// `req_…`.
    pub request_id: String,
    /// The events, encoded by `audit`.
    pub body: Vec<u8>,
}

/// A row's place in the log: 1, 2, …
pub type AuditSequence = i64;

/// A row as it is read back; its columns are searched by the store and repeated in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAuditRow {
    /// Its place in the log.
    pub sequence: AuditSequence,
    /// The events, encoded by `audit`.
    pub body: Vec<u8>,
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
    /// Older than this place in the log, or that place itself.
    pub not_after: Option<AuditSequence>,
}
