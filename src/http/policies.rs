//! The policies in force.

use axum::{
    extract::{Path, State},
    response::Response,
};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::{
    App,
    error::{ApiError, ErrorEnvelope},
    frame::{Caller, NoQuery},
    json::reply,
};
use crate::{
    domain::Timestamp,
    policy::{Module, Outcome, Report, Trigger},
};

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
    if report.outcome == Outcome::Rejected {
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
    _: Caller,
    _: NoQuery,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let set = app.vault.policies().current();
    let module = set.modules.iter().find(|module| module.reference.name == name);
    let module = module.ok_or_else(|| ApiError::new("policy_not_found", "No policy of this name is in force"))?;
    Ok(reply(&describe(module, set.generation, set.loaded_at)))
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
    }
}
