//! Who am I, and how is the server.

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    App,
    error::ErrorEnvelope,
    frame::{Caller, NoQuery},
    json::reply,
};
use crate::{domain::Timestamp, telemetry::render};

/// Who the bearer of the token is.
#[derive(Serialize, ToSchema)]
pub struct WhoAmI {
    /// `user:…` or `sa:…`.
    identity_id: String,
    /// `user` or `service_account`.
    identity_type: &'static str,
    /// The tenant.
    tenant_id: String,
    /// What the token allows.
    scopes: Vec<&'static str>,
    /// The groups that the issuer vouches for.
    groups: Vec<String>,
    /// When a second factor was last verified.
    #[schema(value_type = Option<String>, format = DateTime)]
    mfa_verified_at: Option<Timestamp>,
    /// When the token ends.
    #[schema(value_type = String, format = DateTime)]
    token_expires_at: Timestamp,
}

/// Whether the server can serve.
#[derive(Serialize, ToSchema)]
pub struct Readiness {
    /// `ready` or `not_ready`.
    status: &'static str,
    /// The checks that fail.
    failing: Vec<&'static str>,
}

/// Tells the bearer of a token what the server makes of it.
#[utoipa::path(get, path = "/v1/auth/whoami", tag = "identity",
    responses((status = 200, body = WhoAmI), (status = "4XX", body = ErrorEnvelope)))]
pub async fn whoami(caller: Caller, _: NoQuery) -> Response {
    let who = &caller.vault.principal;
    reply(&WhoAmI {
        identity_id: who.id.to_string(),
        identity_type: who.kind.as_str(),
        tenant_id: who.tenant.to_string(),
        scopes: who.scopes.words().collect(),
        groups: who.groups.clone(),
        mfa_verified_at: who.mfa_verified_at(),
        token_expires_at: who.expires_at,
    })
}

/// Answers as long as the process lives.
#[utoipa::path(get, path = "/v1/health", tag = "system", security(()), responses((status = 200)))]
pub async fn health() -> Response {
    reply(&serde_json::json!({ "status": "ok" }))
}

/// Whether the server can serve: database, audit, keys, policies.
#[utoipa::path(get, path = "/v1/health/ready", tag = "system", security(()),
    responses((status = 200, body = Readiness), (status = 503, body = Readiness)))]
pub async fn ready(State(app): State<App>) -> Response {
    let failing = app.vault.failing().await;
    let (status, word) =
        if failing.is_empty() { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "not_ready") };
    (status, reply(&Readiness { status: word, failing })).into_response()
}

/// The program's version.
#[utoipa::path(get, path = "/v1/version", tag = "system", security(()), responses((status = 200)))]
pub async fn version() -> Response {
    reply(&serde_json::json!({ "name": "portcullis", "version": env!("CARGO_PKG_VERSION") }))
}

/// Metrics as `OpenMetrics` text.
#[utoipa::path(get, path = "/v1/metrics", tag = "system", responses((status = 200, body = String)))]
pub async fn metrics(State(app): State<App>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], render(&app.registry)).into_response()
}
