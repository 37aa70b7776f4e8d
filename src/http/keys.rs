//! Turning keys. No key ever arrives or leaves here.

use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    error::{ApiError, ErrorEnvelope},
    frame::{Caller, NoQuery},
    json::{JsonBody, reply},
};
use crate::{
    domain::{GenerationUse, TenantId, Timestamp},
    vault::{KeyStatus, RewrapOptions, RewrapProgress, WhoseKeys},
};

/// Largest body of a call about keys.
const MAX_BYTES: usize = 4 * 1024;

/// How the keys stand.
#[derive(Serialize, ToSchema)]
pub struct KeysBody {
    /// The root key; for the tenant `default` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    root_key: Option<RootKeyBody>,
    /// The tenants' keys.
    tenants: Vec<TenantKeysBody>,
    /// The last re-wrapping since the server started.
    rewrap: Option<RewrapBody>,
}

/// The root key, by what may be known of it.
#[derive(Serialize, ToSchema)]
pub struct RootKeyBody {
    /// A name for the key that tells nothing of it.
    fingerprint: String,
    /// The kind of place that it came from, such as `file`.
    source: &'static str,
    /// Whether it is the vault's: false where it was replaced through another server.
    current: bool,
}

/// One tenant's keys.
#[derive(Serialize, ToSchema)]
pub struct TenantKeysBody {
    /// The tenant.
    tenant: String,
    /// The generation that new values are sealed under.
    newest: u32,
    /// Every generation that is kept.
    generations: Vec<GenerationBody>,
}

/// One generation of a tenant's keys.
#[derive(Serialize, ToSchema)]
pub struct GenerationBody {
    /// 1, 2, …
    generation: u32,
    /// How many versions of secrets need it.
    records: u64,
}

/// A re-wrapping.
#[derive(Serialize, ToSchema)]
pub struct RewrapBody {
    /// `running`, `done` or `stopped`.
    state: &'static str,
    /// The tenant whose keys it is about; none where it is about all.
    tenant: Option<String>,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<Timestamp>,
    /// How many data keys were under older generations when it began.
    total: u64,
    /// How many were moved.
    moved: u64,
    /// How many could not be opened, and stay as they are.
    unreadable: u64,
    /// How many generations were removed.
    dropped: u64,
}

/// Whose keys get a new generation.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateBody {
    /// The tenant; the caller's where absent.
    tenant: Option<String>,
    /// Every tenant's.
    #[serde(default)]
    all: bool,
}

/// Whose data keys are moved, and what then.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RewrapRequest {
    /// The tenant; the caller's where absent.
    tenant: Option<String>,
    /// Every tenant's.
    #[serde(default)]
    all: bool,
    /// Whether to remove the generations that nothing needs any more.
    #[serde(default)]
    drop_unused: bool,
}

/// New generations.
#[derive(Serialize, ToSchema)]
pub struct RotatedBody {
    /// The tenants with the generations that new values are sealed under.
    tenants: Vec<NewestBody>,
}

/// A tenant's newest generation.
#[derive(Serialize, ToSchema)]
pub struct NewestBody {
    /// The tenant.
    tenant: String,
    /// The generation.
    newest: u32,
}

/// A new root key.
#[derive(Serialize, ToSchema)]
pub struct RotatedRootBody {
    /// The fingerprint of the key that is in force now.
    fingerprint: String,
    /// What the operator has to do next.
    next_step: &'static str,
}

/// Tells which generations of keys there are, what needs them, and how far a re-wrapping is.
#[utoipa::path(get, path = "/v1/keys", tag = "keys", operation_id = "key_status",
    responses((status = 200, body = KeysBody), (status = "4XX", body = ErrorEnvelope),
        (status = "5XX", body = ErrorEnvelope)))]
pub async fn status(State(app): State<App>, caller: Caller, _: NoQuery) -> Result<Response, ApiError> {
    let KeyStatus { generations, root, root_is_current, rewrap } = app.vault.key_status(&caller.vault).await?;
    let root_key = root.map(|(fingerprint, source)| RootKeyBody { fingerprint, source, current: root_is_current });
    Ok(reply(&KeysBody { root_key, tenants: by_tenant(&generations), rewrap: rewrap.map(RewrapBody::from) }))
}

/// Makes a new generation of a tenant's keys; new values are sealed under it at once.
#[utoipa::path(post, path = "/v1/keys/rotate", tag = "keys", operation_id = "rotate_keys",
    request_body = RotateBody, responses((status = 200, body = RotatedBody), (status = "4XX", body = ErrorEnvelope),
        (status = "5XX", body = ErrorEnvelope)))]
