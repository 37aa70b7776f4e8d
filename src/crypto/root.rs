//! The root key, and what is derived from it.

use std::{fmt, fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use super::{
    CursorBox,
    envelope::{Key, derive, fresh_key},
    locked::LockedKey,
    source::{Attended, RootKeyError, RootKeySource},
};
use crate::domain::Entropy;

/// The key that all others hang from. Wiped when dropped; tells nothing.
pub struct RootKey(LockedKey);

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(…)")
    }
}

impl RootKey {
    /// Reads the key, without asking anybody for anything.
    ///
    /// # Errors
    ///
    /// [`RootKeyError`] where there is none, others may read its file, or a person would have to be asked.
    pub fn load(source: &RootKeySource) -> Result<Self, RootKeyError> {
        source.read(Attended::No)
    }

    /// Reads the key; where its source needs a passphrase that is kept nowhere, asks for it on the terminal.
    ///
    /// # Errors
    ///
    /// As [`RootKey::load`].
    pub fn load_or_ask(source: &RootKeySource) -> Result<Self, RootKeyError> {
        source.read(Attended::Yes)
    }

    /// Reads the key from a file, or makes one there (mode 0600) where there is no such file. True where it was made.
    ///
    /// # Errors
    ///
    /// As [`RootKey::load`], and where the file cannot be made.
    pub fn load_or_create(path: &Path, entropy: &dyn Entropy) -> Result<(Self, bool), RootKeyError> {
        let source = RootKeySource::File(path.to_owned());
        if path.exists() {
            return Ok((Self::load(&source)?, false));
        }
        let key = fresh_key(entropy);
        let text = Zeroizing::new(BASE64_STANDARD.encode(key.as_slice()) + "\n");
        private_file(path, text.as_bytes()).map_err(|error| RootKeyError::Unreadable(source, error.to_string()))?;
        Ok((Self::from(key), true))
    }

    /// A fresh key.
    #[must_use]
    pub fn fresh(entropy: &dyn Entropy) -> Self {
        Self::from(fresh_key(entropy))
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut key = Key::default();
        if bytes.len() == key.len() {
            key.copy_from_slice(bytes);
            return Some(Self::from(key));
        }
        let decoded = Zeroizing::new(BASE64_STANDARD.decode(bytes.trim_ascii()).ok()?);
        (decoded.len() == key.len()).then(|| {
            key.copy_from_slice(&decoded);
            Self::from(key)
        })
    }

    /// A name for this key that tells nothing of it: kept in the store, so that a wrong key is noticed at the start.
    #[must_use]
    pub fn fingerprint(&self) -> Vec<u8> {
        derive(&self.0, b"portcullis-v1 root key fingerprint").get(..16).unwrap_or_default().to_vec()
    }

    /// What seals cursors.
    #[must_use]
    pub fn cursor_box(&self, entropy: Arc<dyn Entropy>) -> CursorBox {
        CursorBox::new(derive(&self.0, b"portcullis-v1 cursor key"), entropy)
    }

    /// A word for the key that its shares carry, so that a wrong set is noticed. 32 bits tell nothing of 256.
    pub(super) fn share_set(&self) -> [u8; 4] {
        let mut set = [0; 4];
        set.iter_mut().zip(derive(&self.0, b"portcullis-v1 share set").iter()).for_each(|(to, from)| *to = *from);
        set
    }

    /// The key that authenticates what is kept of policies on disk.
    #[must_use]
    pub fn policy_memory_key(&self) -> Key {
        derive(&self.0, b"portcullis-v1 policy memory key")
    }

    /// The seed of the key that signs the server's own tokens.
    #[must_use]
    pub fn token_seed(&self) -> Key {
        derive(&self.0, b"portcullis-v1 token signing key")
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<Key> for RootKey {
    fn from(key: Key) -> Self {
        Self(key.into())
    }
}

/// Writes a new file that nobody else may read.
pub(super) fn private_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct Sevens;

    impl Entropy for Sevens {
        fn fill(&self, buffer: &mut [u8]) {
            buffer.fill(7);
        }
    }

    #[test]
    fn a_key_file_is_made_once_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.key");
        let (first, made) = RootKey::load_or_create(&path, &Sevens).unwrap();
        assert!(made);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (second, made) = RootKey::load_or_create(&path, &Sevens).unwrap();
        assert!(!made);
        assert_eq!(first.fingerprint(), second.fingerprint());
    }

    #[test]
    fn an_exposed_short_or_missing_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.key");
        let load = || RootKey::load(&RootKeySource::File(path.clone())).map(drop).unwrap_err();
        assert!(matches!(load(), RootKeyError::Unreadable(..)));
        fs::write(&path, [7; 32]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(load(), RootKeyError::Exposed(_, 0o644)));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, [7; 31]).unwrap();
        assert!(matches!(load(), RootKeyError::Malformed(_)));
    }

    #[test]
    fn raw_and_base64_are_the_same_key() {
        let raw = RootKey::parse(&[7; 32]).unwrap();
        let text = RootKey::parse(b"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n").unwrap();
        assert_eq!(raw.fingerprint(), text.fingerprint());
        assert_eq!(format!("{raw:?}"), "RootKey(…)");
    }
}
