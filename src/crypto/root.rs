//! The root key: where it comes from, and what is derived from it.

use std::{
    fmt, fs,
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use super::{
    CursorBox,
    envelope::{Key, derive, fresh_key},
};
use crate::domain::Entropy;

/// Where the root key is kept: 32 bytes, or their base64.
#[derive(Clone, PartialEq, Eq)]
pub enum RootKeySource {
    /// A file of mode 0600.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A credential that systemd hands over (`LoadCredential=`), by name.
    SystemdCredential(String),
}

impl fmt::Debug for RootKeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for RootKeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::SystemdCredential(name) => write!(f, "systemd credential {name}"),
        }
    }
}

/// There is no root key to be had. Never shows any part of it.
#[derive(Debug, thiserror::Error)]
pub enum RootKeyError {
    /// The place cannot be read.
    #[error("cannot read the root key from {0}: {1} (to make one: head -c 32 /dev/urandom | base64)")]
    Unreadable(RootKeySource, String),
    /// It holds something else.
    #[error("the {0} holds no root key: 32 bytes, or 44 characters of base64, are wanted")]
    Malformed(RootKeySource),
    /// Others than its owner may read it.
    #[error("{} may be read by others (mode {:o}): run chmod 600 on it", .0.display(), .1)]
    Exposed(PathBuf, u32),
}

/// The key that all others hang from. Wiped when dropped; tells nothing.
pub struct RootKey(Key);

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(…)")
    }
}

impl RootKey {
    /// Reads the key.
    ///
    /// # Errors
    ///
    /// [`RootKeyError`] where there is none, or others may read its file.
    pub fn load(source: &RootKeySource) -> Result<Self, RootKeyError> {
        let unreadable = |error: &dyn fmt::Display| RootKeyError::Unreadable(source.clone(), error.to_string());
        let bytes = match source {
            RootKeySource::File(path) => {
                assert_private(path).map_err(|error| error.unwrap_or_else(|io| unreadable(&io)))?;
                read(path).map_err(|error| unreadable(&error))?
            }
            RootKeySource::Environment(name) => {
                let text = std::env::var(name).map_err(|error| unreadable(&error))?;
                Zeroizing::new(text.into_bytes())
            }
            RootKeySource::SystemdCredential(name) => {
                let directory = std::env::var_os("CREDENTIALS_DIRECTORY")
                    .ok_or_else(|| unreadable(&"systemd has set no CREDENTIALS_DIRECTORY"))?;
                read(&Path::new(&directory).join(name)).map_err(|error| unreadable(&error))?
            }
        };
        Self::parse(&bytes).ok_or_else(|| RootKeyError::Malformed(source.clone()))
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
        let written = fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
        written.map_err(|error| RootKeyError::Unreadable(source, error.to_string()))?;
        Ok((Self(key), true))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut key = Key::default();
        if bytes.len() == key.len() {
            key.copy_from_slice(bytes);
            return Some(Self(key));
        }
        let decoded = Zeroizing::new(BASE64_STANDARD.decode(bytes.trim_ascii()).ok()?);
        (decoded.len() == key.len()).then(|| {
            key.copy_from_slice(&decoded);
            Self(key)
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

    /// The key that authenticates what is kept of policies on disk.
    #[must_use]
    pub fn policy_memory_key(&self) -> Zeroizing<[u8; 32]> {
        derive(&self.0, b"portcullis-v1 policy memory key")
    }

    /// The seed of the key that signs the server's own tokens.
    #[must_use]
    pub fn token_seed(&self) -> Zeroizing<[u8; 32]> {
        derive(&self.0, b"portcullis-v1 token signing key")
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn read(path: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
    // A key is short: whatever is longer is no key, and is not taken into memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(256));
    fs::File::open(path)?.take(256).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn assert_private(path: &Path) -> Result<(), Result<RootKeyError, std::io::Error>> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(path).map_err(Err)?.permissions().mode() & 0o777;
    if mode.trailing_zeros() >= 6 { Ok(()) } else { Err(Ok(RootKeyError::Exposed(path.to_owned(), mode))) }
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
