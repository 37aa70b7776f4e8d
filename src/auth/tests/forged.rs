//! Tokens that must not be accepted, and the nearest ones that must.

use proptest::prelude::*;

use super::*;
use crate::domain::{IdentityKind, Scope};

#[tokio::test]
async fn accepts_every_algorithm() {
    let clock = TestClock::new();
    for key in [&*ED, &*EC, &*RSA, &*SECRET] {
        let principal = trusting(key, &clock).authenticate(&good(key)).await.unwrap();
        assert_eq!((&*principal.id, principal.kind), ("user:ada", IdentityKind::User));
        assert_eq!(principal.tenant.as_str(), "default");
        assert_eq!(principal.expires_at.unix_seconds(), NOW + 300);
        assert_eq!(principal.claims, claims());
    }
}

#[tokio::test]
async fn reads_every_claim() {
    let payload = claims_with(&json!({
        "sub": "sa:checkout", "tenant_id": "acme", "scope": "secrets:read other:thing audit:read", "groups": ["a", "b"],
        "amr": ["pwd", "otp"], "auth_time": NOW - 60, "iat": NOW - 50, "nbf": NOW - 50, "jti": "t-1", "email": [1],
    }));
    let clock = TestClock::new();
    let token = signed(&ED, &header(Algorithm::EdDSA), &payload);
    let principal = trusting(&ED, &clock).authenticate(&token).await.unwrap();
    assert_eq!(principal.kind, IdentityKind::ServiceAccount);
    assert_eq!(principal.tenant.as_str(), "acme");
    assert_eq!(principal.scopes.words().collect::<Vec<_>>(), ["secrets:read", "audit:read"]);
    assert!(!principal.scopes.permit(Scope::SecretsWrite));
    assert_eq!(principal.groups, ["a", "b"]);
    assert_eq!(principal.mfa_verified_at().unwrap().unix_seconds(), NOW - 60);
    assert_eq!(principal.claims["email"], json!([1]));
}

/// Every algorithm's issuer × every header algorithm × every key that an attacker can have.
#[tokio::test]
async fn the_header_chooses_no_algorithm() {
    let clock = TestClock::new();
    let names = [
        "none",
        "None",
        "NONE",
        "nOnE",
        "",
        "HS256",
        "HS384",
        "HS512",
        "RS256",
        "RS384",
        "RS512",
        "PS256",
        "ES256",
        "ES384",
        "ES256K",
        "EdDSA",
        "Ed25519",
        "eddsa",
        "hs256",
        "RSA-OAEP",
        "dir",
        "PBES2-HS256+A128KW",
        "HS256 ",
    ];
    let own: [&Key; 4] = [&ED, &EC, &RSA, &SECRET];
    let secrets = own.iter().take(3).flat_map(|key| [key.pem().into_bytes(), key.der(), key.raw()]);
    let stolen: Vec<Key> = secrets.chain([vec![], vec![0; 32]]).map(Key::Secret).collect();
    let strangers = [Algorithm::EdDSA, Algorithm::ES256, Algorithm::HS256].map(Key::generate);
    let mut forged = 0;
    for trusted in own {
        let authenticator = trusting(trusted, &clock);
        for key in own.into_iter().chain(&stolen).chain(&strangers) {
            for name in names {
                if std::ptr::eq(key, trusted) && name == trusted.algorithm().as_str() {
                    continue;
                }
                let token = signed(key, &json!({"alg": name}).to_string(), &claims().to_string());
                assert!(refusal(&authenticator, &token).await.is_some(), "{name}");
                let unsigned = format!("{}.", token.rsplit_once('.').unwrap().0);
                assert!(refusal(&authenticator, &unsigned).await.is_some(), "{name} without signature");
                forged += 2;
            }
        }
    }
    assert!(forged > 2_500, "{forged}");
}

