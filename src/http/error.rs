//! The one table from failure to status. Nothing else in the program picks a status for an error.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::{auth::AuthError, domain::Metadata, vault::Fault};

/// A refusal on its way out. The request's id and the envelope are added by [`super::frame`].
#[derive(Debug, Clone)]
pub struct ApiError {
    /// The status.
    pub status: StatusCode,
    /// The word for machines.
    pub code: &'static str,
    /// The sentence for people. Never repeats what the client sent.
    pub message: String,
    /// More for machines.
    pub details: Option<Value>,
    /// Seconds after which another try makes sense.
    pub retry_after: Option<u64>,
    /// Whether the audit log has it already, or is not to have it.
    pub recorded: bool,
    /// Whether it is for want of a place, and may have to wait before it is told.
    pub turned_away: bool,
}

/// The envelope of every error.
#[derive(Serialize, ToSchema)]
pub struct ErrorEnvelope {
    /// The error.
    pub error: ErrorBody,
}

/// What went wrong.
#[derive(Serialize, ToSchema)]
pub struct ErrorBody {
    /// A stable word for machines.
    #[schema(example = "access_denied")]
    pub code: &'static str,
    /// A sentence for people.
    pub message: String,
    /// More for machines, by code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
    /// The request's id, as in `X-Request-ID` and in the audit log.
    #[schema(example = "req_0123456789abcdef0123456789abcdef")]
    pub request_id: String,
}

/// Every code with its status.
const STATUSES: [(&str, StatusCode); 33] = [
    ("invalid_request", StatusCode::BAD_REQUEST),
    ("invalid_path", StatusCode::BAD_REQUEST),
    ("invalid_secret_type", StatusCode::BAD_REQUEST),
    ("invalid_duration", StatusCode::BAD_REQUEST),
    ("invalid_cursor", StatusCode::BAD_REQUEST),
    ("invalid_glob", StatusCode::BAD_REQUEST),
    ("authentication_required", StatusCode::UNAUTHORIZED),
    ("token_expired", StatusCode::UNAUTHORIZED),
    ("token_invalid", StatusCode::UNAUTHORIZED),
    ("token_revoked", StatusCode::UNAUTHORIZED),
    ("access_denied", StatusCode::FORBIDDEN),
    ("insufficient_scope", StatusCode::FORBIDDEN),
    ("mfa_required", StatusCode::FORBIDDEN),
    ("ip_not_allowed", StatusCode::FORBIDDEN),
    ("time_window_violation", StatusCode::FORBIDDEN),
    ("policy_error", StatusCode::FORBIDDEN),
    ("secret_not_found", StatusCode::NOT_FOUND),
    ("version_not_found", StatusCode::NOT_FOUND),
    ("policy_not_found", StatusCode::NOT_FOUND),
    ("not_found", StatusCode::NOT_FOUND),
    ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED),
    ("payload_too_large", StatusCode::PAYLOAD_TOO_LARGE),
    ("unsupported_media_type", StatusCode::UNSUPPORTED_MEDIA_TYPE),
    ("version_conflict", StatusCode::CONFLICT),
    ("secret_exists", StatusCode::CONFLICT),
    ("keys_busy", StatusCode::CONFLICT),
    ("root_key_rejected", StatusCode::UNPROCESSABLE_ENTITY),
    ("validation_error", StatusCode::UNPROCESSABLE_ENTITY),
    ("policy_rejected", StatusCode::UNPROCESSABLE_ENTITY),
    ("rate_limited", StatusCode::TOO_MANY_REQUESTS),
    ("unreadable", StatusCode::INTERNAL_SERVER_ERROR),
    ("internal_error", StatusCode::INTERNAL_SERVER_ERROR),
    ("service_unavailable", StatusCode::SERVICE_UNAVAILABLE),
];

impl ApiError {
    /// An error by its code; the status follows from it.
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        let known = STATUSES.iter().find(|(word, _)| *word == code);
        let status = known.map_or(StatusCode::INTERNAL_SERVER_ERROR, |(_, status)| *status);
        Self {
            status,
            code,
            message: message.into(),
            details: None,
            retry_after: None,
            recorded: false,
            turned_away: false,
        }
    }

    /// There are more requests than the server can work on. Not for the audit log: turning away must stay cheap.
    #[must_use]
    pub fn busy() -> Self {
        let error = Self::new("service_unavailable", "The server is busy with other requests: try again later");
        Self { retry_after: Some(1), recorded: true, turned_away: true, ..error }
    }

    /// A request that is not what the route takes.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new("invalid_request", message)
    }

    /// The same with more for machines.
    #[must_use]
    pub fn with_details(self, details: Value) -> Self {
        Self { details: Some(details), ..self }
    }

    /// The envelope.
    #[must_use]
    pub fn into_envelope(self, request_id: &str) -> Response {
        let unexplained = self.status.is_server_error() && self.code != "service_unavailable";
        let message = if unexplained { "The vault failed; its log says how".to_owned() } else { self.message };
        let envelope = ErrorEnvelope {
            error: ErrorBody { code: self.code, message, details: self.details, request_id: request_id.to_owned() },
        };
        // INVARIANT: the envelope has text keys alone, so it always serialises.
        let body = serde_json::to_vec(&envelope).unwrap_or_default();
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl IntoResponse for ApiError {
    /// Without the envelope: [`super::frame`] writes it, since it knows the request's id.
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status;
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        let details = match &fault {
            Fault::Denied(denial) => denial.reason.as_ref().map(|reason| json!({ "reason": reason })),
            // A patch was checked by itself; only the custom entries can outgrow their limit by joining those there are.
            Fault::MetadataTooLarge => Some(json!({ "fields": { "metadata.custom": Metadata::CUSTOM_LIMIT } })),
            Fault::VersionConflict(newest) => Some(json!({ "current_version": newest })),
            _ => None,
        };
        let recorded = fault.is_recorded();
        Self { details, recorded, ..Self::new(fault.code(), fault.message()) }
    }
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Invalid(_) => Self::new("token_invalid", "The token is not valid"),
            AuthError::Expired => Self::new("token_expired", "The token has expired"),
            AuthError::Unavailable => {
                Self::new("service_unavailable", "The keys of the token's issuer cannot be fetched now")
            }
        }
    }
}
