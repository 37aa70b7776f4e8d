//! Who may come in: tokens, scopes, tenants, issuers.

use std::{fs, path::Path, time::SystemTime};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use portcullis::domain::{Scope, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{ALL_SCOPES, Answer, Options, TestServer};

/// Every route behind a scope: method, target, a body that it takes, the scope.
fn routes() -> Vec<(Method, &'static str, Value, Scope)> {
    let paths = json!({"paths": ["app/db"]});
    vec![
        (Method::GET, "/v1/secrets/app/db", json!({}), Scope::SecretsRead),
        (Method::HEAD, "/v1/secrets/app/db", json!({}), Scope::SecretsRead),
        (Method::PUT, "/v1/secrets/app/db", json!({"data": {}}), Scope::SecretsWrite),
        (Method::GET, "/v1/secrets", json!({}), Scope::SecretsList),
        (Method::GET, "/v1/metadata/app/db", json!({}), Scope::SecretsList),
        (Method::PATCH, "/v1/metadata/app/db", json!({"owner": "o"}), Scope::SecretsWrite),
        (Method::GET, "/v1/versions/app/db", json!({}), Scope::SecretsList),
        (Method::POST, "/v1/rollback/app/db", json!({"version": 1}), Scope::SecretsWrite),
        (Method::POST, "/v1/secrets/batch", paths.clone(), Scope::SecretsRead),
        (Method::POST, "/v1/secrets/batch/metadata", paths, Scope::SecretsList),
        (Method::GET, "/v1/policies", json!({}), Scope::PoliciesRead),
        (Method::GET, "/v1/policies/rules", json!({}), Scope::PoliciesRead),
        (Method::GET, "/v1/audit/logs", json!({}), Scope::AuditRead),
        (Method::GET, "/v1/metrics", json!({}), Scope::Admin),
        (Method::POST, "/v1/destroy/app/db", json!({"versions": [1]}), Scope::SecretsDelete),
        (Method::DELETE, "/v1/secrets/app/db", json!({}), Scope::SecretsDelete),
        (Method::POST, "/v1/restore/app/db", json!({}), Scope::SecretsWrite),
    ]
}

async fn call(server: &TestServer, token: Option<&str>, method: &Method, target: &str, body: &Value) -> Answer {
    let request = server.http.request(method.clone(), format!("{}{target}", server.url));
    let request = request.header("content-type", "application/json").body(body.to_string());
    let request =
        token.map_or_else(|| request.try_clone().unwrap(), |token| request.try_clone().unwrap().bearer_auth(token));
    Answer(request.send().await.unwrap())
}

#[tokio::test]
async fn each_route_wants_its_scope_and_a_token() {
    let config = "[server]\nmetrics_need_token = true\n".to_owned();
    let server = TestServer::start(Options { config, ..Options::default() }).await;
    server.root().store("app/db", json!({"v": "canary"})).await;
    let token = |scopes: &[Scope]| server.token_with("user:root", "default", scopes, &[]);
    for (method, target, body, scope) in routes() {
        let others: Vec<_> = ALL_SCOPES.into_iter().filter(|other| *other != scope).collect();
        let refused = call(&server, Some(&token(&others)), &method, target, &body).await;
        let request_id = refused.header("x-request-id").unwrap();
        assert_eq!((refused.status(), refused.header("etag")), (403, None), "{method} {target}");
        if method != Method::HEAD {
            let message = refused.expect_error(403, "insufficient_scope").await;
            assert!(message.contains(scope.as_str()), "{message}");
        }
        let events = server.audit(&format!("&request_id={request_id}")).await;
        assert_eq!((events.len(), &events[0]["code"]), (1, &json!("insufficient_scope")), "{method} {target}");
        assert_eq!((&events[0]["identity_id"], &events[0]["success"]), (&json!("user:root"), &json!(false)));

        let anonymous = call(&server, None, &method, target, &body).await;
        assert_eq!((anonymous.status(), anonymous.header("www-authenticate").as_deref()), (401, Some("Bearer")));

        let allowed = call(&server, Some(&token(&[scope])), &method, target, &body).await;
        assert!(allowed.status() < 300, "{method} {target}: {}", allowed.status());
    }
    assert_eq!(server.root().get("/v1/metadata/app/db").await.json().await.1["version"], 3, "refusals did nothing");
    // The administrator's scope stands for all of them; the policies must still permit.
    let admin = token(&[Scope::Admin]);
    for (method, target, body, _) in routes() {
        let status = call(&server, Some(&admin), &method, target, &body).await.status();
        assert!(status < 300 || (status, target) == (404, "/v1/rollback/app/db"), "{method} {target}: {status}");
    }
    let stranger = server.token_with("user:stranger", "default", &[Scope::Admin], &[]);
    let answer = call(&server, Some(&stranger), &Method::GET, "/v1/secrets/app/db", &json!({})).await;
    answer.expect_error(403, "access_denied").await;
}

#[tokio::test]
async fn two_tenants_never_see_one_another() {
    let server = TestServer::new().await;
    let of = |tenant| server.client_with_token(server.token_with("user:root", tenant, &ALL_SCOPES, &[]));
    let (acme, zeta) = (of("acme"), of("zeta"));
    acme.store("app/db", json!({"of": "acme"})).await;
    acme.store("app/acme-only", json!({})).await;
    assert_eq!(zeta.store("app/db", json!({"of": "zeta"})).await, 1, "a first version of its own");
    for (client, name) in [(&acme, "acme"), (&zeta, "zeta")] {
        assert_eq!(client.get("/v1/secrets/app/db").await.json().await.1["data"], json!({ "of": name }));
        assert_eq!(client.batch(&["app/db"]).await["secrets"]["app/db"]["data"], json!({ "of": name }));
    }
    zeta.get("/v1/secrets/app/acme-only").await.expect_error(404, "secret_not_found").await;
    let count = |body: Value| body["secrets"].as_array().unwrap().len();
    assert_eq!(count(acme.get("/v1/secrets").await.json().await.1), 2);
    assert_eq!(count(zeta.get("/v1/secrets").await.json().await.1), 1);
    assert_eq!(count(server.root().get("/v1/secrets").await.json().await.1), 0, "the default tenant is one of them");
    assert_eq!(zeta.delete("/v1/secrets/app/db?permanent=true").await.status(), 204);
    assert_eq!(acme.get("/v1/secrets/app/db").await.status(), 200);
    // A cursor does not cross over, though path and caller have the same names.
    let page = acme.get("/v1/secrets?limit=1").await.json().await.1;
    let target = format!("/v1/secrets?cursor={}", page["cursor"].as_str().unwrap());
    zeta.get(&target).await.expect_error(400, "invalid_cursor").await;
    // Nor does the audit log, not even for its administrators.
    for tenant in ["acme", "zeta"] {
        let admin = server.client_with_token(server.token_with("user:auditor", tenant, &[Scope::Admin], &[]));
        let logs = admin.get("/v1/audit/logs?limit=1000").await.json().await.1["logs"].clone();
        let logs = logs.as_array().unwrap();
        assert!(!logs.is_empty() && logs.iter().all(|entry| entry["tenant_id"] == tenant), "{tenant}");
    }
    assert!(server.audit("").await.iter().all(|entry| entry["tenant_id"] == "default"));
}

#[tokio::test]
async fn whoami_tells_what_the_server_makes_of_a_token() {
    let server = TestServer::new().await;
    let scopes = [Scope::SecretsRead, Scope::AuditRead];
    let token = server.token_with("sa:checkout", "acme", &scopes, &["operators", "on call"]);
    let (status, who) = server.client_with_token(token).get("/v1/auth/whoami").await.json().await;
    assert_eq!(status, 200);
    let expires_at = who["token_expires_at"].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert!(expires_at.unix_seconds() > now(), "{who}");
    let expected = json!({
        "identity_id": "sa:checkout",
        "identity_type": "service_account",
        "tenant_id": "acme",
        "scopes": ["secrets:read", "audit:read"],
        "groups": ["operators", "on call"],
        "mfa_verified_at": null,
        "token_expires_at": who["token_expires_at"],
    });
    assert_eq!(who, expected);
    let nobody = server.token_with("user:root", "default", &[], &[]);
    assert_eq!(server.client_with_token(nobody).get("/v1/auth/whoami").await.status(), 200, "any valid token will do");
    let answer = call(&server, None, &Method::GET, "/v1/auth/whoami", &json!({})).await;
    assert_eq!(answer.header("www-authenticate").as_deref(), Some("Bearer"));
    answer.expect_error(401, "authentication_required").await;
}

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

const PARTNER_SECRET: &[u8] = b"a secret of thirty-two bytes!!!!";

/// An issuer with a shared secret and any tenant, and one with a key pair and one tenant.
fn issuers(directory: &Path) -> (String, EncodingKey) {
    fs::write(directory.join("partner.key"), PARTNER_SECRET).unwrap();
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    fs::write(directory.join("idp.pem"), pair.public_key_pem()).unwrap();
    let config = format!(
        "[[auth.issuers]]\nissuer = \"partner\"\naudience = [\"vault\"]\nalgorithm = \"HS256\"\nsecret_file = '{}'\n\
         [[auth.issuers]]\nissuer = \"https://idp.test\"\naudience = [\"vault\", \"other\"]\nalgorithm = \"ES256\"\n\
         public_key_file = '{}'\ntenant = \"acme\"\n",
        directory.join("partner.key").display(),
        directory.join("idp.pem").display(),
    );
    (config, EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap())
}

/// The claims of a good token of `partner`, with some changed, or taken away where they are null.
fn claims(changes: &Value) -> Value {
    let mut claims = json!({
        "iss": "partner", "aud": "vault", "sub": "user:root", "exp": now() + 600, "scope": "secrets:read secrets:write",
    });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

#[tokio::test]
async fn tokens_of_several_issuers_are_judged_by_their_own_rules() {
    let directory = TempDir::new().unwrap();
    let (config, idp) = issuers(directory.path());
    let server = TestServer::start(Options { config, ..Options::default() }).await;
    let partner = EncodingKey::from_secret(PARTNER_SECRET);
    let by_partner = |changes: Value| encode(&Header::new(Algorithm::HS256), &claims(&changes), &partner).unwrap();
    let by_idp = |changes: Value| encode(&Header::new(Algorithm::ES256), &claims(&changes), &idp).unwrap();
    let from_idp = json!({"iss": "https://idp.test", "tenant_id": "acme"});

    // Each issuer's tokens, side by side with the server's own.
    for (token, who, tenant, scopes) in [
        (server.token("user:own"), "user:own", "default", 8),
        (by_partner(json!({"sub": "sa:ci"})), "sa:ci", "default", 2),
        (
            by_partner(json!({"tenant_id": "zeta", "scope": null, "scopes": ["secrets:read", "unheard:of"]})),
            "user:root",
            "zeta",
            1,
        ),
        (by_partner(json!({"aud": ["else", "vault"], "exp": now() - 1, "scope": null})), "user:root", "default", 0),
        (by_idp(from_idp.clone()), "user:root", "acme", 2),
        (by_idp(json!({"iss": "https://idp.test", "aud": "other"})), "user:root", "acme", 2),
    ] {
        let (status, answer) = server.client_with_token(token).get("/v1/auth/whoami").await.json().await;
        assert_eq!(
            (status, &answer["identity_id"], &answer["tenant_id"]),
            (200, &json!(who), &json!(tenant)),
            "{answer}"
        );
        assert_eq!(answer["scopes"].as_array().unwrap().len(), scopes, "{answer}");
    }
    let authenticated = now() - 60;
    let methods = json!({"amr": ["pwd", "otp"], "auth_time": authenticated});
    let (_, who) = server.client_with_token(by_partner(methods)).get("/v1/auth/whoami").await.json().await;
    let verified = who["mfa_verified_at"].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert_eq!(verified.unix_seconds(), authenticated);

    let good = by_partner(json!({}));
    let (head, rest) = good.split_once('.').unwrap();
    let (payload, signature) = rest.split_once('.').unwrap();
    let unsigned = format!("{}.{payload}.", base64_url(br#"{"alg":"none"}"#));
    let public_pem = fs::read(directory.path().join("idp.pem")).unwrap();
    let confused =
        encode(&Header::new(Algorithm::HS256), &claims(&from_idp), &EncodingKey::from_secret(&public_pem)).unwrap();
    for (case, token, code) in [
        ("expired", by_partner(json!({"exp": now() - 60})), "token_expired"),
        ("without an end", by_partner(json!({"exp": null})), "token_invalid"),
        ("an end that is a text", by_partner(json!({"exp": "9999999999"})), "token_invalid"),
        ("not valid yet", by_partner(json!({"nbf": now() + 60})), "token_invalid"),
        ("for another audience", by_partner(json!({"aud": "else"})), "token_invalid"),
        ("for no audience", by_partner(json!({"aud": null})), "token_invalid"),
        ("of an unknown issuer", by_partner(json!({"iss": "nobody"})), "token_invalid"),
        ("of no issuer", by_partner(json!({"iss": null})), "token_invalid"),
        ("of no kind of subject", by_partner(json!({"sub": "root"})), "token_invalid"),
        ("of no subject", by_partner(json!({"sub": null})), "token_invalid"),
        ("a tenant of the wrong type", by_partner(json!({"tenant_id": 5})), "token_invalid"),
        ("two statements of scopes", by_partner(json!({"scopes": ["admin"]})), "token_invalid"),
        ("scopes of the wrong type", by_partner(json!({"scope": ["secrets:read"]})), "token_invalid"),
        ("another issuer's name", by_partner(json!({"iss": "portcullis", "aud": "portcullis"})), "token_invalid"),
        ("another issuer's key", by_idp(json!({})), "token_invalid"),
        (
            "a tenant that is not the issuer's",
            by_idp(json!({"iss": "https://idp.test", "tenant_id": "zeta"})),
            "token_invalid",
        ),
        ("the public key as a secret", confused, "token_invalid"),
        ("without a signature", unsigned, "token_invalid"),
        ("another signature", format!("{head}.{payload}.{}", "A".repeat(signature.len())), "token_invalid"),
        (
            "another payload",
            format!("{head}.{}.{signature}", base64_url(claims(&json!({"sub": "user:eve"})).to_string().as_bytes())),
            "token_invalid",
        ),
        ("two parts", format!("{head}.{payload}"), "token_invalid"),
        ("no token at all", "canary".to_owned(), "token_invalid"),
    ] {
        let answer = server.client_with_token(token).get("/v1/secrets/app/db").await;
        assert_eq!(answer.header("www-authenticate").as_deref(), Some("Bearer"), "{case}");
        let request_id = answer.header("x-request-id").unwrap();
        let (status, body) = answer.json().await;
        assert_eq!((status, &body["error"]["code"]), (401, &json!(code)), "{case}: {body}");
        let events = server.audit(&format!("&request_id={request_id}")).await;
        assert_eq!(
            (events.len(), &events[0]["code"], &events[0]["identity_id"]),
            (1, &json!(code), &Value::Null),
            "{case}"
        );
    }
    for header in ["", "Basic dXNlcjpwYXNz", "Bearer", good.as_str()] {
        let request = server.http.get(format!("{}/v1/auth/whoami", server.url)).header("authorization", header);
        Answer(request.send().await.unwrap()).expect_error(401, "token_invalid").await;
    }
    let twice =
        server.http.get(format!("{}/v1/auth/whoami", server.url)).bearer_auth(&good).header("authorization", "x");
    Answer(twice.send().await.unwrap()).expect_error(401, "token_invalid").await;
    let lower =
        server.http.get(format!("{}/v1/auth/whoami", server.url)).header("authorization", format!("bearer {good}"));
    assert_eq!(lower.send().await.unwrap().status(), 200, "the scheme has no case");
    let in_query = server.http.get(format!("{}/v1/secrets?access_token={good}", server.url)).send().await.unwrap();
    assert_eq!(in_query.status(), 401, "a token has no place in a query");
}

fn base64_url(bytes: &[u8]) -> String {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

#[tokio::test]
async fn guesses_at_tokens_are_limited_by_address() {
    let config = "[rate_limits]\nauth = 3\nread = 0\nwrite = 0\naudit_query = 0\n".to_owned();
    let server = TestServer::start(Options { config, ..Options::default() }).await;
    let guess = server.client_with_token("guess".to_owned());
    for status in [401, 401, 401, 429, 429] {
        let answer = guess.get("/v1/secrets/app/db").await;
        assert_eq!((answer.status(), answer.header("retry-after").is_some()), (status, status == 429));
    }
    assert_eq!(server.audit("&success=false").await.len(), 3, "a flood of guesses does not flood the audit log");
    assert_eq!(server.root().get("/v1/secrets/app/db").await.status(), 404, "a good token is served all the same");
}
