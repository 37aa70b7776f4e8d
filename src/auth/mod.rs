//! Bearer token → [`Principal`]. Owns everything about tokens: who may issue them, how they are verified, and the
//! server's own issuer.
//!
//! The issuer's settings fix algorithm, audience and keys. A token names its issuer and, within that issuer's keys, one
//! by `kid`; it chooses nothing else, and no address is ever taken from it. A token that was verified once is remembered
//! until it ends or its issuer's keys change; a refusal is never remembered. No token, secret or key appears in a log or
//! in an error.

mod claims;
mod compact;
mod issuer;
mod json;
mod jwks;
mod keys;
#[cfg(test)]
mod tests;
mod token;

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use crate::domain::{Clock, Principal, Timestamp};

pub use issuer::{Algorithm, AuthConfigError, IssuerSettings};
pub use token::{OwnIssuer, TokenError, TokenIssuer, TokenRequest};

use compact::Compact;
use issuer::Issuer;

/// How far an issuer's clock may be from ours.
const LEEWAY: Duration = Duration::from_secs(5);
/// Most verified tokens that are remembered.
const MAX_REMEMBERED: usize = 10_000;

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The token is wrong; the text says which part of it, for the log alone, and never repeats any of it.
    #[error("the token is not valid: {0}")]
    Invalid(&'static str),
    /// The token was right once.
    #[error("the token has expired")]
    Expired,
    /// The issuer's keys cannot be had, so the token cannot be judged.
    #[error("the keys of the token's issuer are not available")]
    Unavailable,
}

/// Verifies tokens.
pub struct Authenticator {
    /// INVARIANT: a key belongs to the issuer that it is stored under, and verifies no token that names another.
    issuers: HashMap<String, Arc<Issuer>>,
    clock: Arc<dyn Clock>,
    /// By SHA-256 of the token: a copy of this memory opens nothing.
    remembered: Cache<[u8; 32], Remembered>,
}

/// A token that was verified.
#[derive(Clone)]
struct Remembered {
    principal: Principal,
    issuer: Arc<Issuer>,
    /// Which edition of the issuer's keys held.
    edition: u64,
}

impl Authenticator {
    /// Prepares the verification of tokens from the server's own issuer and from those configured. Reads their files.
    ///
    /// # Errors
    ///
    /// [`AuthConfigError`] for settings that contradict the rules of [`IssuerSettings`], and for files without a key.
    pub fn new(
        own: Option<OwnIssuer>,
        settings: &[IssuerSettings],
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuthConfigError> {
        let mut issuers: HashMap<_, _> = own.into_iter().map(|own| (own.name, Arc::new(own.issuer))).collect();
        for one in settings {
            let issuer = Issuer::load(one, &clock)?;
            match issuers.entry(one.issuer.clone()) {
                Entry::Occupied(name) => return Err(AuthConfigError::Twice(name.key().clone())),
                Entry::Vacant(name) => name.insert(Arc::new(issuer)),
            };
        }
        Ok(Self { issuers, clock, remembered: Cache::new(MAX_REMEMBERED) })
    }

    /// Fetches the keys that are behind URLs, so that the first token need not wait. What fails is logged and tried
    /// again when a token asks for it.
    pub async fn warm_up(&self) {
        for issuer in self.issuers.values() {
            // The fetch itself has logged why.
            let _ = issuer.edition().await;
        }
    }

    /// Verifies a bearer token.
    ///
    /// # Errors
    ///
    /// [`AuthError`] for every token but a valid one of a configured issuer.
    pub async fn authenticate(&self, token: &str) -> Result<Principal, AuthError> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(principal) = self.recall(&digest).await? {
            return Ok(principal);
        }
        let token = Compact::parse(token)?;
        let issuer = self.issuers.get(token.claims.issuer()?).ok_or(AuthError::Invalid("iss"))?;
        let edition = issuer.verify(&token).await?;
        let principal = Principal::verified(token.claims.into_identity(issuer.demands(), self.clock.now())?);
        let known = Remembered { principal: principal.clone(), issuer: Arc::clone(issuer), edition };
        self.remembered.insert(digest, known);
        Ok(principal)
    }

    async fn recall(&self, digest: &[u8; 32]) -> Result<Option<Principal>, AuthError> {
        let Some(known) = self.remembered.get(digest) else { return Ok(None) };
        if known.issuer.edition().await? == known.edition && !has_ended(&known.principal, self.clock.now()) {
            return Ok(Some(known.principal));
        }
        self.remembered.remove(digest);
        Ok(None)
    }
}

fn has_ended(principal: &Principal, now: Timestamp) -> bool {
    principal.expires_at.plus(LEEWAY) <= now
}
