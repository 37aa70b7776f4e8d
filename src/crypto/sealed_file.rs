//! A root key in a file that a passphrase opens: Argon2id makes a key of the passphrase, and that key wraps the root key.

use std::{fs, io, path::Path};

use argon2::{Algorithm, Argon2, Params, Version};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

use super::{
    RootKey,
    envelope::{Key, unwrap, wrap},
    root::private_file,
};
use crate::domain::Entropy;

/// The second choice of RFC 9106, section 4: 64 MiB, 3 passes, 4 lanes. Above what OWASP asks for (19 MiB, 2 passes).
const CHOSEN: Cost = Cost { memory_kib: 64 * 1024, passes: 3, lanes: 4 };
/// What a file may ask for at most: whoever can write it could else make the server hash for ever.
const MOST: Cost = Cost { memory_kib: 4 * 1024 * 1024, passes: 64, lanes: 64 };
/// Shortest passphrase, in bytes.
const MIN_PASSPHRASE: usize = 8;
const SALT: usize = 16;
const LABEL: &[u8] = b"portcullis-v1 sealed root key";
const FORMAT: &str = "portcullis sealed root key 1";

/// What it costs to try a passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SealedFile {
    format: String,
    argon2id: Cost,
    salt: String,
    wrapped: String,
}

/// Writes a root key to a new file (mode 0600) that the passphrase opens.
///
/// # Errors
///
/// A passphrase of fewer than 8 bytes, a file that is there already or cannot be written.
pub fn seal_file(path: &Path, root: &RootKey, passphrase: &[u8], entropy: &dyn Entropy) -> io::Result<()> {
    if passphrase.len() < MIN_PASSPHRASE {
        return Err(io::Error::other(format!("a passphrase has {MIN_PASSPHRASE} bytes at least")));
    }
    let mut salt = [0; SALT];
    entropy.fill(&mut salt);
    let key = stretch(passphrase, &salt, CHOSEN)?;
    let wrapped = wrap(&key, root.bytes(), LABEL, entropy).map_err(io::Error::other)?;
    let file = SealedFile {
        format: FORMAT.to_owned(),
        argon2id: CHOSEN,
        salt: BASE64_STANDARD.encode(salt),
        wrapped: BASE64_STANDARD.encode(wrapped),
    };
    let text = serde_json::to_string_pretty(&file).map_err(io::Error::other)? + "\n";
    private_file(path, text.as_bytes())
}

/// Opens such a file.
///
/// # Errors
///
/// No such file, another file, another passphrase.
pub fn open(path: &Path, passphrase: &[u8]) -> io::Result<RootKey> {
    let other = || io::Error::other("it is no file that `portcullis keys seal-file` made");
    let file: SealedFile = serde_json::from_slice(&fs::read(path)?).map_err(|_| other())?;
    let Cost { memory_kib, passes, lanes } = file.argon2id;
    if file.format != FORMAT || memory_kib > MOST.memory_kib || passes > MOST.passes || lanes > MOST.lanes {
        return Err(other());
    }
    let decode = |text: &str| BASE64_STANDARD.decode(text).map_err(|_| other());
    let key = stretch(passphrase, &decode(&file.salt)?, file.argon2id)?;
    let refused = |_| io::Error::other("the passphrase is not the right one, or the file was altered");
    unwrap(&key, &decode(&file.wrapped)?, LABEL).map(RootKey::from).map_err(refused)
}

fn stretch(passphrase: &[u8], salt: &[u8], cost: Cost) -> io::Result<Key> {
    let parameters = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).map_err(io::Error::other)?;
    let mut key = Key::default();
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters);
    argon2.hash_password_into(passphrase, salt, key.as_mut_slice()).map_err(io::Error::other)?;
    Ok(key)
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
    fn the_right_passphrase_alone_opens_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sealed");
        let root = RootKey::fresh(&Sevens);
        assert!(seal_file(&path, &root, b"short", &Sevens).is_err());
        seal_file(&path, &root, b"correct horse", &Sevens).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(seal_file(&path, &root, b"correct horse", &Sevens).is_err(), "no file is overwritten");
        assert_eq!(open(&path, b"correct horse").unwrap().fingerprint(), root.fingerprint());
        assert!(open(&path, b"correct horsf").unwrap_err().to_string().contains("passphrase"));
        let text = fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("\"passes\": 3", "\"passes\": 4"),
            ("\"passes\": 3", "\"passes\": 65"),
            ("\"memory_kib\": 65536", "\"memory_kib\": 4294967295"),
            ("key 1", "key 2"),
        ] {
            assert!(text.contains(from), "{text}");
            fs::write(&path, text.replace(from, to)).unwrap();
            assert!(open(&path, b"correct horse").is_err(), "{to}");
        }
    }

    /// RFC 9106, appendix A, has no test without a secret; this is the reference implementation's own
    /// (`argon2 somesalt -id -t 2 -m 16 -p 1 -l 32`, version 13).
    #[test]
    fn argon2id_known_answer() {
        let key = stretch(b"password", b"somesalt", Cost { memory_kib: 65_536, passes: 2, lanes: 1 }).unwrap();
        assert_eq!(crate::domain::hex(&key[..8]), "09316115d5cf24ed");
    }
}
