//! What `serve --dev` brings along: sample identities, sample secrets, and a page that says where everything is.

use std::{net::SocketAddr, time::Duration};

use zeroize::Zeroizing;

use super::token::token_id;
use crate::{
    auth::TokenRequest,
    config::Config,
    domain::{Clock, Metadata, ReceiptSlot, RequestContext, Scope, SecretPath, SecretType, SecretValue, TenantId},
    server::{Server, StartError, SystemClock, SystemEntropy},
    vault::{Caller, Fault, PutRequest, field_names},
};

/// How long the sample tokens live.
const TOKEN_LIFETIME: Duration = Duration::from_hours(7 * 24);

/// A sample identity: subject, scopes, groups, and what the sample rules let it do.
struct SampleIdentity {
    variable: &'static str,
    subject: &'static str,
    scopes: &'static [Scope],
    groups: &'static [&'static str],
    may: &'static str,
}

const READER: &[Scope] = &[Scope::SecretsRead, Scope::SecretsList];

const IDENTITIES: [SampleIdentity; 3] = [
    SampleIdentity {
        variable: "TOKEN",
        subject: "sa:checkout",
        scopes: READER,
        groups: &[],
        may: "reads integrations/salesforce/** and integrations/scaisend/**",
    },
    SampleIdentity {
        variable: "STARTUP_TOKEN",
        subject: "sa:storefront",
        scopes: READER,
        groups: &[],
        may: "reads integrations/** and infra/**",
    },
    SampleIdentity {
        variable: "ADMIN_TOKEN",
        subject: "user:alice",
        scopes: &[Scope::Admin],
        groups: &["operators"],
        may: "does everything",
    },
];

