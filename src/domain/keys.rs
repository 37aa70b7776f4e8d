//! Wrapped keys, as the store keeps them and the keyring makes them. All of it is opaque to the store.

use std::sync::OnceLock;

use zeroize::Zeroize;

use super::{SecretPath, TenantId, Version};

/// A tenant's key-encryption key, wrapped under the root key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedKey {
    /// 1, 2, … within the tenant.
    pub generation: u32,
    /// The wrapped key, opaque to the store.
    pub wrapped: Vec<u8>,
}

/// A version's data key, wrapped under a generation of its tenant's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedDataKey {
    /// The secret.
    pub path: SecretPath,
    /// The version.
    pub version: Version,
    /// The generation that wraps, and the wrapped key.
    pub key: WrappedKey,
}

/// Every key that the root key wraps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyStock {
    /// The tenants' keys.
    pub tenants: Vec<(TenantId, WrappedKey)>,
    /// The vault's own, by name.
    pub own: Vec<(String, Vec<u8>)>,
}

/// How much one generation of a tenant's keys is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationUse {
    /// The tenant.
    pub tenant: TenantId,
    /// The generation.
    pub generation: u32,
    /// How many versions' data keys it wraps.
    pub records: u64,
}

/// A 256-bit key. On the heap, so that handing it on leaves no copy behind; wiped when dropped; tells nothing.
#[derive(Clone, Default)]
pub struct Key(Box<[u8; 32]>);

impl Key {
    /// A key of these bytes.
    #[must_use]
    pub fn copy_of(bytes: &[u8; 32]) -> Self {
        let mut key = Self::default();
        key.copy_from_slice(bytes);
        key
    }
}

impl std::ops::Deref for Key {
    type Target = [u8; 32];

    fn deref(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::ops::DerefMut for Key {
    fn deref_mut(&mut self) -> &mut [u8; 32] {
        &mut self.0
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// A data key, masked by the keyring that unwrapped it: of no use to anybody else. It goes with the value that it was kept
/// with, is no part of what that value is, and is not copied with it.
#[derive(Default)]
pub struct MaskedKey(OnceLock<[u8; 32]>);

impl MaskedKey {
    /// What was kept, if anything was.
    #[must_use]
    pub fn get(&self) -> Option<&[u8; 32]> {
        self.0.get()
    }

    /// Keeps a masked key, unless there is one.
    pub fn keep(&self, masked: [u8; 32]) {
        self.0.set(masked).ok();
    }
}

impl Clone for MaskedKey {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for MaskedKey {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for MaskedKey {}

impl std::fmt::Debug for MaskedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MaskedKey(…)")
    }
}
