//! Values and rules without input or output. Everything else in the program points here; this module points nowhere.

mod access;
mod audit;
mod hex;
mod keys;
mod path;
mod pattern;
mod ports;
mod principal;
mod record;
mod secret;
mod time;

pub use access::{
    Action, Decision, Denial, DenialCode, FieldFilter, InputRead, ModuleRef, RequestContext, Verdict, request_id,
};
pub use audit::{
    AuditOrder, AuditPlace, AuditRow, AuditScan, Chain, ChainHead, Link, Receipt, ReceiptSlot, StoredAuditRow,
};
pub use hex::hex;
pub use keys::{GenerationUse, Key, KeyStock, MaskedKey, WrappedDataKey, WrappedKey};
pub use path::{InvalidPath, MAX_BYTES as MAX_PATH_BYTES, MAX_SEGMENTS, SecretPath};
pub use pattern::{InvalidPattern, MAX_PATTERN_BYTES, PathPattern};
pub use ports::{Clock, Entropy};
pub use principal::{Identity, IdentityKind, Principal, Scope, Scopes, TenantId};
pub use record::{Head, Record, SealedValue, VersionRecord, VersionState};
pub use secret::{InvalidMetadata, MAX_VALUE_BYTES, Metadata, MetadataText, SecretType, SecretValue, Version};
pub use time::{InvalidDuration, Span, Timestamp};
