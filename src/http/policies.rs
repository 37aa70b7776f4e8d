//! The policies in force.

use axum::{
    extract::{Path, Request, State},
    response::Response,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{
    App,
    error::{ApiError, ErrorEnvelope},
    frame::{Caller, NoQuery},
    json::{JsonBody, maybe_object, object, reply},
};
use crate::{
    domain::Timestamp,
    policy::{
        ContextFacts, Disagreement, Explanation, Module, PrincipalFacts, Problem, ReloadOutcome, Report, Scenario,
        SecretFacts, Trigger,
    },
};

/// Largest body of a dry run.
const MAX_TEST_BYTES: usize = 128 * 1024;
/// What a second factor's method is called (RFC 8176).
const SECOND_FACTOR: &str = "mfa";

/// A policy module in force.
#[derive(Serialize, ToSchema)]
pub struct PolicyBody {
    /// Its name in the manifest.
    name: String,
    /// The SHA-256 of its file.
    digest: String,
    /// The SHA-256 of its settings.
    settings_digest: String,
    /// `enforce` or `shadow`.
    mode: &'static str,
    /// The actions that it is asked about.
    actions: Vec<&'static str>,
    /// The paths that it is asked about.
    paths: Vec<String>,
    /// The interfaces that it imports: all that it can see.
    inputs: Vec<String>,
    /// Wall-clock time of one call, in milliseconds.
    deadline_ms: u128,
    /// Linear memory, in bytes.
    memory_bytes: usize,
    /// The generation that it belongs to.
    generation: u64,
    /// When the generation was loaded.
    #[schema(value_type = String, format = DateTime)]
    loaded_at: Timestamp,
    /// Calls since then.
    calls: u64,
    /// Calls that denied, failures included.
    denials: u64,
    /// In shadow mode: answers that differed from the decision.
    disagreements: u64,
    /// Half of the calls took at most this, in microseconds.
    p50_us: Option<f64>,
    /// 99 of 100 calls took at most this, in microseconds.
    p99_us: Option<f64>,
    /// In shadow mode: the last answers that differed about this tenant's secrets, newest first, 100 at most. The audit
    /// log has all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    latest_disagreements: Vec<DisagreementBody>,
}

/// An answer of a shadow module that differed from what was decided.
#[derive(Serialize, ToSchema)]
pub struct DisagreementBody {
    /// When the request arrived.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// The request, as in the audit log.
    request_id: String,
    /// What was asked for.
    action: &'static str,
    /// Where.
    path: String,
    /// What the module would have decided: `allow` or `deny`.
    would: &'static str,
}

/// The policies in force.
#[derive(Serialize, ToSchema)]
pub struct PoliciesBody {
    /// The modules, in the manifest's order.
    policies: Vec<PolicyBody>,
}

/// What serves, and how it came to that.
#[derive(Serialize, ToSchema)]
pub struct PolicyStatusBody {
    /// The generation in force.
    generation: u64,
    /// SHA-256 of its manifest and files.
    digest: String,
    /// When it was loaded.
    #[schema(value_type = String, format = DateTime)]
    loaded_at: Timestamp,
    /// How many modules it has.
    modules: usize,
    /// Whether the policy directory holds what is in force: false after a reload that was refused.
    up_to_date: bool,
    /// Generations in memory: that in force, and those that requests still hold.
    live_generations: usize,
    /// What became of the last reload.
    last_reload: ReloadBody,
}

/// What became of a reload.
#[derive(Serialize, ToSchema)]
pub struct ReloadBody {
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// `start`, `watch`, `signal` or `request`.
    trigger: &'static str,
    /// `loaded`, `unchanged`, `rejected` or `unrecorded`.
    result: &'static str,
    /// The generation in force afterwards.
    generation: u64,
    /// Everything that is wrong with the policy directory.
    errors: Vec<String>,
    /// How long it took, in milliseconds.
    duration_ms: f64,
}

impl From<Report> for ReloadBody {
    fn from(report: Report) -> Self {
        Self {
            at: report.at,
            trigger: report.trigger.as_str(),
            result: report.outcome.as_str(),
            generation: report.generation,
            errors: report.problems,
            duration_ms: report.took.as_secs_f64() * 1e3,
        }
    }
}

/// Tells which generation serves, and what became of the last reload.
#[utoipa::path(get, path = "/v1/policies/status", tag = "policies", operation_id = "policy_status",
    responses((status = 200, body = PolicyStatusBody), (status = "4XX", body = ErrorEnvelope)))]
pub async fn status(State(app): State<App>, _: Caller, _: NoQuery) -> Response {
    let policies = app.vault.policies();
    let (set, last) = (policies.current(), policies.last_reload());
    reply(&PolicyStatusBody {
        generation: set.generation,
        digest: set.digest.clone(),
        loaded_at: set.loaded_at,
        modules: set.modules.len(),
        up_to_date: last.outcome.is_up_to_date(),
        live_generations: policies.live_generations(),
        last_reload: last.into(),
    })
}

