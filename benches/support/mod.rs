//! A whole vault for benches: real SQLite in a temporary directory, the shipped `rules` module with ten rules, a hundred
//! encrypted secrets, the audit log on, and the router that the network sees.

mod policies;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::ConnectInfo,
    http::{Request, StatusCode, header},
};
use http_body_util::BodyExt;
use portcullis::{
    audit::{AuditChain, AuditKeys},
    auth::{Authenticator, TokenIssuer, TokenRequest},
    crypto::{Keyring, RootKey, RootKeySource},
    domain::{
        Clock, Entropy, Principal, ReceiptSlot, RequestContext, Scope, SecretPath, SecretValue, TenantId, request_id,
    },
    http::{ApiSettings, App, Category, Shell, router},
    store::{SecretStore, SqliteStore},
    telemetry::Metrics,
    vault::{Caller, Parts, PutRequest, Vault},
};
use serde_json::json;
use tower::ServiceExt;
use zeroize::Zeroizing;

/// Secrets in the vault, and paths of a batch.
pub const PATHS: usize = 100;
/// Rules in force, each with a place and a group of its own. The bearer of the token is in all groups.
const RULES: usize = 10;

/// The vault with its parts, and someone who may read all of it.
pub struct Rig {
    vault: Arc<Vault>,
    pub store: Arc<dyn SecretStore>,
    pub audit_keys: Arc<AuditKeys>,
    principal: Principal,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    token: String,
    shell: Router,
    body: Bytes,
}

impl Rig {
    pub async fn new(directory: &Path, clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        let store: Arc<dyn SecretStore> = Arc::new(SqliteStore::open(&directory.join("data"), 64 << 20).await.unwrap());
        let rig = Self::over(store, directory, clock, entropy).await;
        let chain = AuditChain::new(Arc::clone(&rig.audit_keys), Arc::clone(&rig.clock));
        rig.store.start_log(Arc::new(chain)).await.unwrap();
        rig.fill().await;
        rig
    }

    /// A vault over what a store holds already, if it was filled in the same directory.
    pub async fn over(
        store: Arc<dyn SecretStore>,
        directory: &Path,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let policies = policies::load(&directory.join("policies"), &rules());
        let (root, _) = RootKey::load_or_create(&directory.join("root.key"), &*entropy).unwrap();
        store.root_fingerprint(&root.fingerprint()).await.unwrap();
        let audit_keys = Arc::new(AuditKeys::new(&[7; 32]));
        let issuer = TokenIssuer::new(&root.token_seed(), "bench".to_owned(), "bench".to_owned()).unwrap();
        let authenticator = Arc::new(Authenticator::new(Some(issuer.verifier()), &[], Arc::clone(&clock)).unwrap());
        let token = issuer.issue(&bearer(), clock.now(), "1").unwrap();
        let metrics = Arc::new(Metrics::default());
        let vault = Arc::new(Vault::new(Parts {
            store: Arc::clone(&store),
            keyring: Keyring::new(root, Arc::clone(&entropy)),
            audit_keys: Arc::clone(&audit_keys),
            policies,
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
            metrics: Arc::clone(&metrics),
            recoverable_for: Duration::from_secs(1),
            root_sources: (RootKeySource::Environment(String::new()), None),
        }));
        let unlimited: BTreeMap<_, _> = Category::ALL.iter().map(|(_, word, _)| ((*word).to_owned(), 0)).collect();
        let settings = ApiSettings { rate_limits: unlimited, ..ApiSettings::default() };
        let shell = Shell::new(Arc::clone(&clock), Arc::clone(&entropy));
        let sources = (Arc::clone(&clock), Arc::clone(&entropy));
        let app = App::new(Arc::clone(&vault), Arc::clone(&authenticator), sources, metrics, &settings, &shell);
        shell.open(router(app, &settings));
        let principal = authenticator.authenticate(&token).await.unwrap();
        let body = json!({ "paths": (0..PATHS).map(text_of_path).collect::<Vec<_>>() }).to_string().into();
        Self { vault, store, audit_keys, principal, clock, entropy, token, shell: shell.router(), body }
    }

    async fn fill(&self) {
        for n in 0..PATHS {
            let value =
                json!({ "username": format!("app-{n:03}"), "password": "0123456789abcdef".repeat(8), "port": 5432 });
            let put = PutRequest {
                data: SecretValue::new(Zeroizing::new(value.to_string().into_bytes())),
                fields: vec!["password".to_owned(), "port".to_owned(), "username".to_owned()],
                secret_type: None,
                metadata: None,
                expires_at: None,
                max_versions: None,
                expected_version: None,
            };
            self.vault.put(&self.caller(), path(n), put).await.unwrap();
        }
    }

    /// Whoever asks, as the vault knows them behind the gate.
    fn caller(&self) -> Caller {
        let now = self.clock.now();
        let context = RequestContext {
            request_id: request_id(&*self.entropy, now),
            now,
            source_ip: Some([127, 0, 0, 1].into()),
            user_agent: Some("bench".into()),
            receipt: ReceiptSlot::default(),
        };
        Caller { principal: self.principal.clone(), context, policies: self.vault.policies().current() }
    }

    /// A batch of all secrets, as it comes from the network: all that is missing is the connection.
    pub fn request(&self) -> Request<Body> {
        Request::post("/v1/secrets/batch")
            .header(header::HOST, "vault.internal:8200")
            .header(header::USER_AGENT, "bench")
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONTENT_LENGTH, self.body.len())
            .extension(ConnectInfo(std::net::SocketAddr::from(([127, 0, 0, 1], 50_000))))
            .body(self.body.clone().into())
            .unwrap()
    }

    /// Serves a batch to the last byte of its answer, in which nothing may be missing.
    pub async fn serve(&self, request: Request<Body>) -> Bytes {
        let response = self.shell.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let answer = response.into_body().collect().await.unwrap().to_bytes();
        assert!(answer.ends_with(br#""failed":0}"#), "{answer:?}");
        answer
    }
}

/// A token for whoever may read and write everything.
pub fn bearer() -> TokenRequest {
    TokenRequest {
        subject: "sa:checkout".to_owned(),
        tenant: TenantId::default_tenant(),
        scopes: [Scope::SecretsRead, Scope::SecretsWrite].into_iter().collect(),
        groups: (0..RULES).map(|n| format!("g{n}")).collect(),
        mfa: false,
        lifetime: Duration::from_hours(1),
    }
}

/// Neighbours share a rule, as they mostly do.
fn text_of_path(n: usize) -> String {
    format!("teams/team-{}/service-{n}/key", n * RULES / PATHS)
}

/// The path of a secret.
pub fn path(n: usize) -> SecretPath {
    SecretPath::parse(&text_of_path(n)).unwrap()
}

/// The settings of the rules.
fn rules() -> String {
    let rule = |n: usize| {
        format!(
            "[[policy]]\nname = \"team-{n}\"\nbindings = [\"group:g{n}\"]\n[[policy.rules]]\npath_pattern = \
             \"teams/team-{n}/**\"\npermissions = [\"read\", \"write\"]\n"
        )
    };
    (0..RULES).map(rule).collect()
}
