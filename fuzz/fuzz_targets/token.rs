//! Tokens. The first byte says what the rest is: a whole token, or the payload, or the header and the payload of a token
//! that is signed as it should be. What is accepted must be what a second reader, written here, would accept.

#![no_main]

use std::{fs, sync::Arc, sync::LazyLock};

use aws_lc_rs::hmac;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;
use portcullis::{
    auth::{Authenticator, IssuerSettings},
    domain::{Clock, Principal, Timestamp},
};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

const SECRET: [u8; 32] = [7; 32];
const NOW: i64 = 1_776_686_400;
const LEEWAY: i64 = 5;

struct Noon;

impl Clock for Noon {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(NOW * 1_000_000)
    }
}

struct Fixture {
    authenticator: Authenticator,
    /// Trusts a secret that signs nothing: the fuzzer sees what is compared, and would soon hand back what was signed.
    stranger: Authenticator,
    runtime: Runtime,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().build().unwrap();
    Fixture { authenticator: trusting(SECRET), stranger: trusting([8; 32]), runtime }
});

fn trusting(secret_bytes: [u8; 32]) -> Authenticator {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, secret_bytes).unwrap();
    let settings: IssuerSettings = serde_json::from_value(
        json!({"issuer": "iss", "audience": ["vault"], "algorithm": "HS256", "secret_file": secret}),
    )
    .unwrap();
    Authenticator::new(None, &[settings], Arc::new(Noon)).unwrap()
}

fn accepted(by: &Authenticator, token: &str) -> Option<Principal> {
    FIXTURE.runtime.block_on(by.authenticate(token)).ok()
}

fn signed(header: &[u8], payload: &[u8]) -> String {
    let message = format!("{}.{}", BASE64_URL_SAFE_NO_PAD.encode(header), BASE64_URL_SAFE_NO_PAD.encode(payload));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &SECRET), message.as_bytes());
    format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    let Fixture { authenticator, stranger, .. } = &*FIXTURE;
    let (header, payload) = match kind % 3 {
        0 => return assert!(accepted(stranger, &String::from_utf8_lossy(bytes)).is_none(), "nobody signed this"),
        1 => (&br#"{"alg":"HS256"}"#[..], bytes),
        _ => bytes.split_at(bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len())),
    };
    let token = signed(header, payload);
    let Some(principal) = accepted(authenticator, &token) else { return };
    assert!(accepted(stranger, &token).is_none(), "another secret");
    let header: Value = serde_json::from_slice(header).expect("an accepted header is JSON");
    assert_eq!(header["alg"], "HS256");
    for member in ["jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "enc"] {
        assert!(header.get(member).is_none(), "{member}");
    }
    let claims: Value = serde_json::from_slice(payload).expect("an accepted payload is JSON");
    check(&claims, &principal);
    // With one character of its signature changed it is nobody's.
    let mut forged = token.into_bytes();
    let last = forged.len() - 2;
    forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
    assert!(accepted(authenticator, &String::from_utf8(forged).unwrap()).is_none());
});

fn check(claims: &Value, principal: &Principal) {
    assert_eq!(claims["iss"], "iss");
    let audiences = match &claims["aud"] {
        Value::Array(many) => many.clone(),
        one => vec![one.clone()],
    };
    assert!(audiences.iter().all(Value::is_string) && audiences.contains(&json!("vault")));
    assert!(claims["exp"].as_i64().is_some_and(|end| end + LEEWAY > NOW));
    for past in ["iat", "nbf", "auth_time"] {
        assert!(claims.get(past).is_none_or(|at| at.as_i64().is_some_and(|at| (0..=NOW + LEEWAY).contains(&at))));
    }
    assert_eq!(claims["sub"].as_str(), Some(&*principal.id));
    assert!(principal.id.starts_with("user:") || principal.id.starts_with("sa:"));
    assert_eq!(principal.tenant.as_str(), claims.get("tenant_id").map_or("default", |name| name.as_str().unwrap()));
    let said = |scope: &str| match (claims.get("scope"), claims.get("scopes")) {
        (Some(words), None) => words.as_str().unwrap().split(' ').any(|word| word == scope),
        (None, Some(words)) => words.as_array().unwrap().iter().any(|word| word == scope),
        (None, None) => false,
        (Some(_), Some(_)) => panic!("two statements of scopes"),
    };
    for scope in principal.scopes.words() {
        assert!(said(scope), "{scope} was never said");
    }
}
