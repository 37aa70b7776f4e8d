//! Tokens that must not open anything, over a real socket: refused with the right word, recorded without an identity.
//! What makes a token wrong is tested case by case beside `src/auth`; here it is shown that the API stands behind it.

use std::{fs, time::SystemTime};

use aws_lc_rs::{
    hmac,
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    guests::Directory,
    raw::{RawAnswer, exchange},
    support::{Options, TestServer},
};

const SECRET: [u8; 32] = [7; 32];
const SYMMETRIC: &str = "https://symmetric.example";
const ASYMMETRIC: &str = "https://asymmetric.example";

/// A server that trusts two issuers beside its own, and what they sign with.
struct Fixture {
    server: TestServer,
    pair: Ed25519KeyPair,
    pem: String,
    _files: (TempDir, Directory),
}

impl Fixture {
    async fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let pair = Ed25519KeyPair::generate().unwrap();
        // SubjectPublicKeyInfo of an Ed25519 key (RFC 8410).
        let der = [&b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00"[..], pair.public_key().as_ref()].concat();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
        let (public, secret) = (files.path().join("public.pem"), files.path().join("secret"));
        fs::write(&public, &pem).unwrap();
        fs::write(&secret, SECRET).unwrap();
        let config = format!(
            "[[auth.issuers]]\nissuer = {SYMMETRIC:?}\naudience = [\"vault\"]\nalgorithm = \"HS256\"\nsecret_file = \
             {secret:?}\n[[auth.issuers]]\nissuer = {ASYMMETRIC:?}\naudience = [\"vault\"]\nalgorithm = \
             \"EdDSA\"\npublic_key_file = {public:?}\n"
        );
        let policies = Directory::new().with("allow", "deadline = \"5s\"");
        let options = Options { policies: Some(policies.path()), config, ..Options::default() };
        let server = TestServer::start(options).await;
        Self { server, pair, pem, _files: (files, policies) }
    }

