//! The keys of one issuer, each usable with that issuer's algorithm and no other. What a PEM file holds is read as a JWK
//! too, so that one function decides which keys are good enough.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{DecodingKey, crypto};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::{AuthError, issuer::Algorithm};

/// Most keys in a JWKS.
const MAX_KEYS: usize = 100;

/// Keys that verify, by name.
pub(super) struct KeySet {
    algorithm: Algorithm,
    keys: Vec<NamedKey>,
}

struct NamedKey {
    kid: Option<String>,
    key: DecodingKey,
}

/// The text is no JWK set, or holds more than [`MAX_KEYS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotAKeySet;

impl KeySet {
    /// The single key of an issuer that signs with a shared secret.
    pub(super) fn of_secret(secret: &[u8]) -> Self {
        let key = NamedKey { kid: None, key: DecodingKey::from_secret(secret) };
        Self { algorithm: Algorithm::HS256, keys: vec![key] }
    }

    /// The single key of a PEM file; `None` where it is no public key fit for the algorithm.
    pub(super) fn of_pem(pem: &[u8], algorithm: Algorithm) -> Option<Self> {
        let head = pem.trim_ascii_start();
        // A certificate or a private key would be read too, and mean something else than the operator thinks.
        if !head.starts_with(b"-----BEGIN PUBLIC KEY-----") && !head.starts_with(b"-----BEGIN RSA PUBLIC KEY-----") {
            return None;
        }
        let key = match algorithm {
            Algorithm::EdDSA => DecodingKey::from_ed_pem(pem),
            Algorithm::ES256 => DecodingKey::from_ec_pem(pem),
            Algorithm::RS256 => DecodingKey::from_rsa_pem(pem),
            Algorithm::HS256 => return None,
        };
        let jwk = jsonwebtoken::jwk::Jwk::from_decoding_key(&key.ok()?, None).ok()?;
        let jwk: Jwk = serde_json::from_value(serde_json::to_value(jwk).ok()?).ok()?;
        Some(Self { algorithm, keys: vec![jwk.into_key(algorithm)?] })
    }

    /// The own key of this server.
    pub(super) fn of_own(kid: &str, public_key: &[u8]) -> Self {
        let key = NamedKey { kid: Some(kid.to_owned()), key: DecodingKey::from_ed_der(public_key) };
        Self { algorithm: Algorithm::EdDSA, keys: vec![key] }
    }

    /// The keys of a JWK set (RFC 7517) that fit the algorithm; the others are left out. So is every name that two of
    /// them share, because the token would choose between them.
    pub(super) fn of_jwks(text: &[u8], algorithm: Algorithm) -> Result<Self, NotAKeySet> {
        let document: Document<'_> = serde_json::from_slice(text).map_err(|_| NotAKeySet)?;
        if document.keys.len() > MAX_KEYS {
            return Err(NotAKeySet);
        }
        let readable = document.keys.iter().filter_map(|raw| serde_json::from_str::<Jwk>(raw.get()).ok());
        let mut keys: Vec<NamedKey> = readable.filter_map(|jwk| jwk.into_key(algorithm)).collect();
        let names: Vec<Option<String>> = keys.iter().map(|named| named.kid.clone()).collect();
        keys.retain(|named| names.iter().filter(|name| **name == named.kid).count() == 1);
        Ok(Self { algorithm, keys })
    }

    /// Whether no key is left.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a token with this `kid` has a key here.
    pub(super) fn holds(&self, kid: Option<&str>) -> bool {
        self.find(kid).is_some()
    }

    /// Checks a signature with the key that `kid` names.
    pub(super) fn verify(&self, kid: Option<&str>, message: &str, signature: &str) -> Result<(), AuthError> {
        let key = self.find(kid).ok_or(AuthError::Invalid("kid"))?;
        match crypto::verify(signature, message.as_bytes(), key, self.algorithm.into()) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(AuthError::Invalid("signature")),
        }
    }

    /// A lone key needs no name in the token, and a lone key without a name answers to every name.
    fn find(&self, kid: Option<&str>) -> Option<&DecodingKey> {
        let found = match (self.keys.as_slice(), kid) {
            ([lone], None) => Some(lone),
            ([lone], Some(_)) if lone.kid.is_none() => Some(lone),
            (keys, Some(kid)) => keys.iter().find(|named| named.kid.as_deref() == Some(kid)),
            (_, None) => None,
        };
        found.map(|named| &named.key)
    }
}

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

/// The members of a JWK that decide; one of the wrong type makes the key unreadable.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    /// The private part. A key whose private part is published proves nothing.
    d: Option<IgnoredAny>,
}

impl Jwk {
    fn into_key(self, algorithm: Algorithm) -> Option<NamedKey> {
        if !self.may_verify(algorithm) {
            return None;
        }
        let key = match (algorithm, self.kty.as_str(), self.crv.as_deref()) {
            (Algorithm::EdDSA, "OKP", Some("Ed25519")) => DecodingKey::from_ed_der(&ed25519_point(self.x)?),
            (Algorithm::ES256, "EC", Some("P-256")) => {
                let (x, y) = (octets(self.x, 32..=32)?, octets(self.y, 32..=32)?);
                DecodingKey::from_ec_der(&[&[0x04], x.as_slice(), y.as_slice()].concat())
            }
            // 2,048 to 8,192 bits, and an exponent of 32 bits at most: what the verifier would refuse or be slow at.
            (Algorithm::RS256, "RSA", None) => {
                DecodingKey::from_rsa_raw_components(&octets(self.n, 256..=1_024)?, &octets(self.e, 1..=4)?)
            }
            _ => return None,
        };
        Some(NamedKey { kid: self.kid, key })
    }

    fn may_verify(&self, algorithm: Algorithm) -> bool {
        self.d.is_none()
            && self.usage.as_deref().is_none_or(|usage| usage == "sig")
            && self.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|one| one == "verify"))
            && self.alg.as_deref().is_none_or(|name| name == algorithm.as_str())
    }
}

/// A point that can tell signatures apart: for one of low order, a single signature would fit every message, and the
/// verifier does not look.
fn ed25519_point(x: Option<String>) -> Option<[u8; 32]> {
    let octets: [u8; 32] = octets(x, 32..=32)?.try_into().ok()?;
    let point = ed25519_dalek::VerifyingKey::from_bytes(&octets).ok()?;
    (!point.is_weak()).then_some(octets)
}

fn octets(text: Option<String>, length: std::ops::RangeInclusive<usize>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text?).ok().filter(|octets| length.contains(&octets.len()))
}