/// A sample secret: path, type, its versions' values, tags.
struct SampleSecret(&'static str, SecretType, &'static [&'static str], &'static [&'static str]);

const SECRETS: [SampleSecret; 5] = [
    SampleSecret(
        "integrations/salesforce/oauth",
        SecretType::Json,
        &[
            r#"{"client_id":"sample-client","client_secret":"sample-secret-1"}"#,
            r#"{"client_id":"sample-client","client_secret":"sample-secret-2"}"#,
            r#"{"client_id":"sample-client","client_secret":"sample-secret-3"}"#,
        ],
        &["salesforce", "production"],
    ),
    SampleSecret("integrations/scaisend/api-key", SecretType::ApiKey, &[r#"{"key":"sk_send_sample"}"#], &["scaisend"]),
    SampleSecret("integrations/stripe/secret-key", SecretType::ApiKey, &[r#"{"key":"sk_stripe_sample"}"#], &["stripe"]),
    SampleSecret(
        "infra/db/primary/credentials",
        SecretType::Kv,
        &[r#"{"username":"app","password":"sample-db-password"}"#],
        &["database"],
    ),
    SampleSecret(
        "infra/redis/primary/credentials",
        SecretType::Kv,
        &[r#"{"username":"app","password":"sample-redis-password"}"#],
        &["redis"],
    ),
];

/// Stores the samples in an empty vault and says what a newcomer needs to know.
pub async fn welcome(server: &Server, config: &Config, address: SocketAddr) -> Result<(), StartError> {
    let mut tokens = Vec::new();
    for identity in &IDENTITIES {
        tokens.push(server.issuer.issue(&request(identity), SystemClock.now(), &token_id(&SystemEntropy))?);
    }
    let operator = tokens.last().map_or("", String::as_str);
    let stored = store_samples(server, operator).await?;
    print!("{}", page(config, address, stored, &tokens));
    Ok(())
}

fn request(identity: &SampleIdentity) -> TokenRequest {
    TokenRequest {
        subject: identity.subject.to_owned(),
        tenant: TenantId::default_tenant(),
        scopes: identity.scopes.iter().copied().collect(),
        groups: identity.groups.iter().map(|&group| group.to_owned()).collect(),
        mfa: true,
        lifetime: TOKEN_LIFETIME,
    }
}

/// Writes the samples as the sample operator, along the road that every write takes. A version that is there already
/// stays as it is. True where all of them were written.
async fn store_samples(server: &Server, token: &str) -> Result<bool, StartError> {
    let context = RequestContext {
        request_id: format!("req_{}", token_id(&SystemEntropy)).into(),
        now: SystemClock.now(),
        source_ip: Some([127, 0, 0, 1].into()),
        user_agent: Some("portcullis serve --dev".into()),
        receipt: ReceiptSlot::default(),
    };
    let vault = &server.vault;
    let principal = server.authenticator.authenticate(token).await?;
    let caller = Caller { principal, context, policies: vault.policies().current() };
    let there = vault.list(&caller, String::new(), None, 1).await.map_err(StartError::Samples)?;
    if !there.secrets.is_empty() {
        return Ok(false);
    }
    let mut all_written = true;
    for SampleSecret(path, secret_type, values, tags) in SECRETS {
        let path = SecretPath::parse(path).map_err(|_| StartError::Samples(Fault::InvalidPath))?;
        for (expected, value) in (0..).zip(values) {
            let put = PutRequest { expected_version: Some(expected), ..sample(value, secret_type, tags) };
            match vault.put(&caller, path.clone(), put).await {
                Ok(_) => (),
                // Another policy directory may well not let the sample operator write.
                Err(Fault::Denied(_) | Fault::VersionConflict(_) | Fault::SecretExists) => all_written = false,
                Err(fault) => return Err(StartError::Samples(fault)),
            }
        }
    }
    Ok(all_written)
}

fn sample(value: &str, secret_type: SecretType, tags: &[&str]) -> PutRequest {
    let tags = tags.iter().map(|&tag| tag.to_owned()).collect();
    PutRequest {
        fields: field_names(value.as_bytes()).unwrap_or_default(),
        data: SecretValue::new(Zeroizing::new(value.as_bytes().to_vec())),
        secret_type: Some(secret_type),
        metadata: Some(Metadata { tags, ..Metadata::default() }),
        expires_at: None,
        max_versions: None,
        expected_version: None,
    }
}

fn page(config: &Config, address: SocketAddr, stored: bool, tokens: &[String]) -> String {
    let place = match &config.store.database_url {
        Some(_) => "PostgreSQL".to_owned(),
        None => config.store.data_dir.join("portcullis.db").display().to_string(),
    };
    let key = config.root_key_source().map_or_else(|_| String::new(), |source| source.to_string());
    let scheme = if config.tls.certificate.is_some() { "https" } else { "http" };
    let samples = if stored { "five sample secrets were stored" } else { "kept as it was" };
    let identities: Vec<String> = IDENTITIES
        .iter()
        .zip(tokens)
        .map(|(SampleIdentity { subject, may, variable, .. }, token)| {
            format!("# {subject} {may}\nexport {variable}={token}\n")
        })
        .collect();
    format!(
        r#"Portcullis is up, in development mode.

  API       {scheme}://{address}
  secrets   {place} ({samples})
  root key  {key}
  policies  {policies} (rules.toml says who may do what)

Sample identities, each with a token for seven days:

{identities}
Try it. Two secrets come back, and one refusal:

curl -sS {scheme}://{address}/v1/secrets/batch \
  -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \
  -d '{{"paths": ["integrations/salesforce/oauth", "integrations/scaisend/api-key", "integrations/stripe/secret-key"]}}'

What is there, without values:

curl -sS {scheme}://{address}/v1/secrets/batch/metadata \
  -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \
  -d '{{"paths": ["integrations/**"], "expand_wildcards": true}}'

And who asked for what:

curl -sS "{scheme}://{address}/v1/audit/logs?limit=5" -H "Authorization: Bearer $ADMIN_TOKEN"

"#,
        policies = config.policies.display(),
        identities = identities.join("\n"),
    )
}
