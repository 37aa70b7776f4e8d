//! The policies in force.

use axum::{
    extract::{Path, State},
    response::Response,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    App,
    error::{ApiError, ErrorEnvelope},
    frame::{Caller, NoQuery},
    json::reply,
};
use crate::{
    domain::Timestamp,
    policy::{Mode, Module},
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
        mode: if module.mode == Mode::Shadow { "shadow" } else { "enforce" },
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
