//! What may stand in the configuration.

use super::*;
use crate::auth::AuthConfigError;

fn base() -> Value {
    json!({"issuer": ISSUER, "audience": ["portcullis"], "algorithm": "EdDSA"})
}

fn with(more: &Value) -> Value {
    let mut value = base();
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    value
}

fn load(value: &Value) -> Result<(), AuthConfigError> {
    Authenticator::new(None, &[settings(value.clone())], TestClock::new()).map(|_| ())
}

#[test]
fn unknown_fields_and_algorithms_are_refused() {
    for more in
        [json!({"colour": 1}), json!({"algorithm": "none"}), json!({"algorithm": "eddsa"}), json!({"audience": "x"})]
    {
        assert!(serde_json::from_value::<IssuerSettings>(with(&more)).is_err(), "{more}");
    }
    assert!(serde_json::from_value::<IssuerSettings>(json!({"issuer": "x", "algorithm": "EdDSA"})).is_err());
}

#[test]
fn each_broken_rule_has_its_message() {
    let (pem, set, secret) = (file(ED.pem()), file(json!({"keys": [ED.jwk("a")]}).to_string()), file([b's'; 32]));
    let (pem, set, secret) = (pem.path(), set.path(), secret.path());
    let url = "https://issuer.example/jwks";
    let table = [
        (json!({"public_key_file": pem, "issuer": ""}), "empty `issuer`"),
        (json!({"public_key_file": pem, "audience": []}), "`audience`"),
        (json!({"public_key_file": pem, "audience": ["a", ""]}), "`audience`"),
        (json!({"public_key_file": pem, "tenant": "Not A Tenant"}), "`tenant`"),
        (json!({}), "exactly one"),
        (json!({"public_key_file": pem, "jwks_file": set}), "exactly one"),
        (json!({"public_key_file": pem, "jwks_url": url}), "exactly one"),
        (json!({"jwks_file": set, "jwks_url": url}), "exactly one"),
        (json!({"public_key_file": pem, "secret_file": secret}), "exactly one"),
        (json!({"secret_file": secret}), "exactly one"),
        (json!({"algorithm": "RS256", "secret_file": secret}), "exactly one"),
        (json!({"algorithm": "HS256", "public_key_file": pem}), "exactly one"),
        (json!({"algorithm": "HS256", "jwks_file": set}), "exactly one"),
        (json!({"algorithm": "HS256", "jwks_url": url}), "exactly one"),
        (json!({"public_key_file": "/nowhere/key.pem"}), "/nowhere/key.pem"),
        (json!({"algorithm": "ES256", "public_key_file": pem}), "no public key for ES256"),
        (json!({"algorithm": "RS256", "jwks_file": set}), "no public key for RS256"),
        (json!({"public_key_file": set}), "no public key for EdDSA"),
        (json!({"jwks_file": pem}), "no public key for EdDSA"),
        (json!({"jwks_url": "not a url"}), "`jwks_url`"),
        (json!({"jwks_url": "http://issuer.example/jwks"}), "`jwks_url`"),
        (json!({"jwks_url": "http://127.0.0.1.evil.example/jwks"}), "`jwks_url`"),
        (json!({"jwks_url": "http://localhost.evil.example/jwks"}), "`jwks_url`"),
        (json!({"jwks_url": "http://127.0.0.1@evil.example/jwks"}), "`jwks_url`"),
        (json!({"jwks_url": "http://[::2]/jwks"}), "`jwks_url`"),
        (json!({"jwks_url": "https://name:word@issuer.example/jwks"}), "`jwks_url`"),
        (json!({"jwks_url": "file:///etc/passwd"}), "`jwks_url`"),
        (json!({"jwks_url": "ftp://127.0.0.1/jwks"}), "`jwks_url`"),
    ];
    for (more, text) in table {
        let message = load(&with(&more)).unwrap_err().to_string();
        assert!(message.contains(text), "{more}: {message}");
    }
    for more in [
        json!({"public_key_file": pem}),
        json!({"jwks_file": set}),
        json!({"jwks_url": url}),
        json!({"jwks_url": "http://127.0.0.2:8080/jwks"}),
        json!({"jwks_url": "http://[::1]/jwks"}),
        json!({"jwks_url": "http://localhost/jwks"}),
        json!({"algorithm": "HS256", "secret_file": secret}),
    ] {
        load(&with(&more)).unwrap();
    }
}

#[test]
fn weak_keys_are_refused() {
    let private = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap().to_pkcs8v1().unwrap();
    let private = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(private));
    let p384 = EcdsaKeyPair::generate(&aws_lc_rs::signature::ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let mut short = RSA.jwk("a");
    short["n"] = json!(b64([0xff; 255]));
    let table = [
        ("ES256", "public_key_file", private),
        ("ES256", "public_key_file", EC.pem().replace("PUBLIC KEY", "CERTIFICATE")),
        ("ES256", "public_key_file", Key::Ec(p384).pem()),
        ("RS256", "jwks_file", json!({"keys": [short]}).to_string()),
        ("EdDSA", "jwks_file", json!({"keys": []}).to_string()),
        ("HS256", "secret_file", "s".repeat(31)),
        ("HS256", "secret_file", format!("{}\n", "s".repeat(31))),
        ("HS256", "secret_file", format!("{}\r\n", "s".repeat(31))),
        ("HS256", "secret_file", ED.pem()),
        ("EdDSA", "jwks_file", format!("{}{}", json!({"keys": [ED.jwk("a")]}), " ".repeat(256 * 1024))),
    ];
    for (algorithm, source, content) in table {
        let file = file(content);
        assert!(load(&with(&json!({"algorithm": algorithm, source: file.path()}))).is_err(), "{algorithm} {source}");
    }
}

#[tokio::test]
async fn a_line_end_belongs_to_random_bytes_but_not_to_text() {
    let text = b"0123456789abcdef0123456789abcdef";
    let random = [&[0x80; 31], b"\n".as_slice()].concat();
    for (content, secret) in [
        (text.to_vec(), text.to_vec()),
        ([text, b"\n".as_slice()].concat(), text.to_vec()),
        ([text, b"\r\n".as_slice()].concat(), text.to_vec()),
        (random.clone(), random),
    ] {
        let file = file(content);
        let value = with(&json!({"algorithm": "HS256", "secret_file": file.path()}));
        let authenticator = Authenticator::new(None, &[settings(value)], TestClock::new()).unwrap();
        assert_eq!(refusal(&authenticator, &good(&Key::Secret(secret))).await, None);
    }
}

#[test]
fn a_name_is_configured_once() {
    let pem = file(ED.pem());
    let one = settings(with(&json!({"public_key_file": pem.path()})));
    let twice = Authenticator::new(None, &[one.clone(), one], TestClock::new()).err().unwrap();
    assert!(matches!(twice, AuthConfigError::Twice(name) if name == ISSUER));
}
