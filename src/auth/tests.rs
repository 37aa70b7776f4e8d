//! Fixtures: a clock to turn, keys made at run time, tokens written by hand.

mod forged;
mod remote;
mod settings;
mod tokens;

use std::{
    io::Write,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};

use super::{Algorithm, AuthError, Authenticator, IssuerSettings};
use crate::domain::{Clock, Timestamp};

const NOW: i64 = 1_800_000_000;
const ISSUER: &str = "https://issuer.example";

struct TestClock(AtomicI64);

impl TestClock {
    fn new() -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(NOW * 1_000_000)))
    }

    fn advance(&self, span: Duration) {
        self.0.fetch_add(i64::try_from(span.as_micros()).unwrap(), Ordering::SeqCst);
    }

    fn set(&self, seconds: i64) {
        self.0.store(seconds * 1_000_000, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }
}

enum Key {
    Ed(Ed25519KeyPair),
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
    Secret(Vec<u8>),
}

static ED: LazyLock<Key> = LazyLock::new(|| Key::generate(Algorithm::EdDSA));
static EC: LazyLock<Key> = LazyLock::new(|| Key::generate(Algorithm::ES256));
static RSA: LazyLock<Key> = LazyLock::new(|| Key::generate(Algorithm::RS256));
static SECRET: LazyLock<Key> = LazyLock::new(|| Key::generate(Algorithm::HS256));

impl Key {
    fn generate(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::EdDSA => Self::Ed(Ed25519KeyPair::generate().unwrap()),
            Algorithm::ES256 => Self::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()),
            Algorithm::RS256 => Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
            Algorithm::HS256 => {
                Self::Secret(aws_lc_rs::rand::generate::<[u8; 32]>(&SystemRandom::new()).unwrap().expose().to_vec())
            }
        }
    }

    fn algorithm(&self) -> Algorithm {
        match self {
            Self::Ed(_) => Algorithm::EdDSA,
            Self::Ec(_) => Algorithm::ES256,
            Self::Rsa(_) => Algorithm::RS256,
            Self::Secret(_) => Algorithm::HS256,
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Ed(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Ec(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Self::Secret(secret) => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec(),
        }
    }

    /// The public key as it stands in the certificate world.
    fn der(&self) -> Vec<u8> {
        let der: PublicKeyX509Der<'_> = match self {
            Self::Ed(pair) => pair.public_key().as_der().unwrap(),
            Self::Ec(pair) => pair.public_key().as_der().unwrap(),
            Self::Rsa(pair) => pair.public_key().as_der().unwrap(),
            Self::Secret(_) => unreachable!("a secret has no public key"),
        };
        der.as_ref().to_vec()
    }

    /// The public key without a wrapping.
    fn raw(&self) -> Vec<u8> {
        match self {
            Self::Ed(pair) => pair.public_key().as_ref().to_vec(),
            Self::Ec(pair) => pair.public_key().as_ref().to_vec(),
            Self::Rsa(pair) => pair.public_key().as_ref().to_vec(),
            Self::Secret(_) => unreachable!("a secret has no public key"),
        }
    }

    fn pem(&self) -> String {
        let text = STANDARD.encode(self.der());
        let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
    }

    fn jwk(&self, kid: &str) -> Value {
        match self {
            Self::Ed(_) => json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": b64(self.raw())}),
            Self::Ec(_) => {
                let raw = self.raw();
                json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": b64(&raw[1..33]), "y": b64(&raw[33..])})
            }
            Self::Rsa(pair) => {
                let (n, e) = (pair.public_key().modulus(), pair.public_key().exponent());
                let (n, e) = (n.big_endian_without_leading_zero(), e.big_endian_without_leading_zero());
                json!({"kty": "RSA", "kid": kid, "n": b64(n), "e": b64(e)})
            }
            Self::Secret(secret) => json!({"kty": "oct", "kid": kid, "k": b64(secret)}),
        }
    }
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A token of just this header and payload, to the byte.
fn signed(key: &Key, header: &str, payload: &str) -> String {
    let message = format!("{}.{}", b64(header), b64(payload));
    let signature = b64(key.sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn header(algorithm: Algorithm) -> String {
    json!({"alg": algorithm.as_str(), "typ": "JWT"}).to_string()
}

fn named(algorithm: Algorithm, kid: &str) -> String {
    json!({"alg": algorithm.as_str(), "kid": kid}).to_string()
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "portcullis", "sub": "user:ada", "exp": NOW + 300})
}

/// The usual claims with some of them replaced; `null` takes one away.
fn claims_with(changes: &Value) -> String {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims.to_string()
}

fn good(key: &Key) -> String {
    signed(key, &header(key.algorithm()), &claims().to_string())
}

fn file(content: impl AsRef<[u8]>) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_ref()).unwrap();
    file
}

fn settings(value: Value) -> IssuerSettings {
    serde_json::from_value(value).unwrap()
}

/// An authenticator with one issuer, which signs with `key`.
fn trusting(key: &Key, clock: &Arc<TestClock>) -> Authenticator {
    trusting_with(key, clock, &json!({}))
}

fn trusting_with(key: &Key, clock: &Arc<TestClock>, more: &Value) -> Authenticator {
    let (source, content) = match key {
        Key::Secret(secret) => ("secret_file", secret.clone()),
        _ => ("public_key_file", key.pem().into_bytes()),
    };
    let file = file(content);
    let mut value = json!({
        "issuer": ISSUER, "audience": ["portcullis"], "algorithm": key.algorithm().as_str(), source: file.path(),
    });
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Authenticator::new(None, &[settings(value)], clock.clone()).unwrap()
}

async fn refusal(authenticator: &Authenticator, token: &str) -> Option<AuthError> {
    authenticator.authenticate(token).await.err()
}
