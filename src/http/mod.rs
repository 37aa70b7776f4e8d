//! The REST API over HTTP: extract, one call of the vault, wrap. The only module that names the web framework.

mod admission;
mod audit;
mod batch;
mod error;
mod export;
mod frame;
mod json;
mod keys;
mod limits;
mod local;
mod openapi;
mod policies;
mod secrets;
mod serve;
mod shell;
mod system;
mod wire;

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router, middleware,
    routing::{delete, get, patch, post, put},
};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

pub use limits::Category;
pub use local::{LocalDoor, SOCKET, SealStatus, Warden};
pub use openapi::Document;
pub use serve::{ServeLimits, TlsError, listen, serve, tls_config};
pub use shell::Shell;

use crate::{
    auth::Authenticator,
    domain::{Clock, Entropy, Scope},
    telemetry::{Metrics, PoliciesNumbers, PolicyNumbers},
    vault::Vault,
};
use admission::Places;
use frame::{always_there, gated, observed};
use limits::RateLimits;
use shell::Sealer;

/// What the handlers share.
#[derive(Clone)]
pub struct App(Arc<Shared>);

/// The parts of an [`App`].
pub struct Shared {
    vault: Arc<Vault>,
    authenticator: Arc<Authenticator>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    metrics: Arc<Metrics>,
    registry: Registry,
    rates: RateLimits,
    places: Places,
    sealer: Sealer,
}

impl std::ops::Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// How the API behaves.
#[derive(Debug, Clone, Default)]
pub struct ApiSettings {
    /// Units in a minute by category; 0 is unlimited, what is absent has its default.
    pub rate_limits: BTreeMap<String, u32>,
    /// Whether `/v1/metrics` wants a token with the scope `admin`.
    pub metrics_need_token: bool,
    /// How many requests are worked on at one time; with 0, as many as the processors can make use of.
    pub max_requests: usize,
    /// How many connections there are at most.
    pub max_connections: usize,
    /// Cancelled when the server is sealed or stops: who was turned away is kept waiting no longer.
    pub closing: CancellationToken,
}

impl App {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        vault: Arc<Vault>,
        authenticator: Arc<Authenticator>,
        (clock, entropy): (Arc<dyn Clock>, Arc<dyn Entropy>),
        metrics: Arc<Metrics>,
        settings: &ApiSettings,
        shell: &Shell,
    ) -> Self {
        let policies = Arc::clone(vault.policies());
        let numbers = Arc::new(move || {
            let set = policies.current();
            let numbers = |module: &crate::policy::Module| PolicyNumbers {
                policy: module.reference.name.clone(),
                outcomes: module.stats.outcomes().collect(),
                disagreements: module.stats.disagreements(),
                total_time: module.stats.total_time(),
            };
            PoliciesNumbers {
                generation: set.generation,
                live_generations: policies.live_generations(),
                reloads: policies.reloads().map(|(outcome, count)| (outcome.as_str(), count)).collect(),
                up_to_date: policies.is_up_to_date(),
                modules: set.modules.iter().map(numbers).collect(),
            }
        });
        let registry = metrics.registry(numbers);
        let rates = RateLimits::new(&settings.rate_limits);
        Self(Arc::new(Shared {
            vault,
            authenticator,
            clock,
            entropy,
            metrics,
            registry,
            rates,
            places: Places::new(settings.max_requests, settings.max_connections, settings.closing.clone()),
            sealer: shell.sealer(),
        }))
    }
}

