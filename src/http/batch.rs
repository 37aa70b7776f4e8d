//! Many secrets in one call: their values, or their descriptions.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    extract::{Request, State},
    http::{HeaderValue, Method, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{
    App,
    error::{ApiError, ErrorEnvelope},
    frame::{Caller, NoQuery},
    json::{JsonBody, long_reply},
    limits::Category,
    secrets::{page_limit, raw, version_of},
    wire::{
        BatchBody, BatchError, BatchMetadataBody, BatchMetadataReply, BatchReply, BatchSecret, BatchSecretMore,
        Described, Ordered, raw_metadata,
    },
};
use crate::{
    domain::{PathPattern, Record, SecretPath, Version},
    vault::{Asked, BatchOptions, Fault, Found, ReadOutcome, Release, Wanted},
};

/// Most paths of one batch.
const MAX_PATHS: usize = 100;
/// Largest body: a hundred paths of 512 bytes, once in `paths` and once in `versions`.
const MAX_BYTES: usize = 128 * 1024;
const MAX_PAGE: usize = 1_000;
/// About what an answer says beside secrets and errors, of an error, and of a secret beside what has a length of its own,
/// in bytes. Too little costs a copy of the answer.
const AROUND_ALL: usize = 128;
const AN_ERROR: usize = 256;
const A_SECRET: usize = 64;
const MORE_OF_A_SECRET: usize = 160;

/// Reads up to 100 secrets. Partial success is 200.
#[utoipa::path(post, path = "/v1/secrets/batch", tag = "batch", operation_id = "read_batch", request_body = BatchBody,
    responses((status = 200, body = BatchReply), (status = "4XX", body = ErrorEnvelope),
        (status = "5XX", body = ErrorEnvelope)))]
pub async fn read(State(app): State<App>, caller: Caller, _: NoQuery, request: Request) -> Result<Response, ApiError> {
    let body: BatchBody = JsonBody::read(request, MAX_BYTES).await?.parse()?;
    let names = distinct(&body.paths)?;
    let asked = asked(&names, &body)?;
    let units = u32::try_from(names.len()).unwrap_or(u32::MAX);
    caller.draw(Category::Read, units)?;
    let options = BatchOptions { fail_fast: body.options.fail_fast, known_tags: Vec::new(), size: Some(names.len()) };
    let make = |outcomes: Vec<ReadOutcome>| {
        let mut each = names.iter().zip(&outcomes);
        let failed = each.find_map(|(name, outcome)| options.fail_fast.then_some((*name, outcome.as_ref().err()?)));
        let answer = match failed {
            Some((name, fault)) => Err(failed_fast(name, fault)),
            None => answer(&names, &outcomes, body.options.include_metadata),
        };
        (released(&outcomes), answer)
    };
    let read = app.vault.read_batch(&caller.vault, asked, &options, make).await;
    let released = read.as_ref().map_or(0, |(released, _)| *released);
    caller.give_back(Category::Read, units.saturating_sub(released));
    read?.1
}

/// Describes secrets by path or by pattern, without their values.
#[utoipa::path(post, path = "/v1/secrets/batch/metadata", tag = "batch", operation_id = "describe_batch", request_body = BatchMetadataBody,
    responses((status = 200, body = BatchMetadataReply), (status = "4XX", body = ErrorEnvelope),
        (status = "5XX", body = ErrorEnvelope)))]
pub async fn metadata(
    State(app): State<App>,
    caller: Caller,
    _: NoQuery,
    request: Request,
) -> Result<Response, ApiError> {
    let body: BatchMetadataBody = JsonBody::read(request, MAX_BYTES).await?.parse()?;
    let limit = page_limit(body.options.limit, MAX_PAGE)?;
    let wanted = distinct(&body.paths)?.into_iter().map(|name| wanted(name, body.expand_wildcards));
    let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
    let page = app.vault.batch_metadata(&caller.vault, wanted, body.options.cursor.as_deref(), limit).await?;
    let has_more = page.cursor.is_some();
    let described =
        |found: &Arc<Record>| found.head.path.as_str().len() + found.head.metadata.as_str().len() + MORE_OF_A_SECRET;
    let bytes = page.found.iter().map(described).sum::<usize>() + page.errors.len() * AN_ERROR + AROUND_ALL;
    let metadata = page.found.iter().map(|found| (found.head.path.as_str(), Described(&found.head))).collect();
    let answer = BatchMetadataReply {
        metadata: Ordered(metadata),
        errors: page.errors.iter().map(|(path, fault)| (path.clone(), error(fault))).collect(),
        cursor: page.cursor,
        has_more,
    };
    Ok(long_reply(&answer, bytes))
}

