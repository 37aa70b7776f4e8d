//! The audit log's query.

use std::net::IpAddr;

use axum::{extract::State, response::Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    error::{ApiError, ErrorEnvelope},
    frame::{Caller, Params},
    json::reply,
    secrets::page_limit,
};
use crate::{audit::LogEntry, domain::Timestamp, vault::AuditFilter};

const PAGE: usize = 100;

/// Which events are wanted. Every parameter that is given must hold.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Not before this instant (RFC 3339).
    pub(super) from: Option<String>,
    /// Before this instant (RFC 3339).
    pub(super) to: Option<String>,
    /// Of these actions, separated by commas.
    pub(super) action: Option<String>,
    /// Of this principal, such as `sa:checkout`.
    pub(super) identity_id: Option<String>,
    /// `user` or `service_account`.
    pub(super) identity_type: Option<String>,
    /// About paths that start with this.
    pub(super) path_prefix: Option<String>,
    /// Permitted and done, or not.
    pub(super) success: Option<bool>,
    /// From this address.
    pub(super) source_ip: Option<String>,
    /// Of this request.
    pub(super) request_id: Option<String>,
    /// Events on a page: 1 to 1,000, 100 where absent.
    pub(super) limit: Option<usize>,
    /// Where the page before ended.
    pub(super) cursor: Option<String>,
}

/// A page of the audit log.
#[derive(Serialize, ToSchema)]
pub struct AuditBody {
    /// The events, newest first.
    #[schema(value_type = Vec<Object>)]
    logs: Vec<LogEntry>,
    /// Where the next page begins.
    cursor: Option<String>,
    /// Whether there is a next page.
    has_more: bool,
}

/// Queries the audit log of the caller's tenant.
#[utoipa::path(get, path = "/v1/audit/logs", tag = "audit", operation_id = "query_audit_log", params(AuditQuery),
    responses((status = 200, body = AuditBody), (status = "4XX", body = ErrorEnvelope),
        (status = "5XX", body = ErrorEnvelope)))]
pub async fn logs(
    State(app): State<App>,
    caller: Caller,
    Params(query): Params<AuditQuery>,
) -> Result<Response, ApiError> {
    let limit = page_limit(query.limit, PAGE)?;
    let cursor = query.cursor.clone();
    let filter = filter(query)?;
    let page = app.vault.audit_log(&caller.vault, &filter, cursor.as_deref(), limit).await?;
    let has_more = page.cursor.is_some();
    Ok(reply(&AuditBody { logs: page.entries, cursor: page.cursor, has_more }))
}

pub(super) fn filter(query: AuditQuery) -> Result<AuditFilter, ApiError> {
    let instant = |text: Option<String>, name: &str| {
        let bad = |_| ApiError::invalid(format!("{name}: an instant as RFC 3339 writes it is wanted"));
        text.map(|text| text.parse::<Timestamp>().map_err(bad)).transpose()
    };
    let texts = [&query.action, &query.identity_id, &query.identity_type, &query.path_prefix, &query.request_id];
    if texts.into_iter().flatten().any(|text| text.chars().any(char::is_control)) {
        return Err(ApiError::invalid("The query has a control character"));
    }
    let bad_address = |_| ApiError::invalid("source_ip: an address is wanted");
    let source_ip = query.source_ip.map(|text| text.parse::<IpAddr>().map_err(bad_address)).transpose()?;
    let actions = query.action.unwrap_or_default();
    Ok(AuditFilter {
        from: instant(query.from, "from")?,
        to: instant(query.to, "to")?,
        actions: actions.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect(),
        identity_id: query.identity_id,
        identity_type: query.identity_type,
        path_prefix: query.path_prefix,
        success: query.success,
        source_ip: source_ip.map(|ip| ip.to_string()),
        request_id: query.request_id,
    })
}
