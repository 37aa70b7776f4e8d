//! One secret at a time, and their listing.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{json, value::RawValue};
use zeroize::Zeroizing;

use super::{
    App,
    error::{ApiError, ErrorEnvelope},
    frame::{Caller, NoQuery, Params, Target},
    json::{JsonBody, reply},
    wire::{
        DeleteQuery, Deleted, Description, DestroyBody, Destroyed, ListBody, ListQuery, MetadataPatch, PutBody,
        ReadQuery, RollbackBody, Secret, VersionItem, Versions, Written, raw_metadata,
    },
};
use crate::{
    domain::{
        InvalidMetadata, MAX_PATH_BYTES, MAX_VALUE_BYTES, Metadata, MetadataText, SecretType, SecretValue, Span,
        Version,
    },
    store::Committed,
    vault::{Found, PutRequest, ReadOutcome, Release, field_names},
};

/// Largest body of a write: the value and what goes with it.
const MAX_PUT_BYTES: usize = MAX_VALUE_BYTES + 128 * 1024;
/// Largest body of every other call.
const MAX_SMALL_BYTES: usize = 128 * 1024;
const MAX_VERSIONS: u32 = 1_000;
const MAX_PAGE: usize = 1_000;
const PAGE: usize = 100;

/// Reads a secret.
#[utoipa::path(get, path = "/v1/secrets/{path}", tag = "secrets", operation_id = "read_secret",
    params(("path" = String, Path, description = "The secret's path"), ReadQuery),
    responses((status = 200, body = Secret), (status = 304, description = "The caller has it already"),
        (status = "4XX", body = ErrorEnvelope), (status = "5XX", body = ErrorEnvelope)))]
pub async fn read(
    State(app): State<App>,
    caller: Caller,
    Target(path): Target,
    Params(query): Params<ReadQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let version = query.version.map(version_of).transpose()?;
    let answer = |outcome: ReadOutcome| shown(&outcome?);
    app.vault.read(&caller.vault, path, version, entity_tags(&headers), answer).await?
}

fn shown(found: &Found) -> Result<Response, ApiError> {
    let tag = HeaderValue::from_str(&found.entity_tag()).map_err(|_| ApiError::new("internal_error", ""))?;
    let mut response = match &found.release {
        Release::Value(value) => {
            let (head, record) = (&found.record.head, found.record.version.as_ref());
            reply(&Secret {
                path: head.path.as_str(),
                version: found.version,
                secret_type: record.map_or(head.secret_type, |record| record.secret_type),
                data: raw(value)?,
                metadata: raw_metadata(&head.metadata),
                created_at: head.created_at,
                created_by: &head.created_by,
                updated_at: head.updated_at,
                updated_by: &head.updated_by,
                expires_at: record.and_then(|record| record.expires_at),
            })
        }
        Release::NotModified | Release::Withheld => StatusCode::NOT_MODIFIED.into_response(),
    };
    response.headers_mut().insert(header::ETAG, tag);
    Ok(response)
}

/// Writes a new version of a secret.
#[utoipa::path(put, path = "/v1/secrets/{path}", tag = "secrets", operation_id = "write_secret",
    params(("path" = String, Path, description = "The secret's path")), request_body = PutBody,
    responses((status = 201, body = Written, description = "The first version"), (status = 200, body = Written),
        (status = "4XX", body = ErrorEnvelope), (status = "5XX", body = ErrorEnvelope)))]
pub async fn put(
    State(app): State<App>,
    caller: Caller,
    Target(path): Target,
    _: NoQuery,
    request: Request,
) -> Result<Response, ApiError> {
    let body = JsonBody::read(request, MAX_PUT_BYTES).await?;
    let put = put_request(&caller, body.parse()?)?;
    let committed = app.vault.put(&caller.vault, path, put).await?;
    Ok(written(committed))
}

/// Deletes a secret: hidden until restored, or for good.
#[utoipa::path(delete, path = "/v1/secrets/{path}", tag = "secrets", operation_id = "delete_secret",
    params(("path" = String, Path, description = "The secret's path"), DeleteQuery),
    responses((status = 200, body = Deleted), (status = 204, description = "All versions and their keys are gone"),
        (status = "4XX", body = ErrorEnvelope), (status = "5XX", body = ErrorEnvelope)))]
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    Target(path): Target,
    Params(query): Params<DeleteQuery>,
) -> Result<Response, ApiError> {
    if query.permanent {
        app.vault.purge(&caller.vault, path).await?;
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let head = app.vault.soft_delete(&caller.vault, path).await?.head;
    let (deleted_at, recoverable_until) = head.deleted.ok_or_else(|| ApiError::new("internal_error", ""))?;
    Ok(reply(&Deleted { path: head.path.as_str().to_owned(), deleted_at, recoverable_until }))
}

/// Undoes a delete.
#[utoipa::path(post, path = "/v1/restore/{path}", tag = "secrets", operation_id = "restore_secret",
    params(("path" = String, Path, description = "The secret's path")),
    responses((status = 200, body = Description), (status = "4XX", body = ErrorEnvelope),
        (status = "5XX", body = ErrorEnvelope)))]
