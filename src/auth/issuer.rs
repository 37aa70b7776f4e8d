//! The issuers that the operator trusts. An issuer's settings fix its algorithm, its audience and where its keys come
//! from; a token can only name the issuer and, within that issuer's keys, one of them.

use std::{
    fmt, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use reqwest::Url;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    AuthError,
    claims::Demands,
    compact::Compact,
    jwks::{Edition, MAX_BODY_BYTES, Patience, Remote},
    keys::KeySet,
};
use crate::domain::{Clock, TenantId};

/// Shortest secret for `HS256`, in bytes (RFC 7518, section 3.2: as long as the hash).
const MIN_SECRET_BYTES: usize = 32;

/// How an issuer signs. `none` is not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Algorithm {
    /// Ed25519.
    EdDSA,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// RSA, PKCS #1 v1.5, with SHA-256; keys of 2,048 bits or more.
    RS256,
    /// HMAC with SHA-256: whoever can verify can also sign. For small set-ups.
    HS256,
}

impl Algorithm {
    /// The name in a token's header.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EdDSA => "EdDSA",
            Self::ES256 => "ES256",
            Self::RS256 => "RS256",
            Self::HS256 => "HS256",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<Algorithm> for jsonwebtoken::Algorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::EdDSA => Self::EdDSA,
            Algorithm::ES256 => Self::ES256,
            Algorithm::RS256 => Self::RS256,
            Algorithm::HS256 => Self::HS256,
        }
    }
}

/// One trusted issuer, as the configuration file states it. Exactly one of the four sources of keys is set.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerSettings {
    /// The `iss` of its tokens, compared byte by byte.
    pub issuer: String,
    /// Names of this server; the `aud` of a token must hold one of them. At least one.
    pub audience: Vec<String>,
    /// The one algorithm that it signs with.
    pub algorithm: Algorithm,
    /// Its public key: a PEM file (`PUBLIC KEY`), read at the start.
    #[serde(default)]
    pub public_key_file: Option<PathBuf>,
    /// Its public keys: a file with a JWK set, read at the start.
    #[serde(default)]
    pub jwks_file: Option<PathBuf>,
    /// Its public keys: where it publishes its JWK set. `https`, or `http` to this machine alone.
    #[serde(default)]
    pub jwks_url: Option<String>,
    /// The secret shared with it, for `HS256` alone: a file of 32 bytes or more. A line end after printable
    /// ASCII is left out; random bytes are taken as they are.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// The only tenant that it may speak for. Its tokens belong to that tenant; one that claims another is refused.
    /// Without this, its tokens choose their tenant.
    #[serde(default)]
    pub tenant: Option<String>,
}

/// Why the configuration of the issuers is refused.
#[derive(Debug, thiserror::Error)]
pub enum AuthConfigError {
    /// An issuer without a name.
    #[error("an issuer has an empty `issuer`")]
    NoName,
    /// Two issuers of one name.
    #[error("issuer {0}: configured twice")]
    Twice(String),
    /// No audience, or an empty one: its tokens would be meant for everybody.
    #[error("issuer {0}: `audience` needs at least one name, and none may be empty")]
    NoAudience(String),
    /// A tenant's name outside the grammar.
    #[error("issuer {0}: `tenant` is no tenant's name")]
    Tenant(String),
    /// None or several sources of keys, or a secret where there must be public keys.
    #[error(
        "issuer {0}: set exactly one of `public_key_file`, `jwks_file`, `jwks_url`, or for HS256 exactly `secret_file`"
    )]
    KeySource(String),
    /// A file that cannot be read.
    #[error("issuer {issuer}: {}: {error}", path.display())]
    File {
        /// Whose.
        issuer: String,
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A file without a key that fits the algorithm.
    #[error("issuer {issuer}: {}: no public key for {algorithm}", path.display())]
    NoKey {
        /// Whose.
        issuer: String,
        /// Which file.
        path: PathBuf,
        /// The algorithm.
        algorithm: Algorithm,
    },
    /// A secret that is too short, or that is no secret.
    #[error("issuer {0}: the secret must have 32 bytes or more and not be a PEM file")]
    WeakSecret(String),
    /// A URL that keys must not be fetched from.
    #[error("issuer {0}: `jwks_url` must be https (http only to this machine), without user name and password")]
    Url(String),
    /// The HTTP client does not start.
    #[error("issuer {issuer}: no HTTP client: {error}")]
    Client {
        /// Whose.
        issuer: String,
        /// What it says.
        error: reqwest::Error,
    },
}

/// An issuer with its keys.
pub(super) struct Issuer {
    algorithm: Algorithm,
    demands: Demands,
    keys: Keys,
}

enum Keys {
    Fixed(Edition),
    Remote(Arc<Remote>),
}

