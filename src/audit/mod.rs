//! The audit log: what an event says, how the events of a request are packed into one row, what binds the rows of a
//! chain, and how somebody who was given no reason to believe it finds out whether a log is whole.
//!
//! No event has room for a secret's value, for a token, or for text that the caller chose freely, but for the paths,
//! names and addresses that it is there to record.
//!
//! Each row hangs from the one before by an HMAC over everything that it holds, under a key that the store never sees:
//! whoever can write to the store can destroy the log, and cannot change it unnoticed. Signed notes say how far a chain
//! had come: as checkpoints in the log itself and in a second place, as receipts in the hands of clients. What they
//! vouch for cannot be cut off unnoticed either.

mod chain;
mod checkpoints;
mod log_entry;
mod note;
mod pack;
mod verify;

pub use chain::{AuditChain, AuditKeys, CHECKPOINT};
pub use checkpoints::CheckpointFile;
pub use log_entry::{LogBatch, LogDecision, LogDissent, LogEntry, LogObligations, unpack};
pub use note::{Note, NoteKind, Removed};
pub use pack::{Entry, Event, pack};
pub use verify::{ChainReport, Evidence, Problem, Report, Verifier, checkpoint_note};

/// The code of an event that went well.
pub const OK: &str = "ok";
/// The code of a read that released nothing, since the caller has the value already.
pub const NOT_MODIFIED: &str = "not_modified";
/// The code of a permitted read that released nothing, since another path of its batch failed.
pub const WITHHELD: &str = "withheld";