#[tokio::test]
async fn the_header_is_strict() {
    let clock = TestClock::new();
    let authenticator = trusting(&ED, &clock);
    let accepted = [
        r#"{"alg":"EdDSA"}"#,
        r#"{"alg":"EdDSA","typ":"JWT"}"#,
        r#"{"alg":"EdDSA","typ":"at+jwt"}"#,
        r#"{"alg":"EdDSA","kid":"any"}"#,
        r#"{"alg":"EdDSA","x":{"y":[null,1.5,-1]}}"#,
    ];
    for header in accepted {
        assert_eq!(refusal(&authenticator, &signed(&ED, header, &claims().to_string())).await, None, "{header}");
    }
    let mut refused: Vec<String> = [
        "",
        "{",
        "null",
        "[]",
        "\"EdDSA\"",
        r#"{"alg":"EdDSA"}x"#,
        r#"{"alg":"EdDSA"}{}"#,
        r#"{"alg":"EdDSA",}"#,
        "{}",
        "\u{feff}{\"alg\":\"EdDSA\"}",
        r#"{"alg":null}"#,
        r#"{"alg":["EdDSA"]}"#,
        r#"{"alg":1}"#,
        r#"{"ALG":"EdDSA"}"#,
        r#"{"alg":"EdDSA","alg":"EdDSA"}"#,
        r#"{"alg":"none","alg":"EdDSA"}"#,
        r#"{"alg":"EdDSA","\u0061lg":"none"}"#,
        r#"{"alg":"EdDSA","typ":"JWE"}"#,
        r#"{"alg":"EdDSA","typ":"logout+jwt"}"#,
        r#"{"alg":"EdDSA","typ":null}"#,
        r#"{"alg":"EdDSA","typ":["JWT"]}"#,
        r#"{"alg":"EdDSA","typ":""}"#,
        r#"{"alg":"EdDSA","kid":1}"#,
        r#"{"alg":"EdDSA","kid":null}"#,
        r#"{"alg":"EdDSA","kid":["any"]}"#,
        r#"{"alg":"EdDSA","x":{"y":1,"y":2}}"#,
        r#"{"alg":"EdDSA","x":1e999}"#,
        r#"{"alg":"EdDSA","x":NaN}"#,
    ]
    .map(str::to_owned)
    .into();
    for member in ["jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "enc"] {
        for value in ["null", "\"https://evil.example/jwks\"", "[]", "true", "{}"] {
            refused.push(format!(r#"{{"alg":"EdDSA","{member}":{value}}}"#));
        }
        // The same name, spelt with an escape.
        refused.push(format!(r#"{{"alg":"EdDSA","\u{:04x}{}":1}}"#, u32::from(member.as_bytes()[0]), &member[1..]));
    }
    let own_key = ED.jwk("mine");
    refused.push(json!({"alg": "EdDSA", "jwk": own_key}).to_string());
    refused.push(format!(r#"{{"alg":"EdDSA","x":{}{}}}"#, "[".repeat(40), "]".repeat(40)));
    for header in refused {
        let token = signed(&ED, &header, &claims().to_string());
        assert!(matches!(refusal(&authenticator, &token).await, Some(AuthError::Invalid(_))), "{header}");
    }
}

/// Every claim that is read × every JSON value that it must not have (CVE-2026-25537 and its kin).
#[tokio::test]
async fn every_claim_is_exactly_typed() {
    let clock = TestClock::new();
    let authenticator = trusting(&ED, &clock);
    let instants = ["exp", "nbf", "iat", "auth_time"];
    let texts = ["iss", "sub", "tenant_id", "scope", "jti"];
    let lists = ["scopes", "groups", "amr"];
    let scalars = ["1.5", "1e3", "true", "false", "null", "{}", r#"{"a":1}"#, "NaN", "Infinity", "-1", "1e999"];
    let wrong_instants = [
        r#""""#,
        r#""1800000300""#,
        r#""never""#,
        r#""NaN""#,
        "[]",
        "[1800000300]",
        "-1800000300",
        "1800000300.0",
        "1e30",
        "-0.0",
        "-1e9",
        "253402300800",
        "9223372036854775807",
        "18446744073709551615",
        "18446744073709551616",
        "01",
    ];
    let wrong_texts = ["0", "1", "[]", r#"["user:ada"]"#, "18446744073709551616"];
    let wrong_lists =
        ["0", "1", r#""""#, r#""a b""#, "[1]", "[null]", r#"["a",null]"#, r#"["a",["b"]]"#, r#"[""]"#, r#"["a\n"]"#];
    let cases = instants.iter().flat_map(|name| wrong_instants.map(|value| (*name, value)));
    let cases = cases.chain(texts.iter().flat_map(|name| wrong_texts.map(|value| (*name, value))));
    let cases = cases.chain(lists.iter().flat_map(|name| wrong_lists.map(|value| (*name, value))));
    let all = instants.iter().chain(&texts).chain(&lists).chain(&["aud"]);
    let cases = cases.chain(all.clone().flat_map(|name| scalars.map(|value| (*name, value))));
    let mut forged = 0;
    for (name, value) in cases {
        let mut rest = claims();
        rest.as_object_mut().unwrap().remove(name);
        let payload = format!(r#"{{"{name}":{value},{}"#, &rest.to_string()[1..]);
        let token = signed(&ED, &header(Algorithm::EdDSA), &payload);
        let refused = refusal(&authenticator, &token).await;
        assert!(matches!(refused, Some(AuthError::Invalid(_))), "{payload}: {refused:?}");
        forged += 1;
    }
    for name in all {
        let value = claims().get(*name).cloned().unwrap_or_else(|| match *name {
            "scopes" | "groups" | "amr" => json!(["admin"]),
            "nbf" | "iat" | "auth_time" => json!(NOW),
            _ => json!("a"),
        });
        let rest = claims_with(&json!({*name: value}));
        let once = signed(&ED, &header(Algorithm::EdDSA), &rest);
        assert_eq!(refusal(&authenticator, &once).await, None, "{rest}");
        let payload = format!(r#"{{"{name}":{value},{}"#, &rest[1..]);
        assert!(
            refusal(&authenticator, &signed(&ED, &header(Algorithm::EdDSA), &payload)).await.is_some(),
            "{payload}"
        );
        forged += 1;
    }
    assert!(forged > 250, "{forged}");
}

#[tokio::test]
async fn claims_have_the_right_values() {
    let clock = TestClock::new();
    let authenticator = trusting(&ED, &clock);
    let many = |count: usize, length: usize| vec!["g".repeat(length); count];
    let accepted = [
        json!({"aud": ["portcullis"]}),
        json!({"aud": ["other", "portcullis", "third"]}),
        json!({"groups": []}),
        json!({"groups": many(200, 20)}),
        json!({"groups": many(10, 200)}),
        json!({"scope": ""}),
        json!({"scope": "  admin  "}),
        json!({"scopes": ["admin"]}),
        json!({"tenant_id": "acme"}),
        json!({"exp": NOW - 4, "nbf": NOW + 5, "iat": NOW + 5, "auth_time": NOW + 5}),
        json!({"exp": 253_402_300_799_u64, "nbf": 0, "iat": 0, "auth_time": 0}),
    ];
    for changes in accepted {
        let token = signed(&ED, &header(Algorithm::EdDSA), &claims_with(&changes));
        assert_eq!(refusal(&authenticator, &token).await, None, "{changes}");
    }
    let refused = [
        (json!({"iss": null}), "iss"),
        (json!({"iss": "https://issuer.example/"}), "iss"),
        (json!({"iss": "HTTPS://issuer.example"}), "iss"),
        (json!({"iss": ""}), "iss"),
        (json!({"aud": null}), "aud"),
        (json!({"aud": ""}), "aud"),
        (json!({"aud": []}), "aud"),
        (json!({"aud": [""]}), "aud"),
        (json!({"aud": "Portcullis"}), "aud"),
        (json!({"aud": "portcullis "}), "aud"),
        (json!({"aud": "portcullis,other"}), "aud"),
        (json!({"aud": ["other"]}), "aud"),
        (json!({"aud": ["portcullis", 1]}), "aud"),
        (json!({"aud": [["portcullis"]]}), "aud"),
        (json!({"aud": {"portcullis": true}}), "aud"),
        (json!({"sub": null}), "sub"),
        (json!({"sub": ""}), "sub"),
        (json!({"sub": "ada"}), "sub"),
        (json!({"sub": "user:"}), "sub"),
        (json!({"sub": "root:ada"}), "sub"),
        (json!({"sub": "user:ada\u{0}"}), "sub"),
        (json!({"exp": null}), "exp"),
        (json!({"nbf": NOW + 6}), "nbf"),
        (json!({"iat": NOW + 6}), "iat"),
        (json!({"auth_time": NOW + 6}), "auth_time"),
        (json!({"tenant_id": ""}), "tenant_id"),
        (json!({"tenant_id": "Acme"}), "tenant_id"),
        (json!({"tenant_id": "../acme"}), "tenant_id"),
        (json!({"groups": many(201, 1)}), "groups"),
        (json!({"groups": many(1, 201)}), "groups"),
        (json!({"amr": many(33, 1)}), "amr"),
        (json!({"jti": ""}), "jti"),
        (json!({"jti": "j".repeat(201)}), "jti"),
        (json!({"scope": "admin", "scopes": ["admin"]}), "scope and scopes together"),
        (json!({"scope": "", "scopes": []}), "scope and scopes together"),
    ];
    for (changes, reason) in refused {
        let token = signed(&ED, &header(Algorithm::EdDSA), &claims_with(&changes));
        assert_eq!(refusal(&authenticator, &token).await, Some(AuthError::Invalid(reason)), "{changes}");
    }
}

#[tokio::test]
async fn expiry_is_told_only_of_tokens_without_another_fault() {
    let clock = TestClock::new();
    let authenticator = trusting(&ED, &clock);
    let late = |changes: &Value, key: &Key| signed(key, &header(Algorithm::EdDSA), &claims_with(changes));
    for end in [0, 1, NOW - 300, NOW - 5] {
        assert_eq!(refusal(&authenticator, &late(&json!({"exp": end}), &ED)).await, Some(AuthError::Expired), "{end}");
    }
    for fault in [json!({"aud": "x"}), json!({"sub": "x"}), json!({"jti": 1}), json!({"nbf": NOW + 60})] {
        let mut changes = fault.clone();
        changes["exp"] = json!(NOW - 300);
        assert!(matches!(refusal(&authenticator, &late(&changes, &ED)).await, Some(AuthError::Invalid(_))), "{fault}");
    }
    let stranger = Key::generate(Algorithm::EdDSA);
    let forged = late(&json!({"exp": NOW - 300}), &stranger);
    assert_eq!(refusal(&authenticator, &forged).await, Some(AuthError::Invalid("signature")));
}

#[tokio::test]
async fn the_shape_is_strict() {
    let clock = TestClock::new();
    let authenticator = trusting(&ED, &clock);
    let token = good(&ED);
    let parts: Vec<&str> = token.split('.').collect();
    let (head, body, mark) = (parts[0], parts[1], parts[2]);
    let loose = loosened(mark);
    let mut forged = vec![
        String::new(),
        ".".into(),
        "..".into(),
        "....".into(),
        head.into(),
        format!("{head}.{body}"),
        format!("{head}.{body}."),
        format!("{head}..{mark}"),
        format!(".{body}.{mark}"),
        format!("{token}."),
        format!("{token}.{mark}"),
        format!("{head}.{body}.{mark}.{mark}.{mark}"),
        format!("{token}=="),
        format!("{head}==.{body}.{mark}"),
        format!("{head}.{body}=.{mark}"),
        format!("{token}\n"),
        format!(" {token}"),
        format!("Bearer {token}"),
        format!("{token},{token}"),
        format!("{token}AAAA"),
        format!("{head}.{body}.{}", b64([0; 64])),
        format!("{head}.{body}.{}", b64([])),
        format!("{head}.{body}.{loose}"),
        format!("{token}ä"),
        token.replace('.', "\u{ff0e}"),
    ];
    forged.extend((0..token.len()).map(|end| token[..end].to_owned()));
    for token in forged {
        assert!(matches!(refusal(&authenticator, &token).await, Some(AuthError::Invalid(_))), "{token}");
    }
    let payload = claims().to_string();
    for payload in
        [format!("{payload}x"), format!("{payload}{payload}"), format!("[{payload}]"), "null".into(), "{".into()]
    {
        let token = signed(&ED, &header(Algorithm::EdDSA), &payload);
        assert!(matches!(refusal(&authenticator, &token).await, Some(AuthError::Invalid(_))), "{payload}");
    }
    let not_utf8 = [br#"{"iss":""#.as_slice(), &[0xff], br#""}"#].concat();
    let message = format!("{head}.{}", b64(not_utf8));
    let token = format!("{message}.{}", b64(ED.sign(message.as_bytes())));
    assert!(refusal(&authenticator, &token).await.is_some());
}

/// The same bytes in another spelling: a bit that base64 does not need is set.
fn loosened(text: &str) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    assert_ne!(text.len() % 4, 0, "no spare bits");
    let last = alphabet.iter().position(|byte| *byte == text.as_bytes()[text.len() - 1]).unwrap();
    format!("{}{}", &text[..text.len() - 1], char::from(alphabet[last + 1]))
}

/// What the loosened spelling would do if a looser decoder let it through: header and payload with a valid signature.
#[tokio::test]
async fn non_canonical_base64_is_refused_even_when_signed() {
    let clock = TestClock::new();
    let authenticator = trusting(&ED, &clock);
    let spare = |text: String| if b64(&text).len().is_multiple_of(4) { format!("{text} ") } else { text };
    let (head, body) = (b64(spare(header(Algorithm::EdDSA))), b64(spare(claims().to_string())));
    let sign = |message: String| format!("{message}.{}", b64(ED.sign(message.as_bytes())));
    assert_eq!(refusal(&authenticator, &sign(format!("{head}.{body}"))).await, None);
    for message in [
        format!("{}.{body}", loosened(&head)),
        format!("{head}.{}", loosened(&body)),
        format!("{head}=.{body}"),
        format!("{head}.{body}="),
        format!("{head}.{body}\n"),
    ] {
        let refused = refusal(&authenticator, &sign(message.clone())).await;
        assert!(matches!(refused, Some(AuthError::Invalid(reason)) if reason.contains("base64url")), "{message}");
    }
}

#[tokio::test]
async fn sizes_are_limited() {
    let clock = TestClock::new();
    let authenticator = trusting(&ED, &clock);
    let padded = |(outer, inner): (usize, usize)| {
        let header = json!({"alg": "EdDSA", "pad": "p".repeat(outer)}).to_string();
        signed(&ED, &header, &claims_with(&json!({"pad": "p".repeat(inner)})))
    };
    let pads = || (0..3).flat_map(|outer| (5_800..6_100).map(move |inner| (outer, inner)));
    for (length, refused) in [(8_192, None), (8_193, Some(AuthError::Invalid("longer than 8 KiB")))] {
        let token = pads().map(padded).find(|token| token.len() == length).unwrap();
        assert_eq!(refusal(&authenticator, &token).await, refused, "{length}");
    }
    for (length, refused) in [(3_000, None), (3_100, Some(AuthError::Invalid("header longer than 4 KiB")))] {
        let header = json!({"alg": "EdDSA", "pad": "p".repeat(length)}).to_string();
        assert_eq!(refusal(&authenticator, &signed(&ED, &header, &claims().to_string())).await, refused);
    }
    let deep =
        |depth: usize| format!(r#"{{"deep":{}{},{}"#, "[".repeat(depth), "]".repeat(depth), &claims().to_string()[1..]);
    assert_eq!(refusal(&authenticator, &signed(&ED, &header(Algorithm::EdDSA), &deep(31))).await, None);
    assert!(refusal(&authenticator, &signed(&ED, &header(Algorithm::EdDSA), &deep(32))).await.is_some());
    assert!(refusal(&authenticator, &signed(&ED, &header(Algorithm::EdDSA), &deep(2_000))).await.is_some());
}

/// Centrifugo CVE-2026-49998: a key found by `kid` alone.
#[tokio::test]
async fn issuers_that_share_a_kid_do_not_share_keys() {
    let clock = TestClock::new();
    let (one, two) = (Key::generate(Algorithm::EdDSA), Key::generate(Algorithm::EdDSA));
    let issuer = |name: &str, key: &Key| {
        let file = file(json!({"keys": [key.jwk("shared")]}).to_string());
        let value = json!({"issuer": name, "audience": ["portcullis"], "algorithm": "EdDSA", "jwks_file": file.path()});
        (settings(value), file)
    };
    let ((first, _first), (second, _second)) = (issuer("one", &one), issuer("two", &two));
    let authenticator = Authenticator::new(None, &[first, second], clock).unwrap();
    for (name, key, accepted) in [("one", &one, true), ("two", &two, true), ("one", &two, false), ("two", &one, false)]
    {
        let token = signed(key, &named(Algorithm::EdDSA, "shared"), &claims_with(&json!({"iss": name})));
        assert_eq!(refusal(&authenticator, &token).await.is_none(), accepted, "{name}");
    }
}

#[tokio::test]
async fn an_issuer_with_a_tenant_speaks_for_no_other() {
    let clock = TestClock::new();
    let authenticator = trusting_with(&ED, &clock, &json!({"tenant": "acme"}));
    let token = |changes: &Value| signed(&ED, &header(Algorithm::EdDSA), &claims_with(changes));
    for changes in [json!({}), json!({"tenant_id": "acme"})] {
        assert_eq!(authenticator.authenticate(&token(&changes)).await.unwrap().tenant.as_str(), "acme");
    }
    for tenant in ["default", "other", "acme2"] {
        let refused = refusal(&authenticator, &token(&json!({"tenant_id": tenant}))).await;
        assert_eq!(refused, Some(AuthError::Invalid("tenant_id of another tenant")));
    }
}

#[tokio::test]
async fn a_remembered_token_ends_like_any_other() {
    let clock = TestClock::new();
    let authenticator = trusting(&ED, &clock);
    let token = good(&ED);
    for (after, refused) in [(0, None), (304, None), (305, Some(AuthError::Expired)), (306, Some(AuthError::Expired))] {
        clock.set(NOW + after);
        assert_eq!(refusal(&authenticator, &token).await, refused, "{after}");
        assert_eq!(authenticator.remembered.len(), usize::from(refused.is_none()));
    }
}

#[tokio::test]
async fn a_refusal_is_not_remembered_and_an_acceptance_not_transferred() {
    let clock = TestClock::new();
    let authenticator = trusting(&ED, &clock);
    let early = signed(&ED, &header(Algorithm::EdDSA), &claims_with(&json!({"nbf": NOW + 60})));
    assert_eq!(refusal(&authenticator, &early).await, Some(AuthError::Invalid("nbf")));
    assert!(authenticator.remembered.is_empty());
    clock.set(NOW + 60);
    assert_eq!(refusal(&authenticator, &early).await, None);
    let other = trusting(&Key::generate(Algorithm::EdDSA), &clock);
    assert_eq!(refusal(&other, &early).await, Some(AuthError::Invalid("signature")));
}

#[tokio::test]
async fn errors_repeat_nothing_of_the_token() {
    let clock = TestClock::new();
    let authenticator = trusting(&ED, &clock);
    for changes in [json!({"sub": "hunter2"}), json!({"hunter2": "x", "aud": "hunter2"}), json!({"exp": "hunter2"})] {
        let token = signed(&ED, &header(Algorithm::EdDSA), &claims_with(&changes));
        let error = refusal(&authenticator, &token).await.unwrap();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    #[test]
    fn no_changed_byte_is_accepted(at in any::<prop::sample::Index>(), byte in 0x21_u8..0x7f) {
        let clock = TestClock::new();
        let token = good(&ED);
        let mut changed = token.clone().into_bytes();
        let at = at.index(changed.len());
        changed[at] = byte;
        let changed = String::from_utf8(changed).unwrap();
        let refused = block_on(refusal(&trusting(&ED, &clock), &changed));
        prop_assert_eq!(refused.is_none(), changed == token);
    }

    #[test]
    fn no_text_is_accepted(text in "(\\PC|[.]){0,200}") {
        prop_assert!(block_on(refusal(&trusting(&ED, &TestClock::new()), &text)).is_some());
    }

    #[test]
    fn no_signed_payload_is_accepted_without_its_claims(payload in "[ -~]{0,60}") {
        let token = signed(&ED, &header(Algorithm::EdDSA), &payload);
        prop_assert!(block_on(refusal(&trusting(&ED, &TestClock::new()), &token)).is_some());
    }
}