impl Issuer {
    /// Checks the settings and reads the files that they name.
    pub(super) fn load(settings: &IssuerSettings, clock: &Arc<dyn Clock>) -> Result<Self, AuthConfigError> {
        let name = || settings.issuer.clone();
        if settings.issuer.is_empty() {
            return Err(AuthConfigError::NoName);
        }
        if settings.audience.is_empty() || settings.audience.iter().any(String::is_empty) {
            return Err(AuthConfigError::NoAudience(name()));
        }
        let tenant = match &settings.tenant {
            Some(tenant) => Some(TenantId::parse(tenant).ok_or_else(|| AuthConfigError::Tenant(name()))?),
            None => None,
        };
        let demands = Demands { audience: settings.audience.clone(), tenant };
        Ok(Self { algorithm: settings.algorithm, demands, keys: settings.keys(clock)? })
    }

    /// An issuer whose keys never change.
    pub(super) fn with_keys(algorithm: Algorithm, demands: Demands, keys: KeySet) -> Self {
        Self { algorithm, demands, keys: Keys::fixed(keys) }
    }

    /// What the issuer demands of claims.
    pub(super) fn demands(&self) -> &Demands {
        &self.demands
    }

    /// The number of the key set in force.
    pub(super) async fn edition(&self) -> Result<u64, AuthError> {
        match &self.keys {
            Keys::Fixed(edition) => Ok(edition.number),
            Keys::Remote(remote) => Ok(remote.current().await?.number),
        }
    }

    /// Checks a token's algorithm and signature; answers which edition of the keys held.
    pub(super) async fn verify(&self, token: &Compact<'_>) -> Result<u64, AuthError> {
        if token.algorithm != self.algorithm.as_str() {
            return Err(AuthError::Invalid("alg"));
        }
        let kid = token.kid.as_deref();
        let edition = match &self.keys {
            Keys::Fixed(edition) => edition.clone(),
            Keys::Remote(remote) => remote.holding(kid).await?,
        };
        edition.keys.verify(kid, token.message, token.signature)?;
        Ok(edition.number)
    }
}

impl Keys {
    fn fixed(keys: KeySet) -> Self {
        Self::Fixed(Edition { number: 0, keys: Arc::new(keys) })
    }
}

impl IssuerSettings {
    fn keys(&self, clock: &Arc<dyn Clock>) -> Result<Keys, AuthConfigError> {
        let shared = self.algorithm == Algorithm::HS256;
        match (&self.public_key_file, &self.jwks_file, &self.jwks_url, &self.secret_file) {
            (Some(path), None, None, None) if !shared => {
                let keys = KeySet::of_pem(&self.read(path)?, self.algorithm);
                keys.map(Keys::fixed).ok_or_else(|| self.no_key(path))
            }
            (None, Some(path), None, None) if !shared => {
                let keys = KeySet::of_jwks(&self.read(path)?, self.algorithm).ok();
                keys.filter(|keys| !keys.is_empty()).map(Keys::fixed).ok_or_else(|| self.no_key(path))
            }
            (None, None, Some(url), None) if !shared => self.remote(url, clock).map(Keys::Remote),
            (None, None, None, Some(path)) if shared => self.secret(path).map(Keys::fixed),
            _ => Err(AuthConfigError::KeySource(self.issuer.clone())),
        }
    }

    fn secret(&self, path: &Path) -> Result<KeySet, AuthConfigError> {
        let bytes = self.read(path)?;
        let secret = without_line_end(&bytes);
        // A public key put here by mistake would let everybody sign.
        if secret.len() < MIN_SECRET_BYTES || secret.trim_ascii_start().starts_with(b"-----BEGIN") {
            return Err(AuthConfigError::WeakSecret(self.issuer.clone()));
        }
        Ok(KeySet::of_secret(secret))
    }

    fn remote(&self, url: &str, clock: &Arc<dyn Clock>) -> Result<Arc<Remote>, AuthConfigError> {
        let allowed = Url::parse(url).ok().filter(is_allowed);
        let url = allowed.ok_or_else(|| AuthConfigError::Url(self.issuer.clone()))?;
        Remote::new(url, self.algorithm, Arc::clone(clock), Patience::default())
            .map_err(|error| AuthConfigError::Client { issuer: self.issuer.clone(), error })
    }

    fn read(&self, path: &Path) -> Result<Zeroizing<Vec<u8>>, AuthConfigError> {
        let failed = |error| AuthConfigError::File { issuer: self.issuer.clone(), path: path.to_owned(), error };
        let bytes = fs::read(path).map(Zeroizing::new).map_err(failed)?;
        if bytes.len() > MAX_BODY_BYTES {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        Ok(bytes)
    }

    fn no_key(&self, path: &Path) -> AuthConfigError {
        AuthConfigError::NoKey { issuer: self.issuer.clone(), path: path.to_owned(), algorithm: self.algorithm }
    }
}

/// Editors and shells end a text with a line end that is no part of the secret; in random bytes it is one.
fn without_line_end(bytes: &[u8]) -> &[u8] {
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.iter().all(|byte| (b' '..=b'~').contains(byte)) { line } else { bytes }
}

fn is_allowed(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let this_machine = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    let scheme = url.scheme() == "https" || (url.scheme() == "http" && this_machine);
    scheme && !host.is_empty() && url.username().is_empty() && url.password().is_none()
}