    /// Asks for a secret with this value of the header `Authorization`.
    async fn ask(&self, authorization: &str) -> RawAnswer {
        let head = format!(
            "GET /v1/secrets/a HTTP/1.1\r\nHost: vault\r\nConnection: close\r\nAuthorization: {authorization}\r\n\r\n"
        );
        exchange(&self.server, head.as_bytes()).await
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// Claims that are in order, but for these changes; a change to `null` takes the claim away.
fn claims(issuer: &str, changes: &Value) -> String {
    let mut claims = json!({
        "iss": issuer, "aud": "vault", "sub": "user:ada", "exp": now() + 300, "scope": "secrets:read",
    });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims.to_string()
}

fn signed(header: &str, claims: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn hs256(secret: &[u8]) -> impl Fn(&[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    move |message| hmac::sign(&key, message).as_ref().to_vec()
}

fn symmetric(changes: &Value) -> String {
    signed(r#"{"alg":"HS256"}"#, &claims(SYMMETRIC, changes), hs256(&SECRET))
}

/// Every wrong token with what is wrong with it, and the code that it must meet.
fn wrong_tokens(fixture: &Fixture) -> Vec<(String, String, &'static str)> {
    let ed = |message: &[u8]| fixture.pair.sign(message).as_ref().to_vec();
    let good = claims(SYMMETRIC, &json!({}));
    let good_ed = claims(ASYMMETRIC, &json!({}));
    let right = symmetric(&json!({}));
    let mut table: Vec<(String, String, &'static str)> = Vec::new();
    let mut invalid = |what: &str, token: String| table.push((what.to_owned(), token, "token_invalid"));

    for name in ["none", "None", "NONE", ""] {
        let header = json!({ "alg": name }).to_string();
        let unsigned = signed(&header, &good, |_| Vec::new());
        invalid(&format!("unsigned, alg {name:?}"), unsigned.trim_end_matches('.').to_owned());
        invalid(&format!("empty signature, alg {name:?}"), unsigned);
        invalid(&format!("signed, alg {name:?}"), signed(&header, &good, hs256(&SECRET)));
    }
    invalid("public key as secret", signed(r#"{"alg":"HS256"}"#, &good_ed, hs256(fixture.pem.as_bytes())));
    let raw = fixture.pair.public_key().as_ref();
    invalid("raw public key as secret", signed(r#"{"alg":"HS256"}"#, &good_ed, hs256(raw)));
    invalid("EdDSA at an HS256 issuer", signed(r#"{"alg":"EdDSA"}"#, &good, ed));
    invalid("HS384 named", signed(r#"{"alg":"HS384"}"#, &good, hs256(&SECRET)));
    invalid("another secret", signed(r#"{"alg":"HS256"}"#, &good, hs256(&[8; 32])));
    invalid("the empty secret", signed(r#"{"alg":"HS256"}"#, &good, hs256(&[])));
    invalid("the other issuer's key", signed(r#"{"alg":"HS256"}"#, &good_ed, hs256(&SECRET)));
    invalid("a signature cut short", right[..right.len() - 2].to_owned());
    invalid("a changed payload", right.replacen('.', ".e", 1));
    invalid("four parts", format!("{right}.x"));
    invalid("five parts", format!("{right}.x.y"));
    invalid("two parts", right.rsplit_once('.').unwrap().0.to_owned());
    invalid("padding", format!("{right}="));
    invalid("no token but text", "hunter2".to_owned());
    invalid("dots alone", "..".to_owned());
    let jwk = json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode([8; 32])});
    for (name, value) in [
        ("jwk", jwk),
        ("jku", json!("https://evil.example/jwks")),
        ("x5u", json!("https://evil.example/cert")),
        ("x5c", json!(["MII"])),
        ("crit", json!(["exp"])),
        ("b64", json!(false)),
        ("zip", json!("DEF")),
        ("enc", json!("A256GCM")),
    ] {
        let header = json!({"alg": "HS256", (name): value}).to_string();
        invalid(&format!("header {name}"), signed(&header, &good, hs256(&SECRET)));
        invalid(&format!("header {name}, its own key"), signed(&header, &good, hs256(&[8; 32])));
    }
    for header in [r#"{"alg":"HS256","alg":"none"}"#, r#"{"alg":["HS256"]}"#, "[]", "", r#"{"typ":"JWT"}"#] {
        invalid(&format!("header {header}"), signed(header, &good, hs256(&SECRET)));
    }
    for payload in ["", "[]", "null", "{", &good.replacen("\"aud\"", "\"aud\":\"vault\",\"aud\"", 1), "\u{feff}{}"] {
        invalid(&format!("payload {payload:.20}"), signed(r#"{"alg":"HS256"}"#, payload, hs256(&SECRET)));
    }
    for (name, value) in wrong_claims() {
        invalid(&format!("{name}: {value:.60}"), symmetric(&json!({ (name): value })));
    }
    invalid("9 KiB", symmetric(&json!({"filler": "x".repeat(9 * 1024)})));
    invalid(
        "a header of 5 KiB",
        signed(&json!({"alg": "HS256", "x": "y".repeat(5_000)}).to_string(), &good, hs256(&SECRET)),
    );
    for ago in [6, 60, 3_600, now() - 1] {
        let token = symmetric(&json!({"exp": now() - ago}));
        table.push((format!("expired {ago} s ago"), token, "token_expired"));
    }
    table
}

/// Claims with a value or of a type that makes the token one of nobody.
fn wrong_claims() -> Vec<(&'static str, Value)> {
    let odd = [json!(true), json!(1.5), json!([]), json!({}), json!("")];
    let mut wrong = Vec::new();
    for name in ["iss", "sub", "exp", "aud", "nbf", "iat", "auth_time", "tenant_id", "jti"] {
        wrong.extend(odd.iter().map(|value| (name, value.clone())));
    }
    wrong.extend(["iss", "aud", "sub", "exp"].map(|name| (name, Value::Null)));
    let texts = [json!("1999999999"), json!(-1), json!(1e300), json!(u64::MAX), json!("NaN"), json!("Infinity")];
    for name in ["exp", "nbf", "iat", "auth_time"] {
        wrong.extend(texts.iter().map(|value| (name, value.clone())));
    }
    wrong.extend([
        ("iss", json!("https://symmetric.example/")),
        ("iss", json!("https://SYMMETRIC.example")),
        ("iss", json!("portcullis")),
        ("iss", json!(["https://symmetric.example"])),
        ("aud", json!("other")),
        ("aud", json!("Vault")),
        ("aud", json!("vault ")),
        ("aud", json!(["other"])),
        ("aud", json!(["vault", 1])),
        ("sub", json!("ada")),
        ("sub", json!("root")),
        ("sub", json!("user:")),
        ("sub", json!("User:ada")),
        ("sub", json!("user:a da")),
        ("sub", json!("user:a\u{0}da")),
        ("sub", json!(["user:ada"])),
        ("nbf", json!(now() + 3_600)),
        ("iat", json!(now() + 3_600)),
        ("auth_time", json!(now() + 3_600)),
        ("tenant_id", json!("UPPER")),
        ("tenant_id", json!("../default")),
        ("scope", json!(["secrets:read"])),
        ("scopes", json!("secrets:read")),
        ("scopes", json!(["secrets:read"])),
        ("groups", json!("admins")),
        ("groups", json!([1])),
        ("groups", json!({"admins": true})),
        ("amr", json!("mfa")),
        ("amr", json!([["mfa"]])),
    ]);
    wrong
}

#[tokio::test]
async fn a_wrong_token_is_401_with_the_right_word_and_recorded_without_identity() {
    let fixture = Fixture::new().await;
    let tokens = wrong_tokens(&fixture);
    assert!(tokens.len() > 150, "{}", tokens.len());
    for (what, token, code) in &tokens {
        let answer = fixture.ask(&format!("Bearer {token}")).await;
        assert_eq!(answer.outcome(), (401, (*code).to_owned()), "{what}");
        assert!(answer.head.contains("\r\nwww-authenticate: bearer"), "{what}: {}", answer.head);
        assert!(!answer.head.contains("x-policy-generation"), "{what}: nobody is told what is in force");
        let body = String::from_utf8(answer.body).unwrap();
        assert!(token.len() < 8 || !body.contains(token.as_str()), "{what}");
    }
    let events = fixture.server.audit("&success=false").await;
    assert_eq!(events.len(), tokens.len());
    for (event, (what, _, code)) in events.iter().rev().zip(&tokens) {
        assert_eq!(event["code"], *code, "{what}");
        assert_eq!(event["secret_path"], "a", "what was asked for is known, by whom is not");
        for unknown in ["identity_id", "identity_type", "tenant_id", "decision"] {
            assert_eq!(event[unknown], Value::Null, "{what}: {event}");
        }
    }
    for (issuer, token) in [
        ("symmetric", symmetric(&json!({"exp": now() - 2}))),
        (
            "asymmetric",
            signed(r#"{"alg":"EdDSA"}"#, &claims(ASYMMETRIC, &json!({})), |m| fixture.pair.sign(m).as_ref().to_vec()),
        ),
    ] {
        let answer = fixture.ask(&format!("Bearer {token}")).await;
        assert_eq!(answer.outcome(), (404, "secret_not_found".to_owned()), "{issuer}: the server is well");
    }
}

#[tokio::test]
async fn an_authorization_that_is_no_bearer_token_is_401() {
    let fixture = Fixture::new().await;
    let good = symmetric(&json!({}));
    let table = [
        (String::new(), "token_invalid"),
        ("Bearer".to_owned(), "token_invalid"),
        ("Bearer ".to_owned(), "token_invalid"),
        (good.clone(), "token_invalid"),
        (format!("Basic {good}"), "token_invalid"),
        (format!("Bearer: {good}"), "token_invalid"),
        (format!("Bearer\t{good}"), "token_invalid"),
        (format!("Bearer {good}, Bearer {good}"), "token_invalid"),
        (format!("Bearer {good} trailing"), "token_invalid"),
        (format!("Bearer \"{good}\""), "token_invalid"),
        ("Bearer \u{e4}".to_owned(), "token_invalid"),
    ];
    for (authorization, code) in table {
        let answer = fixture.ask(&authorization).await;
        assert_eq!(answer.outcome(), (401, code.to_owned()), "{authorization:?}");
        assert!(answer.head.contains("\r\nwww-authenticate: bearer"));
    }
    let bare = b"GET /v1/secrets/a HTTP/1.1\r\nHost: vault\r\nConnection: close\r\n\r\n";
    assert_eq!(exchange(&fixture.server, bare).await.outcome(), (401, "authentication_required".to_owned()));
    for header in ["X-Vault-Token", "X-Authorization", "Cookie", "Proxy-Authorization", "X-Forwarded-User"] {
        let head = format!(
            "GET /v1/secrets/a HTTP/1.1\r\nHost: vault\r\nConnection: close\r\n{header}: Bearer {good}\r\n\r\n"
        );
        let answer = exchange(&fixture.server, head.as_bytes()).await;
        assert_eq!(answer.outcome(), (401, "authentication_required".to_owned()), "{header}");
    }
    for spelling in ["Bearer", "bearer", "BEARER"] {
        assert_eq!(fixture.ask(&format!("{spelling} {good}")).await.status, 404, "{spelling}");
    }
}

/// Every address that wants a token, without one and with a wrong one.
#[tokio::test]
async fn every_route_but_the_open_ones_wants_a_token() {
    let fixture = Fixture::new().await;
    let expired = symmetric(&json!({"exp": now() - 60}));
    let routes = [
        ("GET", "/v1/secrets"),
        ("GET", "/v1/secrets/a"),
        ("PUT", "/v1/secrets/a"),
        ("DELETE", "/v1/secrets/a"),
        ("GET", "/v1/secrets/../a"),
        ("POST", "/v1/secrets/batch"),
        ("POST", "/v1/secrets/batch/metadata"),
        ("GET", "/v1/metadata/a"),
        ("PATCH", "/v1/metadata/a"),
        ("GET", "/v1/versions/a"),
        ("POST", "/v1/restore/a"),
        ("POST", "/v1/rollback/a"),
        ("POST", "/v1/destroy/a"),
        ("GET", "/v1/policies"),
        ("GET", "/v1/policies/allow"),
        ("GET", "/v1/audit/logs"),
        ("GET", "/v1/auth/whoami"),
    ];
    for (method, target) in routes {
        for (authorization, code) in [
            (String::new(), "authentication_required"),
            (format!("Authorization: Bearer {expired}\r\n"), "token_expired"),
        ] {
            let head = format!("{method} {target} HTTP/1.1\r\nHost: vault\r\nConnection: close\r\n{authorization}\r\n");
            let outcome = exchange(&fixture.server, head.as_bytes()).await.outcome();
            assert_eq!(outcome, (401, code.to_owned()), "{method} {target}");
        }
    }
    let text = fixture.server.http.get(format!("{}/v1/metrics", fixture.server.url)).send().await.unwrap().text().await;
    assert!(text.unwrap().contains(&format!("portcullis_failed_authentications_total {}", routes.len() * 2)));
}