/// Takes the policy directory as it is now; answers when that is done. A directory with a mistake changes nothing.
#[utoipa::path(post, path = "/v1/policies/reload", tag = "policies", operation_id = "reload_policies",
    responses((status = 200, body = ReloadBody), (status = "4XX", body = ErrorEnvelope)))]
pub async fn reload(State(app): State<App>, caller: Caller, _: NoQuery) -> Result<Response, ApiError> {
    let report = app.vault.reload_policies(Trigger::Request, Some(&caller.vault)).await?;
    if report.outcome == ReloadOutcome::Rejected {
        let message = "The policy directory is refused: the old policies serve on";
        let details = json!({ "generation": report.generation, "errors": report.problems });
        return Err(ApiError { recorded: true, ..ApiError::new("policy_rejected", message).with_details(details) });
    }
    Ok(reply(&ReloadBody::from(report)))
}

/// Lists the policy modules in force.
#[utoipa::path(get, path = "/v1/policies", tag = "policies", operation_id = "list_policies",
    responses((status = 200, body = PoliciesBody), (status = "4XX", body = ErrorEnvelope)))]
pub async fn list(State(app): State<App>, _: Caller, _: NoQuery) -> Response {
    let set = app.vault.policies().current();
    let describe = |module| describe(module, set.generation, set.loaded_at);
    reply(&PoliciesBody { policies: set.modules.iter().map(describe).collect() })
}

/// Describes one policy module.
#[utoipa::path(get, path = "/v1/policies/{name}", tag = "policies", operation_id = "describe_policy",
    params(("name" = String, Path, description = "The module's name in the manifest")),
    responses((status = 200, body = PolicyBody), (status = "4XX", body = ErrorEnvelope)))]
pub async fn describe_one(
    State(app): State<App>,
    caller: Caller,
    _: NoQuery,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    describe_named(&app, &caller, &name)
}

/// As [`describe_one`], of a policy that is named as the dry run is.
pub async fn describe_test(State(app): State<App>, caller: Caller, _: NoQuery) -> Result<Response, ApiError> {
    describe_named(&app, &caller, "test")
}

fn describe_named(app: &App, caller: &Caller, name: &str) -> Result<Response, ApiError> {
    let set = app.vault.policies().current();
    let module = set.modules.iter().find(|module| module.reference.name == name);
    let module = module.ok_or_else(|| ApiError::new("policy_not_found", "No policy of this name is in force"))?;
    let latest = module.stats.latest_disagreements(&caller.vault.principal.tenant);
    let latest_disagreements = latest.into_iter().map(DisagreementBody::from).collect();
    Ok(reply(&PolicyBody { latest_disagreements, ..describe(module, set.generation, set.loaded_at) }))
}

impl From<Disagreement> for DisagreementBody {
    fn from(disagreement: Disagreement) -> Self {
        Self {
            at: disagreement.at,
            request_id: disagreement.request_id.to_string(),
            action: disagreement.action.as_str(),
            path: disagreement.path.as_str().to_owned(),
            would: disagreement.would,
        }
    }
}

fn describe(module: &Module, generation: u64, loaded_at: Timestamp) -> PolicyBody {
    let micros = |share| module.stats.quantile(share).map(|took| took.as_secs_f64() * 1e6);
    let actions = module.entry.actions.as_ref();
    PolicyBody {
        name: module.reference.name.clone(),
        digest: module.reference.digest.clone(),
        settings_digest: module.settings_digest.clone(),
        mode: module.mode.as_str(),
        actions: actions.map_or_else(|| vec!["*"], |actions| actions.iter().map(|action| action.as_str()).collect()),
        paths: module.entry.paths.iter().map(|pattern| pattern.as_str().to_owned()).collect(),
        inputs: module.template.imports.clone(),
        deadline_ms: module.entry.deadline.as_millis(),
        memory_bytes: module.entry.memory,
        generation,
        loaded_at,
        calls: module.stats.calls(),
        denials: module.stats.denials(),
        disagreements: module.stats.disagreements(),
        p50_us: micros(0.5),
        p99_us: micros(0.99),
        latest_disagreements: Vec::new(),
    }
}

/// A decision to be tried.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TestBody {
    /// Who would ask. Their tenant is the caller's.
    #[serde(deserialize_with = "object")]
    identity: TestIdentity,
    /// `read`, `write`, `delete`, `list` or `admin`.
    action: String,
    /// The path.
    path: String,
    /// From where and when they would ask.
    #[serde(default, deserialize_with = "object")]
    context: TestContext,
    /// What would be there: `exists`, `secret_type`, `version`, `owner`, `tags`, `custom`, `created_by`, `created_at`,
    /// `updated_at`, `expires_at`. A secret without tags or owner where absent, none at all where `null`; the store is
    /// not asked.
    #[serde(default = "some_secret", deserialize_with = "maybe_object")]
    #[schema(value_type = Option<Object>)]
    secret: Option<SecretFacts>,
    /// Names of the top-level fields that would be written.
    #[serde(default)]
    written_fields: Vec<String>,
}

