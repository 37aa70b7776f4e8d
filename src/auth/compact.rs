//! A token taken apart (RFC 7515, compact serialization). Nothing here is believed yet: the signature is checked later,
//! by the issuer that the token names, with that issuer's algorithm.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;

use super::{AuthError, claims::Claims, json};

/// Longest token, in bytes.
pub(super) const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// Longest header, in bytes of its encoded form.
const MAX_HEADER_BYTES: usize = 4 * 1024;

/// Header members that bring a key along, ask for an extension or belong to encryption. Each one is a past hole
/// (CVE-2018-0114, CVE-2025-24976, CVE-2024-28122), so the token is refused rather than the member overlooked.
/// (`x5t` only names a certificate, brings none, and is sent by common providers: it is not read.)
const REFUSED_MEMBERS: [&str; 8] = ["jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "enc"];

/// A token in its parts, none of them verified.
pub(super) struct Compact<'a> {
    /// `alg` as the header states it; only ever compared with the issuer's.
    pub(super) algorithm: String,
    /// `kid`: which of the issuer's keys.
    pub(super) kid: Option<String>,
    /// What the payload claims.
    pub(super) claims: Claims,
    /// The bytes that the signature covers.
    pub(super) message: &'a str,
    /// The signature, still encoded.
    pub(super) signature: &'a str,
}

impl<'a> Compact<'a> {
    /// Takes a token apart.
    pub(super) fn parse(token: &'a str) -> Result<Self, AuthError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(AuthError::Invalid("longer than 8 KiB"));
        }
        let (message, signature) = token.rsplit_once('.').ok_or(AuthError::Invalid("not three parts"))?;
        let (header, payload) = message.split_once('.').ok_or(AuthError::Invalid("not three parts"))?;
        // Five parts would be an encrypted token (RFC 7516), which is never opened.
        if payload.contains('.') || signature.is_empty() {
            return Err(AuthError::Invalid("not three parts"));
        }
        let (algorithm, kid) = read_header(header)?;
        let claims = Claims::parse(&decode(payload).ok_or(AuthError::Invalid("payload is not base64url"))?)?;
        Ok(Self { algorithm, kid, claims, message, signature })
    }
}

fn read_header(encoded: &str) -> Result<(String, Option<String>), AuthError> {
    if encoded.len() > MAX_HEADER_BYTES {
        return Err(AuthError::Invalid("header longer than 4 KiB"));
    }
    let bytes = decode(encoded).ok_or(AuthError::Invalid("header is not base64url"))?;
    let mut header = json::object(&bytes).ok_or(AuthError::Invalid("header is not a strict JSON object"))?;
    if REFUSED_MEMBERS.iter().any(|member| header.contains_key(*member)) {
        return Err(AuthError::Invalid("header has a refused member"));
    }
    if !matches!(header.get("typ").map(Value::as_str), None | Some(Some("JWT" | "at+jwt"))) {
        return Err(AuthError::Invalid("typ"));
    }
    let Some(Value::String(algorithm)) = header.remove("alg") else { return Err(AuthError::Invalid("alg")) };
    match header.remove("kid") {
        None => Ok((algorithm, None)),
        Some(Value::String(kid)) => Ok((algorithm, Some(kid))),
        Some(_) => Err(AuthError::Invalid("kid")),
    }
}

/// Unpadded base64url in its one canonical form: the engine refuses padding, line ends and loose trailing bits.
fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}
