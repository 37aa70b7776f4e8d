//! The server's own tokens.

use super::*;
use crate::{
    auth::{TokenError, TokenIssuer, TokenRequest},
    domain::{Scope, Scopes, TenantId},
};

const SEED: [u8; 32] = [7; 32];

fn issuer(seed: &[u8; 32]) -> TokenIssuer {
    TokenIssuer::new(seed, "portcullis".into(), "portcullis".into()).unwrap()
}

fn request() -> TokenRequest {
    TokenRequest {
        subject: "user:ada".into(),
        tenant: TenantId::parse("acme").unwrap(),
        scopes: Scopes::from_iter([Scope::SecretsRead, Scope::AuditRead]),
        groups: vec!["ops".into()],
        mfa: true,
        lifetime: Duration::from_mins(15),
    }
}

#[tokio::test]
async fn an_own_token_comes_back_as_it_was_asked_for() {
    let clock = TestClock::new();
    let issuer = issuer(&SEED);
    let token = issuer.issue(&request(), clock.now(), "t-1").unwrap();
    assert_eq!(token, issuer.issue(&request(), clock.now(), "t-1").unwrap(), "nothing is taken from the air");
    let authenticator = Authenticator::new(Some(issuer.verifier()), &[], clock.clone()).unwrap();
    let principal = authenticator.authenticate(&token).await.unwrap();
    assert_eq!((&*principal.id, principal.tenant.as_str()), ("user:ada", "acme"));
    assert_eq!(principal.scopes, request().scopes);
    assert_eq!(principal.groups, ["ops"]);
    assert_eq!(principal.mfa_verified_at().unwrap().unix_seconds(), NOW);
    assert_eq!(principal.expires_at.unix_seconds(), NOW + 900);
    assert_eq!(principal.claims["jti"], json!("t-1"));
    let plain = issuer.issue(&TokenRequest { mfa: false, ..request() }, clock.now(), "t-2").unwrap();
    assert_eq!(authenticator.authenticate(&plain).await.unwrap().mfa_verified_at(), None);
    clock.advance(Duration::from_secs(905));
    assert_eq!(refusal(&authenticator, &token).await, Some(AuthError::Expired));
}

#[tokio::test]
async fn another_root_key_makes_other_tokens() {
    let clock = TestClock::new();
    let authenticator = Authenticator::new(Some(issuer(&SEED).verifier()), &[], clock.clone()).unwrap();
    let foreign = issuer(&[8; 32]).issue(&request(), clock.now(), "t").unwrap();
    assert_eq!(refusal(&authenticator, &foreign).await, Some(AuthError::Invalid("kid")));
    let others = TokenIssuer::new(&SEED, "portcullis".into(), "another-vault".into()).unwrap();
    let misdirected = others.issue(&request(), clock.now(), "t").unwrap();
    assert_eq!(refusal(&authenticator, &misdirected).await, Some(AuthError::Invalid("aud")));
}

#[tokio::test]
async fn a_configured_issuer_cannot_speak_for_the_server_nor_take_its_name() {
    let clock = TestClock::new();
    let pem = file(ED.pem());
    let configured = |name: &str| {
        settings(json!({
            "issuer": name, "audience": ["portcullis"], "algorithm": "EdDSA", "public_key_file": pem.path(),
        }))
    };
    let own = || Some(issuer(&SEED).verifier());
    assert!(Authenticator::new(own(), &[configured("portcullis")], clock.clone()).is_err());
    let authenticator = Authenticator::new(own(), &[configured(ISSUER)], clock.clone()).unwrap();
    let forged = signed(&ED, &header(Algorithm::EdDSA), &claims_with(&json!({"iss": "portcullis"})));
    assert_eq!(refusal(&authenticator, &forged).await, Some(AuthError::Invalid("signature")));
    assert_eq!(refusal(&authenticator, &good(&ED)).await, None);
}

#[test]
fn what_would_be_refused_is_not_issued() {
    let now = TestClock::new().now();
    let own = issuer(&SEED);
    let groups = |count: usize, length: usize| TokenRequest { groups: vec!["g".repeat(length); count], ..request() };
    let lifetime = |lifetime| TokenRequest { lifetime, ..request() };
    let table = [
        (TokenRequest { subject: "ada".into(), ..request() }, TokenError::Subject),
        (groups(201, 1), TokenError::Groups),
        (groups(1, 201), TokenError::Groups),
        (groups(1, 0), TokenError::Groups),
        (groups(200, 200), TokenError::TooLong),
        (lifetime(Duration::ZERO), TokenError::Lifetime),
        (lifetime(Duration::from_millis(999)), TokenError::Lifetime),
        (lifetime(Duration::from_secs(366 * 86_400 + 1)), TokenError::Lifetime),
    ];
    for (request, error) in table {
        assert_eq!(own.issue(&request, now, "t").err(), Some(error));
    }
    assert!(own.issue(&lifetime(Duration::from_hours(366 * 24)), now, "t").is_ok());
    for jti in ["", "a\n", &"j".repeat(201)] {
        assert_eq!(own.issue(&request(), now, jti).err(), Some(TokenError::TokenId));
    }
    assert_eq!(TokenIssuer::new(&SEED, String::new(), "a".into()).err(), Some(TokenError::Name));
    assert_eq!(TokenIssuer::new(&SEED, "a".into(), String::new()).err(), Some(TokenError::Name));
}
