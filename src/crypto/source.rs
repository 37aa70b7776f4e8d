//! Where the root key comes from.

use std::{
    fmt, fs,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{RootKey, program, sealed_file, terminal};

/// Where the root key is kept: 32 bytes, or their base64.
#[derive(Clone, PartialEq, Eq)]
pub enum RootKeySource {
    /// A file of mode 0600.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A credential that systemd hands over (`LoadCredential=`), by name.
    SystemdCredential(String),
    /// A file that `portcullis keys seal-file` made, and where its passphrase is.
    SealedFile(PathBuf, PassphraseSource),
    /// A program with its arguments, which prints the key.
    Command(Vec<String>),
    /// Shares, so many of them, which people bring together.
    Shares(u8),
}

/// Where a passphrase is kept.
#[derive(Clone, PartialEq, Eq)]
pub enum PassphraseSource {
    /// A file of mode 0600.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A credential that systemd hands over (`LoadCredential=`), by name.
    SystemdCredential(String),
    /// In somebody's head: `serve` asks on its terminal.
    Terminal,
}

/// Whether somebody sits at the terminal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Attended {
    Yes,
    No,
}

impl RootKeySource {
    /// The kind of place, in a word.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Environment(_) => "environment",
            Self::SystemdCredential(_) => "systemd_credential",
            Self::SealedFile(..) => "sealed_file",
            Self::Command(_) => "command",
            Self::Shares(_) => "shares",
        }
    }

    pub(super) fn read(&self, attended: Attended) -> Result<RootKey, RootKeyError> {
        let unreadable = |error: &dyn fmt::Display| RootKeyError::Unreadable(self.clone(), error.to_string());
        let bytes = match self {
            Self::File(path) => private_bytes(path).map_err(|error| error.unwrap_or_else(|io| unreadable(&io)))?,
            Self::Environment(name) => variable(name).map_err(|error| unreadable(&error))?,
            Self::SystemdCredential(name) => credential(name).map_err(|error| unreadable(&error))?,
            Self::SealedFile(path, passphrase) => {
                let passphrase = passphrase.read(attended).map_err(|error| unreadable(&error))?;
                return sealed_file::open(path, &passphrase).map_err(|error| unreadable(&error));
            }
            Self::Command(words) => program::output(words).map_err(|error| unreadable(&error))?,
            Self::Shares(wanted) => return Err(RootKeyError::InShares(*wanted)),
        };
        RootKey::parse(&bytes).ok_or_else(|| RootKeyError::Malformed(self.clone()))
    }
}

impl PassphraseSource {
    /// The passphrase, without asking anybody for it.
    ///
    /// # Errors
    ///
    /// It cannot be read there.
    pub fn passphrase(&self) -> io::Result<Zeroizing<Vec<u8>>> {
        self.read(Attended::No)
    }

    /// The passphrase, without the line end that editors and shells put after it.
    fn read(&self, attended: Attended) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut passphrase = match (self, attended) {
            (Self::File(path), _) => {
                private_bytes(path).map_err(|error| error.map_or_else(|io| io, io::Error::other))?
            }
            (Self::Environment(name), _) => variable(name)?,
            (Self::SystemdCredential(name), _) => credential(name)?,
            (Self::Terminal, Attended::Yes) => terminal::ask("Passphrase of the root key: ")?,
            (Self::Terminal, Attended::No) => {
                return Err(io::Error::other(
                    "its passphrase is asked for when `portcullis serve` starts, and then only",
                ));
            }
        };
        let length = passphrase.trim_ascii_end().len();
        passphrase.truncate(length);
        Ok(passphrase)
    }
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
            Self::SealedFile(path, _) => write!(f, "sealed file {}", path.display()),
            // Its arguments may be nobody's business.
            Self::Command(words) => write!(f, "command {}", words.first().map_or("", String::as_str)),
            Self::Shares(wanted) => write!(f, "{wanted} shares"),
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
    /// It is in shares.
    #[error("the root key is in {0} shares, which people bring together with `portcullis unseal`")]
    InShares(u8),
}

/// What stands in a file that its owner alone may read.
fn private_bytes(path: &Path) -> Result<Zeroizing<Vec<u8>>, Result<RootKeyError, io::Error>> {
    let mode = fs::metadata(path).map_err(Err)?.permissions().mode() & 0o777;
    if mode.trailing_zeros() < 6 {
        return Err(Ok(RootKeyError::Exposed(path.to_owned(), mode)));
    }
    short_file(path).map_err(Err)
}

fn variable(name: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let text = std::env::var(name).map_err(io::Error::other)?;
    Ok(Zeroizing::new(text.into_bytes()))
}

fn credential(name: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY")
        .ok_or_else(|| io::Error::other("systemd has set no CREDENTIALS_DIRECTORY"))?;
    short_file(&Path::new(&directory).join(name))
}

/// A key or passphrase is short: whatever is longer is neither, and is not taken into memory.
fn short_file(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    const MOST: usize = 1_024;
    let mut bytes = Zeroizing::new(Vec::with_capacity(MOST));
    fs::File::open(path)?.take(MOST as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}
