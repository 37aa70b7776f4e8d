//! What the store keeps: secrets as ciphertext with their descriptions.

use super::{MaskedKey, MetadataText, SecretPath, SecretType, Timestamp, Version};

/// A value under its own data key, and that key under a key-encryption key. Both parts are opaque to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedValue {
    /// The generation of the tenant's key-encryption key that wraps the data key.
    pub key_generation: u32,
    /// The data key, wrapped. Gone once the version is destroyed.
    pub wrapped_key: Vec<u8>,
    /// Key commitment and ciphertext.
    pub ciphertext: Vec<u8>,
    /// The data key once more, after the value was opened. Never stored.
    pub masked_key: MaskedKey,
}

/// A secret as a whole: what all its versions share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Where it is.
    pub path: SecretPath,
    /// The newest version.
    pub latest: Version,
    /// The type of the newest version.
    pub secret_type: SecretType,
    /// What may be known of it.
    pub metadata: MetadataText,
    /// When its first version was written.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// When its newest version or its metadata was written.
    pub updated_at: Timestamp,
    /// By whom.
    pub updated_by: String,
    /// When the newest version ends.
    pub expires_at: Option<Timestamp>,
    /// When it was deleted, and until when that can be undone.
    pub deleted: Option<(Timestamp, Timestamp)>,
    /// How many versions are kept.
    pub max_versions: u32,
}

/// One version of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRecord {
    /// Which.
    pub version: Version,
    /// What it is said to hold.
    pub secret_type: SecretType,
    /// When it was written.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// When it was destroyed.
    pub destroyed_at: Option<Timestamp>,
    /// The value; gone once destroyed, and not fetched with a list of versions.
    pub sealed: Option<SealedValue>,
}

/// What a version is at some instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionState {
    /// It can be read.
    Live,
    /// Its time is over.
    Expired,
    /// Its key is gone.
    Destroyed,
}

impl VersionRecord {
    /// The state of the version at `now`.
    #[must_use]
    pub fn state(&self, now: Timestamp) -> VersionState {
        if self.destroyed_at.is_some() {
            VersionState::Destroyed
        } else if self.expires_at.is_some_and(|end| end <= now) {
            VersionState::Expired
        } else {
            VersionState::Live
        }
    }
}

/// A secret with one of its versions: the one asked for, or the newest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The secret.
    pub head: Head,
    /// The version; `None` where the secret has no such version.
    pub version: Option<VersionRecord>,
}

impl Head {
    /// Whether the secret is there to be listed and read at `now`.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.deleted.is_none() && self.expires_at.is_none_or(|end| end > now)
    }
}