/// All routes: what each needs, and what it draws on.
pub fn router(app: App, settings: &ApiSettings) -> Router {
    let read = gated(&app, Scope::SecretsRead, Category::Read, get(secrets::read));
    let write = gated(&app, Scope::SecretsWrite, Category::Write, put(secrets::put));
    let remove = gated(&app, Scope::SecretsDelete, Category::Delete, delete(secrets::delete));
    let one_secret = read.merge(write).merge(remove);
    let describe = gated(&app, Scope::SecretsList, Category::List, get(secrets::metadata));
    let one_metadata =
        describe.merge(gated(&app, Scope::SecretsWrite, Category::Write, patch(secrets::patch_metadata)));
    let batch_read = gated(&app, Scope::SecretsRead, Category::BatchRead, post(batch::read));
    let batch_read = batch_read.fallback(batch::other_method);
    let batch_metadata = gated(&app, Scope::SecretsList, Category::BatchMetadata, post(batch::metadata));
    let batch_metadata = batch_metadata.fallback(batch::other_method);
    let metrics = get(system::metrics);
    let metrics = if settings.metrics_need_token {
        always_there(&app, Scope::Admin, Category::PolicyOps, metrics)
    } else {
        metrics
    };
    let reads_policies = |word, handlers| observed(&app, Scope::PoliciesRead, Category::PolicyOps, word, handlers);
    let reload = gated(&app, Scope::PoliciesWrite, Category::PolicyOps, post(policies::reload));
    let test_policies =
        observed(&app, Scope::PoliciesRead, Category::PolicyTest, "test_policies", post(policies::test));
    // A policy may have that name.
    let test_policies = test_policies.merge(reads_policies("describe_policy", get(policies::describe_test)));
    let audit_log = observed(&app, Scope::AuditRead, Category::AuditQuery, "query_audit_log", get(audit::logs));
    let turns_keys = |handlers| gated(&app, Scope::Admin, Category::Keys, handlers);
    let versions = gated(&app, Scope::SecretsList, Category::List, get(secrets::versions));
    let destroy = gated(&app, Scope::SecretsDelete, Category::Delete, post(secrets::destroy));
    let restore = gated(&app, Scope::SecretsWrite, Category::Write, post(secrets::restore));
    let rollback = gated(&app, Scope::SecretsWrite, Category::Write, post(secrets::rollback));
    Router::new()
        .route("/v1/secrets", gated(&app, Scope::SecretsList, Category::List, get(secrets::list)))
        .route("/v1/secrets/batch", batch_read)
        .route("/v1/secrets/batch/metadata", batch_metadata)
        // With nothing behind the slash there is a path, and it is an invalid one.
        .route("/v1/secrets/", one_secret.clone())
        .route("/v1/secrets/{*path}", one_secret)
        .route("/v1/metadata/", one_metadata.clone())
        .route("/v1/metadata/{*path}", one_metadata)
        .route("/v1/versions/", versions.clone())
        .route("/v1/versions/{*path}", versions)
        .route("/v1/restore/", restore.clone())
        .route("/v1/restore/{*path}", restore)
        .route("/v1/rollback/", rollback.clone())
        .route("/v1/rollback/{*path}", rollback)
        .route("/v1/destroy/", destroy.clone())
        .route("/v1/destroy/{*path}", destroy)
        .route("/v1/policies", reads_policies("list_policies", get(policies::list)))
        .route("/v1/policies/status", reads_policies("policy_status", get(policies::status)))
        .route("/v1/policies/reload", reload)
        .route("/v1/policies/test", test_policies)
        .route("/v1/policies/{name}", reads_policies("describe_policy", get(policies::describe_one)))
        .route("/v1/keys", observed(&app, Scope::Admin, Category::Keys, "key_status", get(keys::status)))
        .route("/v1/keys/rotate", turns_keys(post(keys::rotate)))
        .route("/v1/keys/rewrap", turns_keys(post(keys::rewrap)))
        .route("/v1/keys/rotate-root", turns_keys(post(keys::rotate_root)))
        .route("/v1/seal", always_there(&app, Scope::Admin, Category::Keys, post(keys::seal)))
        .route("/v1/audit/logs", audit_log)
        .route("/v1/audit/export", gated(&app, Scope::AuditExport, Category::AuditExport, post(export::export)))
        .route("/v1/auth/whoami", observed(&app, None, Category::Auth, "whoami", get(system::whoami)))
        .route("/v1/health", get(system::health))
        .route("/v1/health/ready", get(system::ready))
        .route("/v1/version", get(system::version))
        .route("/v1/metrics", metrics)
        .route("/v1/openapi.json", get(openapi::document))
        .fallback(async || error::ApiError::new("not_found", "There is nothing at this address"))
        .layer(middleware::from_fn_with_state(app.clone(), frame::frame))
        .with_state(app)
}