#[expect(clippy::unnecessary_wraps, reason = "the default of a field that may be null")]
fn some_secret() -> Option<SecretFacts> {
    Some(SecretFacts::default())
}

/// Who would ask.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TestIdentity {
    /// `user:…` or `sa:…`.
    id: String,
    /// Their groups.
    #[serde(default)]
    groups: Vec<String>,
    /// What their token would allow. Policies may ask for it; the dry run itself does not.
    #[serde(default)]
    scopes: Vec<String>,
    /// The claims of their token; `sub` is their id where absent.
    #[serde(default)]
    #[schema(value_type = Object)]
    claims: Map<String, Value>,
    /// When they would have authenticated.
    #[schema(value_type = Option<String>, format = DateTime)]
    authenticated_at: Option<Timestamp>,
    /// How (RFC 8176), such as `pwd` and `otp`.
    #[serde(default)]
    authentication_methods: Vec<String>,
}

/// From where and when they would ask.
#[derive(Deserialize, ToSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct TestContext {
    /// Their address.
    #[schema(value_type = Option<String>)]
    source_ip: Option<std::net::IpAddr>,
    /// A second factor was verified just then: `mfa` is among the methods, and `authenticated_at` is `time`.
    mfa: bool,
    /// When; now where absent.
    #[schema(value_type = Option<String>, format = DateTime)]
    time: Option<Timestamp>,
}

/// A decision that was tried.
#[derive(Serialize, ToSchema)]
pub struct TestAnswer {
    /// The decision; each module's own answer, reason, rules, obligations, inputs, notes and time; how they combined.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    explanation: Explanation,
    /// The generation of policies that decided.
    generation: u64,
}

/// Tries a decision. Nothing is accessed, the modules' counters do not count it, and what is recorded is that somebody
/// tried, not whom or what.
#[utoipa::path(post, path = "/v1/policies/test", tag = "policies", operation_id = "test_policies",
    request_body = TestBody, responses((status = 200, body = TestAnswer), (status = "4XX", body = ErrorEnvelope),
        (status = "5XX", body = ErrorEnvelope)))]
pub async fn test(State(app): State<App>, caller: Caller, _: NoQuery, request: Request) -> Result<Response, ApiError> {
    let body: TestBody = JsonBody::read(request, MAX_TEST_BYTES).await?.parse()?;
    let scenario = body.scenario(&caller);
    let (inquiry, subject, action) = scenario.pose(caller.vault.context.now).map_err(|problems| refusal(&problems))?;
    let set = &caller.vault.policies;
    let tried = app.vault.policies().explain(set, inquiry, action, subject).await;
    let explanation = tried.map_err(|busy| ApiError::new("service_unavailable", busy.to_string()))?;
    Ok(reply(&TestAnswer { explanation, generation: set.generation }))
}

impl TestBody {
    fn scenario(self, caller: &Caller) -> Scenario {
        let TestContext { source_ip, mfa, time } = self.context;
        let now = time.unwrap_or(caller.vault.context.now);
        let mut principal = PrincipalFacts {
            id: self.identity.id,
            tenant: caller.vault.principal.tenant.to_string(),
            groups: self.identity.groups,
            scopes: self.identity.scopes,
            claims: self.identity.claims,
            authenticated_at: self.identity.authenticated_at,
            authentication_methods: self.identity.authentication_methods,
        };
        if mfa {
            principal.authenticated_at = Some(now);
            if !principal.authentication_methods.iter().any(|method| method == SECOND_FACTOR) {
                principal.authentication_methods.push(SECOND_FACTOR.to_owned());
            }
        }
        Scenario {
            action: self.action,
            path: self.path,
            principal,
            context: ContextFacts { now: Some(now), source_ip },
            secret: self.secret.unwrap_or_else(SecretFacts::absent),
            written_fields: self.written_fields,
        }
    }
}

/// Names the fields as the body does.
fn refusal(problems: &[Problem]) -> ApiError {
    if let Some(problem) = problems.iter().find(|problem| problem.field == "path") {
        return ApiError::new("invalid_path", format!("This is no secret path: {}", problem.wanted));
    }
    let field = |problem: &Problem| problem.field.replacen("principal.", "identity.", 1);
    let lines: Vec<_> = problems.iter().map(|problem| format!("{}: {}", field(problem), problem.wanted)).collect();
    let fields: Map<_, _> = problems.iter().map(|problem| (field(problem), problem.wanted.into())).collect();
    ApiError::new("validation_error", lines.join("; ")).with_details(json!({ "fields": fields }))
}
