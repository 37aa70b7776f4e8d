//! Keys and ciphertext. The only module that names an AEAD.
//!
//! ```text
//! root key
//!   ├─ wraps: key-encryption keys, by tenant and generation
//!   │    └─ wraps, through a key derived for each record: one data key for each version
//!   │         └─ AES-256-GCM: the value
//!   └─ derives: sibling keys, each by its own label
//! ```
//!
//! Every AES-GCM key here encrypts once, so no nonce can repeat: data keys are fresh, wrapping keys are derived with a
//! fresh 256-bit salt.

#[cfg(test)]
mod campaign_tests;
mod cursor;
mod envelope;
mod keyring;
mod locked;
mod mask;
mod program;
mod root;
mod sealed_file;
mod shares;
mod source;
mod terminal;

pub use cursor::CursorBox;
pub use keyring::Keyring;
pub use root::RootKey;
pub use sealed_file::seal_file;
pub use shares::{InvalidShare, Share, ShareBox};
pub use source::{PassphraseSource, RootKeyError, RootKeySource};
pub use terminal::ask;

/// A ciphertext, wrapped key or key that is not what it should be.
///
/// It says no more: what exactly failed is of use to an attacker alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// The text does not open here under this key: it was altered, moved, or sealed under another key.
    #[error("the record does not authenticate")]
    Unauthentic,
    /// The tenant's key of that generation is not in the keyring.
    #[error("the key that wraps this record is not known")]
    UnknownKey,
    /// A value too large for the cipher, or a text too short to be one.
    #[error("the record is malformed")]
    Malformed,
}
