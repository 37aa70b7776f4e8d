//! The server's own issuer: tokens for operators and first steps, signed with a key that derives from the root key.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    EncodingKey, Header,
    jwk::{AlgorithmParameters, Jwk, ThumbprintHash},
};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    claims::{Demands, MAX_GROUPS, is_name},
    compact::MAX_TOKEN_BYTES,
    issuer::{Algorithm, Issuer},
    keys::KeySet,
};
use crate::domain::{IdentityKind, Scopes, TenantId, Timestamp};

/// What stands before the seed of an Ed25519 key in PKCS #8 (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
/// Longest life of a token.
const MAX_LIFETIME: Duration = Duration::from_hours(366 * 24);

/// Issues tokens in the server's own name.
pub struct TokenIssuer {
    key: EncodingKey,
    public_key: Vec<u8>,
    kid: String,
    issuer: String,
    audience: String,
}

/// What a verifier must know to accept the server's own tokens.
pub struct OwnIssuer {
    pub(super) name: String,
    pub(super) issuer: Issuer,
}

/// Whom a token is for, and what it allows.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    /// The typed subject: `user:…` or `sa:…`.
    pub subject: String,
    /// The tenant.
    pub tenant: TenantId,
    /// What the bearer may ask for.
    pub scopes: Scopes,
    /// The groups of the bearer.
    pub groups: Vec<String>,
    /// Whether a second factor was verified just now.
    pub mfa: bool,
    /// How long the token lives: 1 second to 366 days.
    pub lifetime: Duration,
}

/// Why no token is issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The seed makes no key.
    #[error("the seed makes no Ed25519 key")]
    Key,
    /// The issuer's name or the audience is empty.
    #[error("the issuer and the audience must not be empty")]
    Name,
    /// A subject of no known kind.
    #[error("the subject must be user:… or sa:…")]
    Subject,
    /// Too many groups, or one that is no name.
    #[error("there may be 200 groups, each of 1 to 200 bytes")]
    Groups,
    /// A lifetime that is too short or too long.
    #[error("a token lives 1 second to 366 days")]
    Lifetime,
    /// A token's id that is empty or too long.
    #[error("the token's id must have 1 to 200 bytes")]
    TokenId,
    /// The token would be longer than what a verifier reads.
    #[error("the token would be longer than 8 KiB")]
    TooLong,
    /// The signature failed.
    #[error("the token could not be signed")]
    Signature,
}

impl TokenIssuer {
    /// Makes the issuer from the seed of its Ed25519 key.
    ///
    /// # Errors
    ///
    /// [`TokenError::Name`] for an empty name, [`TokenError::Key`] where the seed makes no key.
    pub fn new(seed: &[u8; 32], issuer: String, audience: String) -> Result<Self, TokenError> {
        if issuer.is_empty() || audience.is_empty() {
            return Err(TokenError::Name);
        }
        let pkcs8 = Zeroizing::new([&PKCS8_PREFIX, seed.as_slice()].concat());
        let key = EncodingKey::from_ed_der(&pkcs8);
        let jwk = Jwk::from_encoding_key(&key, Algorithm::EdDSA.into()).map_err(|_| TokenError::Key)?;
        let kid = jwk.thumbprint(ThumbprintHash::SHA256).map_err(|_| TokenError::Key)?;
        let AlgorithmParameters::OctetKeyPair(point) = &jwk.algorithm else { return Err(TokenError::Key) };
        let public_key = URL_SAFE_NO_PAD.decode(&point.x).map_err(|_| TokenError::Key)?;
        Ok(Self { key, public_key, kid, issuer, audience })
    }

    /// Issues a token. The instant and the token's id (random, from the caller) are passed in.
    ///
    /// # Errors
    ///
    /// [`TokenError`] for every request whose token [`super::Authenticator`] would refuse.
    pub fn issue(&self, request: &TokenRequest, now: Timestamp, jti: &str) -> Result<String, TokenError> {
        let claims = self.claims(request, now, jti)?;
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::EdDSA.into()) };
        let token = jsonwebtoken::encode(&header, &claims, &self.key).map_err(|_| TokenError::Signature)?;
        if token.len() > MAX_TOKEN_BYTES { Err(TokenError::TooLong) } else { Ok(token) }
    }

    /// What an [`super::Authenticator`] needs to accept these tokens.
    #[must_use]
    pub fn verifier(&self) -> OwnIssuer {
        let demands = Demands { audience: vec![self.audience.clone()], tenant: None };
        let keys = KeySet::of_own(&self.kid, &self.public_key);
        OwnIssuer { name: self.issuer.clone(), issuer: Issuer::with_keys(Algorithm::EdDSA, demands, keys) }
    }

    fn claims(
        &self,
        request: &TokenRequest,
        now: Timestamp,
        jti: &str,
    ) -> Result<BTreeMap<&'static str, Value>, TokenError> {
        request.check()?;
        if !is_name(jti) {
            return Err(TokenError::TokenId);
        }
        let issued = now.unix_seconds();
        let mut claims = BTreeMap::from([
            ("iss", json!(self.issuer)),
            ("aud", json!(self.audience)),
            ("sub", json!(request.subject)),
            ("iat", json!(issued)),
            ("nbf", json!(issued)),
            ("exp", json!(now.plus(request.lifetime).unix_seconds())),
            ("jti", json!(jti)),
            ("tenant_id", json!(request.tenant)),
            ("scope", json!(request.scopes.words().collect::<Vec<_>>().join(" "))),
            ("groups", json!(request.groups)),
        ]);
        if request.mfa {
            claims.extend([("amr", json!(["mfa"])), ("auth_time", json!(issued))]);
        }
        Ok(claims)
    }
}

impl TokenRequest {
    fn check(&self) -> Result<(), TokenError> {
        if IdentityKind::of_subject(&self.subject).is_none() {
            return Err(TokenError::Subject);
        }
        if self.groups.len() > MAX_GROUPS || !self.groups.iter().all(|group| is_name(group)) {
            return Err(TokenError::Groups);
        }
        if self.lifetime < Duration::from_secs(1) || self.lifetime > MAX_LIFETIME {
            return Err(TokenError::Lifetime);
        }
        Ok(())
    }
}