pub async fn restore(
    State(app): State<App>,
    caller: Caller,
    Target(path): Target,
    _: NoQuery,
) -> Result<Response, ApiError> {
    let head = app.vault.restore(&caller.vault, path).await?.head;
    Ok(reply(&Description::from(head)))
}

/// Lists secrets. Those that the caller may not list are absent.
#[utoipa::path(get, path = "/v1/secrets", tag = "secrets", operation_id = "list_secrets", params(ListQuery),
    responses((status = 200, body = ListBody), (status = "4XX", body = ErrorEnvelope),
        (status = "5XX", body = ErrorEnvelope)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Params(query): Params<ListQuery>,
) -> Result<Response, ApiError> {
    let limit = page_limit(query.limit, PAGE)?;
    if query.prefix.len() > MAX_PATH_BYTES || !query.prefix.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(ApiError::new("invalid_path", "The prefix is no beginning of a path"));
    }
    let page = app.vault.list(&caller.vault, query.prefix, query.cursor.as_deref(), limit).await?;
    let has_more = page.cursor.is_some();
    let secrets = page.secrets.into_iter().map(|record| Arc::unwrap_or_clone(record).head.into()).collect();
    Ok(reply(&ListBody { secrets, cursor: page.cursor, has_more }))
}

/// Describes a secret: everything but its value.
#[utoipa::path(get, path = "/v1/metadata/{path}", tag = "secrets", operation_id = "describe_secret",
    params(("path" = String, Path, description = "The secret's path")),
    responses((status = 200, body = Description), (status = "4XX", body = ErrorEnvelope),
        (status = "5XX", body = ErrorEnvelope)))]
pub async fn metadata(
    State(app): State<App>,
    caller: Caller,
    Target(path): Target,
    _: NoQuery,
) -> Result<Response, ApiError> {
    let head = app.vault.metadata(&caller.vault, path).await?;
    Ok(reply(&Description::from(head)))
}

/// Patches a secret's metadata; no new version.
#[utoipa::path(patch, path = "/v1/metadata/{path}", tag = "secrets",
    params(("path" = String, Path, description = "The secret's path")), request_body = MetadataPatch,
    responses((status = 200, body = Description), (status = "4XX", body = ErrorEnvelope),
        (status = "5XX", body = ErrorEnvelope)))]
pub async fn patch_metadata(
    State(app): State<App>,
    caller: Caller,
    Target(path): Target,
    _: NoQuery,
    request: Request,
) -> Result<Response, ApiError> {
    let changes: MetadataPatch = JsonBody::read(request, MAX_SMALL_BYTES).await?.parse()?;
    changes.apply(Metadata::default()).check().map_err(|broken| invalid_metadata(&broken))?;
    let edit = Box::new(move |before: &MetadataText| {
        let after = changes.apply(before.parse());
        after.check().ok().map(|()| MetadataText::from(&after))
    });
    let head = app.vault.edit_metadata(&caller.vault, path, edit).await?.head;
    Ok(reply(&Description::from(head)))
}

/// Lists a secret's versions, newest first.
#[utoipa::path(get, path = "/v1/versions/{path}", tag = "secrets", operation_id = "list_versions",
    params(("path" = String, Path, description = "The secret's path")),
    responses((status = 200, body = Versions), (status = "4XX", body = ErrorEnvelope),
        (status = "5XX", body = ErrorEnvelope)))]
pub async fn versions(
    State(app): State<App>,
    caller: Caller,
    Target(path): Target,
    _: NoQuery,
) -> Result<Response, ApiError> {
    let now = caller.vault.context.now;
    let versions = app.vault.versions(&caller.vault, path.clone()).await?;
    let versions = versions.into_iter().map(|record| VersionItem::at(record, now)).collect();
    Ok(reply(&Versions { path: path.as_str().to_owned(), versions }))
}

/// Writes an old version's value as a new version.
#[utoipa::path(post, path = "/v1/rollback/{path}", tag = "secrets", operation_id = "roll_back",
    params(("path" = String, Path, description = "The secret's path")), request_body = RollbackBody,
    responses((status = 200, body = Written), (status = "4XX", body = ErrorEnvelope),
        (status = "5XX", body = ErrorEnvelope)))]
pub async fn rollback(
    State(app): State<App>,
    caller: Caller,
    Target(path): Target,
    _: NoQuery,
    request: Request,
) -> Result<Response, ApiError> {
    let body: RollbackBody = JsonBody::read(request, MAX_SMALL_BYTES).await?.parse()?;
    let committed = app.vault.roll_back(&caller.vault, path, version_of(body.version)?).await?;
    Ok(written(committed))
}