/// Answers who uses another method than POST, as to write a batch.
pub async fn other_method(method: Method) -> Response {
    let message = if matches!(method, Method::PUT | Method::PATCH) {
        "Batch write does not exist: loop over PUT /v1/secrets/{path}, so that each write is decided and audited by \
         itself"
    } else {
        "A batch is read with POST"
    };
    let mut response = ApiError::new("method_not_allowed", message).into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
    response
}

/// The names in the order of the request, each once.
fn distinct(paths: &[String]) -> Result<Vec<&str>, ApiError> {
    if paths.is_empty() || paths.len() > MAX_PATHS {
        return Err(ApiError::invalid("paths: 1 to 100 paths are wanted"));
    }
    let mut seen = BTreeSet::new();
    Ok(paths.iter().map(String::as_str).filter(|name| seen.insert(*name)).collect())
}

fn asked(names: &[&str], body: &BatchBody) -> Result<Vec<Asked>, ApiError> {
    let every = body.options.version.map(version_of).transpose()?;
    let mut pinned: BTreeMap<&str, Version> = BTreeMap::new();
    for (name, number) in &body.options.versions {
        pinned.insert(name, version_of(*number)?);
    }
    if pinned.keys().any(|name| !names.contains(name)) {
        return Err(ApiError::invalid("options.versions: names a path that is not in paths"));
    }
    let parse = |name: &&str| {
        let path = SecretPath::parse(name).map_err(|_| Fault::InvalidPath)?;
        Ok((path, pinned.get(name).copied().or(every)))
    };
    Ok(names.iter().map(parse).collect())
}

fn released(outcomes: &[ReadOutcome]) -> u32 {
    let released = |outcome: &&ReadOutcome| matches!(outcome, Ok(Found { release: Release::Value(_), .. }));
    u32::try_from(outcomes.iter().filter(released).count()).unwrap_or(u32::MAX)
}

fn failed_fast(name: &str, fault: &Fault) -> ApiError {
    let error = ApiError::from(fault.clone());
    let mut details = error.details.clone().unwrap_or_else(|| json!({}));
    if let Some(details) = details.as_object_mut() {
        details.insert("path".to_owned(), name.into());
    }
    error.with_details(details)
}

fn answer(names: &[&str], outcomes: &[ReadOutcome], with_metadata: bool) -> Result<Response, ApiError> {
    let (mut secrets, mut errors) = (Vec::new(), Vec::new());
    for (name, outcome) in names.iter().zip(outcomes) {
        match outcome {
            Ok(found) => secrets.push((*name, secret(found, with_metadata)?)),
            Err(fault) => errors.push((*name, error(fault))),
        }
    }
    let (retrieved, failed) = (secrets.len(), errors.len());
    let bytes = bytes_of(&secrets) + errors.len() * AN_ERROR + AROUND_ALL;
    Ok(long_reply(&BatchReply { secrets: Ordered(secrets), errors: Ordered(errors), retrieved, failed }, bytes))
}

fn bytes_of(secrets: &[(&str, BatchSecret<'_>)]) -> usize {
    let more = |more: &BatchSecretMore<'_>| more.metadata.get().len() + MORE_OF_A_SECRET;
    let one = |(name, secret): &(&str, BatchSecret<'_>)| {
        name.len() + secret.data.get().len() + secret.more.as_ref().map_or(0, more) + A_SECRET
    };
    secrets.iter().map(one).sum()
}

fn secret(found: &Found, with_metadata: bool) -> Result<BatchSecret<'_>, ApiError> {
    let Release::Value(value) = &found.release else { return Err(ApiError::new("internal_error", "")) };
    let (head, record) = (&found.record.head, found.record.version.as_ref());
    let more = with_metadata.then(|| BatchSecretMore {
        metadata: raw_metadata(&head.metadata),
        created_at: head.created_at,
        updated_at: head.updated_at,
        expires_at: record.and_then(|record| record.expires_at),
    });
    let secret_type = record.map_or(head.secret_type, |record| record.secret_type);
    Ok(BatchSecret { data: raw(value)?, version: found.version, secret_type, more })
}

fn error(fault: &Fault) -> BatchError {
    let ApiError { code, message, details, .. } = fault.clone().into();
    BatchError { code, message, details }
}

fn wanted(name: &str, expand: bool) -> Result<Wanted, ApiError> {
    let is_pattern = name.bytes().any(|byte| matches!(byte, b'*' | b'?'));
    if expand && is_pattern {
        let bad = |error: crate::domain::InvalidPattern| ApiError::new("invalid_glob", error.to_string());
        return PathPattern::parse(name).map(Wanted::Pattern).map_err(bad);
    }
    Ok(SecretPath::parse(name).map_or_else(|_| Wanted::Invalid(name.to_owned()), Wanted::Path))
}
