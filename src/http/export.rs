//! The audit log as a file: one line for each event, written as it is read.

use std::io;

use axum::{
    body::Body,
    extract::{Request, State},
    http::header,
    response::{IntoResponse, Response},
};
use http_body_util::channel::{Channel, Sender};
use hyper::body::Bytes;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    App,
    audit::{AuditQuery, filter},
    error::{ApiError, ErrorEnvelope},
    frame::{Caller, NoQuery},
    json::JsonBody,
};
use crate::{audit::LogEntry, vault::ExportReader};

/// Largest body of the request.
const MAX_BYTES: usize = 16 * 1024;
/// Chunks that are read ahead of a slow client.
const AHEAD: usize = 2;

/// What to export, and how.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// `jsonl`, one event a line as the query answers it, or `csv`.
    #[schema(value_type = String)]
    format: Format,
    /// Not before this instant (RFC 3339).
    from: Option<String>,
    /// Before this instant (RFC 3339).
    to: Option<String>,
    /// Of these actions, separated by commas.
    action: Option<String>,
    /// Of this principal.
    identity_id: Option<String>,
    /// `user` or `service_account`.
    identity_type: Option<String>,
    /// About paths that start with this.
    path_prefix: Option<String>,
    /// Permitted and done, or not.
    success: Option<bool>,
    /// From this address.
    source_ip: Option<String>,
    /// Of this request.
    request_id: Option<String>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Format {
    Jsonl,
    Csv,
}

/// Exports the audit log of the caller's tenant, oldest event first. A body that ends without its last chunk is not
/// whole: the log could not be read to its end.
#[utoipa::path(post, path = "/v1/audit/export", tag = "audit", operation_id = "export_audit_log",
    request_body = ExportRequest, responses((status = 200, content_type = "application/jsonl"),
        (status = "4XX", body = ErrorEnvelope), (status = "5XX", body = ErrorEnvelope)))]
pub async fn export(
    State(app): State<App>,
    caller: Caller,
    _: NoQuery,
    request: Request,
) -> Result<Response, ApiError> {
    let body = JsonBody::read(request, MAX_BYTES).await?;
    let request: ExportRequest = body.parse()?;
    let format = request.format;
    let reader = app.vault.export(&caller.vault, filter(request.into())?).await?;
    let (sender, channel) = Channel::new(AHEAD);
    tokio::spawn(write(reader, format, sender));
    let kind = match format {
        Format::Jsonl => "application/jsonl",
        Format::Csv => "text/csv; charset=utf-8",
    };
    Ok(([(header::CONTENT_TYPE, kind)], Body::new(channel)).into_response())
}

/// Ends early where the client went away, and breaks the body off where the log cannot be read.
async fn write(mut reader: ExportReader, format: Format, mut sender: Sender<Bytes, io::Error>) {
    let mut heading = matches!(format, Format::Csv);
    loop {
        let entries = match reader.next().await {
            Ok(Some(entries)) => entries,
            Ok(None) => Vec::new(),
            Err(fault) => return sender.abort(io::Error::other(fault.code())),
        };
        let end = entries.is_empty();
        let chunk = match format {
            Format::Jsonl => jsonl(&entries),
            Format::Csv => csv(&entries, std::mem::take(&mut heading)),
        };
        if !chunk.is_empty() && sender.send_data(chunk.into()).await.is_err() || end {
            return;
        }
    }
}

fn jsonl(entries: &[LogEntry]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(entries.len() * 512);
    for entry in entries {
        // INVARIANT: an entry has text keys and plain values alone, so it always serialises.
        serde_json::to_writer(&mut lines, entry).ok();
        lines.push(b'\n');
    }
    lines
}

const COLUMNS: [&str; 22] = [
    "id",
    "timestamp",
    "action",
    "identity_type",
    "identity_id",
    "tenant_id",
    "secret_path",
    "version",
    "source_ip",
    "user_agent",
    "success",
    "code",
    "module",
    "digest",
    "reason",
    "rules",
    "generation",
    "inputs",
    "duration_ms",
    "request_id",
    "batch_index",
    "details",
];

fn csv(entries: &[LogEntry], heading: bool) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::with_capacity(entries.len() * 256));
    let headings = heading.then(|| COLUMNS.map(str::to_owned));
    for record in headings.into_iter().chain(entries.iter().map(cells)) {
        // INVARIANT: records of one length, written to memory: there is nothing to fail.
        writer.write_record(&record).ok();
    }
    writer.into_inner().unwrap_or_default()
}

fn cells(entry: &LogEntry) -> [String; COLUMNS.len()] {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let decision = entry.decision.as_ref();
    [
        entry.id.clone(),
        entry.timestamp.to_string(),
        entry.action.clone(),
        text(&entry.identity_type),
        text(&entry.identity_id),
        text(&entry.tenant_id),
        text(&entry.secret_path),
        entry.version.map(|version| version.to_string()).unwrap_or_default(),
        text(&entry.source_ip),
        harmless(entry.user_agent.as_deref().unwrap_or_default()),
        entry.success.to_string(),
        entry.code.clone(),
        decision.and_then(|decision| decision.module.clone()).unwrap_or_default(),
        decision.and_then(|decision| decision.digest.clone()).unwrap_or_default(),
        harmless(decision.map_or("", |decision| &decision.reason)),
        harmless(&decision.map(|decision| decision.rules.join(" ")).unwrap_or_default()),
        decision.and_then(|decision| decision.generation).map(|number| number.to_string()).unwrap_or_default(),
        decision.map(|decision| serde_json::json!(decision.inputs).to_string()).unwrap_or_default(),
        entry.duration_ms.to_string(),
        entry.request_id.clone(),
        entry.batch.map(|batch| batch.index.to_string()).unwrap_or_default(),
        entry.details.as_ref().map(ToString::to_string).unwrap_or_default(),
    ]
}

/// What others chose must not become a formula in a spreadsheet (OWASP, "CSV Injection").
fn harmless(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() }
}

impl From<ExportRequest> for AuditQuery {
    fn from(request: ExportRequest) -> Self {
        let ExportRequest { from, to, action, identity_id, identity_type, path_prefix, success, .. } = request;
        let ExportRequest { source_ip, request_id, .. } = request;
        Self {
            from,
            to,
            action,
            identity_id,
            identity_type,
            path_prefix,
            success,
            source_ip,
            request_id,
            limit: None,
            cursor: None,
        }
    }
}