/// Destroys versions: their values and keys are gone for good.
#[utoipa::path(post, path = "/v1/destroy/{path}", tag = "secrets", operation_id = "destroy_versions",
    params(("path" = String, Path, description = "The secret's path")), request_body = DestroyBody,
    responses((status = 200, body = Destroyed), (status = "4XX", body = ErrorEnvelope),
        (status = "5XX", body = ErrorEnvelope)))]
pub async fn destroy(
    State(app): State<App>,
    caller: Caller,
    Target(path): Target,
    _: NoQuery,
    request: Request,
) -> Result<Response, ApiError> {
    let body: DestroyBody = JsonBody::read(request, MAX_SMALL_BYTES).await?.parse()?;
    let mut destroyed = body.versions.into_iter().map(version_of).collect::<Result<Vec<_>, _>>()?;
    destroyed.sort_unstable();
    destroyed.dedup();
    if destroyed.is_empty() || destroyed.len() > MAX_VERSIONS as usize {
        return Err(ApiError::invalid("1 to 1,000 versions are wanted"));
    }
    let head = app.vault.destroy(&caller.vault, path, destroyed.clone()).await?.head;
    Ok(reply(&Destroyed { path: head.path.as_str().to_owned(), destroyed }))
}

/// A version's number as a client sent it.
pub(super) fn version_of(number: i64) -> Result<Version, ApiError> {
    Version::new(number).ok_or_else(|| ApiError::invalid("A version is a whole number from 1"))
}

pub(super) fn page_limit(limit: Option<usize>, default: usize) -> Result<usize, ApiError> {
    let limit = limit.unwrap_or(default);
    if (1..=MAX_PAGE).contains(&limit) { Ok(limit) } else { Err(ApiError::invalid("limit: 1 to 1,000 are wanted")) }
}

/// A stored value on its way out. It was a JSON object when it was taken in, and it authenticated.
pub(super) fn raw(value: &SecretValue) -> Result<&RawValue, ApiError> {
    serde_json::from_slice(value.expose()).map_err(|_| ApiError::new("unreadable", ""))
}

fn put_request(caller: &Caller, body: PutBody<'_>) -> Result<PutRequest, ApiError> {
    let data = body.data.get().as_bytes();
    if data.len() > MAX_VALUE_BYTES {
        return Err(ApiError::new("payload_too_large", "A secret's data may have 1 MiB as JSON"));
    }
    let fields = field_names(data).ok_or_else(|| ApiError::invalid("The field `data` must be a JSON object"))?;
    let unknown = || ApiError::new("invalid_secret_type", "kv, json, certificate, ssh_key or api_key is wanted");
    let secret_type = body.secret_type.map(|word| SecretType::parse(&word).ok_or_else(unknown)).transpose()?;
    let metadata = body.metadata.map(Metadata::from);
    metadata.as_ref().map_or(Ok(()), Metadata::check).map_err(|broken| invalid_metadata(&broken))?;
    let options = body.options;
    let bad_span = |error: crate::domain::InvalidDuration| ApiError::new("invalid_duration", error.to_string());
    let expires_in = options.expires_in.map(|text| text.parse::<Span>().map_err(bad_span)).transpose()?;
    if options.max_versions.is_some_and(|most| !(1..=MAX_VERSIONS).contains(&most)) {
        return Err(unprocessable("options.max_versions", "1 to 1,000 are wanted"));
    }
    if options.expected_version.is_some_and(|expected| expected < 0) {
        return Err(unprocessable("options.expected_version", "0 or a version is wanted"));
    }
    Ok(PutRequest {
        data: SecretValue::new(Zeroizing::new(data.to_vec())),
        fields,
        secret_type,
        metadata,
        expires_at: expires_in.map(|Span(span)| caller.vault.context.now.plus(span)),
        max_versions: options.max_versions,
        expected_version: options.expected_version,
    })
}

fn unprocessable(field: &str, wanted: &str) -> ApiError {
    let details = json!({ "fields": { field: wanted } });
    ApiError::new("validation_error", format!("{field}: {wanted}")).with_details(details)
}

fn invalid_metadata(broken: &[InvalidMetadata]) -> ApiError {
    let fields: serde_json::Map<_, _> = broken.iter().map(|b| (b.field.to_owned(), b.limit.into())).collect();
    ApiError::new("validation_error", "The metadata is beyond its limits").with_details(json!({ "fields": fields }))
}

fn written(committed: Committed) -> Response {
    let head = committed.head;
    let status = if committed.created { StatusCode::CREATED } else { StatusCode::OK };
    let body = Written {
        path: head.path.as_str().to_owned(),
        version: head.latest,
        secret_type: head.secret_type,
        created_at: head.updated_at,
        expires_at: head.expires_at,
    };
    (status, reply(&body)).into_response()
}

/// The tags of `If-None-Match`, compared weakly as RFC 9110 asks (section 13.1.2).
fn entity_tags(headers: &HeaderMap) -> Vec<String> {
    let lists = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(|tag| tag.trim().trim_start_matches("W/").to_owned()).collect()
}