pub async fn rotate(
    State(app): State<App>,
    caller: Caller,
    _: NoQuery,
    request: Request,
) -> Result<Response, ApiError> {
    let RotateBody { tenant, all } = JsonBody::read(request, MAX_BYTES).await?.parse()?;
    let rotated = app.vault.rotate_keys(&caller.vault, &whose(&caller, tenant, all)?).await?;
    let newest = rotated.into_iter().map(|one| NewestBody { tenant: one.tenant.to_string(), newest: one.generation });
    Ok(reply(&RotatedBody { tenants: newest.collect() }))
}

/// Begins to move the data keys of old values under the newest generation; no value is encrypted anew.
/// `GET /v1/keys` tells how far it is.
#[utoipa::path(post, path = "/v1/keys/rewrap", tag = "keys", operation_id = "rewrap_keys",
    request_body = RewrapRequest, responses((status = 202, body = RewrapBody), (status = "4XX", body = ErrorEnvelope),
        (status = "5XX", body = ErrorEnvelope)))]
pub async fn rewrap(
    State(app): State<App>,
    caller: Caller,
    _: NoQuery,
    request: Request,
) -> Result<Response, ApiError> {
    let RewrapRequest { tenant, all, drop_unused } = JsonBody::read(request, MAX_BYTES).await?.parse()?;
    let whose = whose(&caller, tenant, all)?;
    let progress = app.vault.rewrap_keys(&caller.vault, whose, RewrapOptions { drop_unused }).await?;
    Ok((StatusCode::ACCEPTED, reply(&RewrapBody::from(progress))).into_response())
}

/// Wraps all keys under the root key that the server finds at the place configured for the next one.
#[utoipa::path(post, path = "/v1/keys/rotate-root", tag = "keys", operation_id = "rotate_root_key",
    responses((status = 200, body = RotatedRootBody), (status = "4XX", body = ErrorEnvelope),
        (status = "5XX", body = ErrorEnvelope)))]
pub async fn rotate_root(State(app): State<App>, caller: Caller, _: NoQuery) -> Result<Response, ApiError> {
    let fingerprint = app.vault.rotate_root(&caller.vault).await?;
    let next_step = "Make the new root key the configured one ([root_key]), start every server of this vault anew, and \
                     issue new tokens where the server's own issuer is used";
    Ok(reply(&RotatedRootBody { fingerprint, next_step }))
}

/// Seals the server: it forgets every key, and answers 503 until an operator unseals it on its own machine.
#[utoipa::path(post, path = "/v1/seal", tag = "keys", operation_id = "seal",
    responses((status = 200), (status = "4XX", body = ErrorEnvelope), (status = "5XX", body = ErrorEnvelope)))]
pub async fn seal(State(app): State<App>, caller: Caller, _: NoQuery) -> Result<Response, ApiError> {
    app.vault.record_sealing(&caller.vault).await?;
    app.sealer.seal();
    Ok(reply(&serde_json::json!({ "sealed": true })))
}

fn whose(caller: &Caller, tenant: Option<String>, all: bool) -> Result<WhoseKeys, ApiError> {
    match (tenant, all) {
        (Some(_), true) => Err(ApiError::invalid("`tenant` and `all` exclude one another")),
        (None, true) => Ok(WhoseKeys::All),
        (None, false) => Ok(WhoseKeys::Of(caller.vault.principal.tenant.clone())),
        (Some(name), false) => {
            let tenant = TenantId::parse(&name).ok_or_else(|| ApiError::invalid("`tenant` is no tenant's name"))?;
            Ok(WhoseKeys::Of(tenant))
        }
    }
}

fn by_tenant(generations: &[GenerationUse]) -> Vec<TenantKeysBody> {
    let of_one = |of_tenant: &[GenerationUse]| {
        let (first, last) = (of_tenant.first()?, of_tenant.last()?);
        let generation = |one: &GenerationUse| GenerationBody { generation: one.generation, records: one.records };
        let generations = of_tenant.iter().map(generation).collect();
        Some(TenantKeysBody { tenant: first.tenant.to_string(), newest: last.generation, generations })
    };
    generations.chunk_by(|left, right| left.tenant == right.tenant).filter_map(of_one).collect()
}

impl From<RewrapProgress> for RewrapBody {
    fn from(progress: RewrapProgress) -> Self {
        Self {
            state: progress.state.as_str(),
            tenant: match progress.whose {
                WhoseKeys::Of(tenant) => Some(tenant.to_string()),
                WhoseKeys::All => None,
            },
            started_at: progress.started_at,
            finished_at: progress.finished_at,
            total: progress.total,
            moved: progress.moved,
            unreadable: progress.unreadable,
            dropped: progress.dropped,
        }
    }
}
