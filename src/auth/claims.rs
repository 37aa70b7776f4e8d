//! The claims of a token, read strictly. A claim of the wrong JSON type is a refusal, never an absence: the other reading
//! let tokens live for ever (CVE-2026-25537).

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{AuthError, LEEWAY, json};
use crate::domain::{Identity, IdentityKind, Scope, Scopes, TenantId, Timestamp};

/// Most groups in a token.
pub(super) const MAX_GROUPS: usize = 200;
/// Longest name of a group, in bytes; also the longest `amr` value and `jti`.
pub(super) const MAX_NAME_BYTES: usize = 200;
/// Most methods in `amr`.
const MAX_METHODS: usize = 32;
/// Most words in `scopes`.
const MAX_SCOPES: usize = 200;
/// The last second of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;

/// What an issuer demands of its tokens beside a signature.
pub(super) struct Demands {
    /// Names of this server; a token must be meant for one of them.
    pub(super) audience: Vec<String>,
    /// The only tenant that the issuer may speak for.
    pub(super) tenant: Option<TenantId>,
}

/// The payload of a token.
pub(super) struct Claims(Map<String, Value>);

impl Claims {
    /// Reads a payload.
    pub(super) fn parse(payload: &[u8]) -> Result<Self, AuthError> {
        json::object(payload).map(Self).ok_or(AuthError::Invalid("payload is not a strict JSON object"))
    }

    /// Who says to have issued the token.
    pub(super) fn issuer(&self) -> Result<&str, AuthError> {
        self.text("iss")?.ok_or(AuthError::Invalid("iss"))
    }

    /// Turns the claims into an identity. To be called once the signature holds; being expired is told last, so that it
    /// is told only of tokens without any other fault.
    pub(super) fn into_identity(self, demands: &Demands, now: Timestamp) -> Result<Identity, AuthError> {
        self.check_audience(&demands.audience)?;
        self.check_token_id()?;
        let (id, kind) = self.subject()?;
        let tenant = self.tenant(demands.tenant.as_ref())?;
        let scopes = self.scopes()?;
        let groups = self.names("groups", MAX_GROUPS)?.unwrap_or_default();
        let authentication_methods = self.names("amr", MAX_METHODS)?.unwrap_or_default();
        let authenticated_at = self.past("auth_time", now)?;
        self.past("iat", now)?;
        self.past("nbf", now)?;
        let expires_at = self.expiry(now)?;
        let claims = Value::Object(self.0);
        Ok(Identity { id, kind, tenant, scopes, groups, authentication_methods, authenticated_at, expires_at, claims })
    }

    fn check_audience(&self, configured: &[String]) -> Result<(), AuthError> {
        let meant_for_us = match self.0.get("aud") {
            Some(Value::String(audience)) => configured.contains(audience),
            Some(Value::Array(audiences)) => {
                audiences.iter().all(Value::is_string)
                    && audiences.iter().filter_map(Value::as_str).any(|one| configured.iter().any(|ours| ours == one))
            }
            _ => false,
        };
        if meant_for_us { Ok(()) } else { Err(AuthError::Invalid("aud")) }
    }

    fn check_token_id(&self) -> Result<(), AuthError> {
        match self.text("jti")? {
            Some(id) if !is_name(id) => Err(AuthError::Invalid("jti")),
            _ => Ok(()),
        }
    }

    fn subject(&self) -> Result<(Arc<str>, IdentityKind), AuthError> {
        let subject = self.text("sub")?.ok_or(AuthError::Invalid("sub"))?;
        let kind = IdentityKind::of_subject(subject).ok_or(AuthError::Invalid("sub"))?;
        Ok((subject.into(), kind))
    }

    fn tenant(&self, only: Option<&TenantId>) -> Result<TenantId, AuthError> {
        let claimed = match self.text("tenant_id")? {
            Some(name) => Some(TenantId::parse(name).ok_or(AuthError::Invalid("tenant_id"))?),
            None => None,
        };
        match (claimed, only) {
            (Some(claimed), Some(only)) if claimed != *only => Err(AuthError::Invalid("tenant_id of another tenant")),
            (Some(claimed), _) => Ok(claimed),
            (None, Some(only)) => Ok(only.clone()),
            (None, None) => Ok(TenantId::default_tenant()),
        }
    }

    /// `scope` (RFC 8693: words between spaces) or `scopes` (an array). A token with both could mean either.
    fn scopes(&self) -> Result<Scopes, AuthError> {
        match (self.text("scope")?, self.names("scopes", MAX_SCOPES)?) {
            (Some(_), Some(_)) => Err(AuthError::Invalid("scope and scopes together")),
            (Some(words), None) => Ok(words.split(' ').filter_map(Scope::parse).collect()),
            (None, Some(words)) => Ok(words.iter().filter_map(|word| Scope::parse(word)).collect()),
            (None, None) => Ok(Scopes::default()),
        }
    }

    fn expiry(&self, now: Timestamp) -> Result<Timestamp, AuthError> {
        let end = self.instant("exp")?.ok_or(AuthError::Invalid("exp"))?;
        if end.plus(LEEWAY) <= now { Err(AuthError::Expired) } else { Ok(end) }
    }

    /// An instant that must not lie ahead: `nbf`, `iat`, `auth_time`.
    fn past(&self, name: &'static str, now: Timestamp) -> Result<Option<Timestamp>, AuthError> {
        match self.instant(name)? {
            Some(at) if at > now.plus(LEEWAY) => Err(AuthError::Invalid(name)),
            at => Ok(at),
        }
    }

    /// A `NumericDate` as a whole number of seconds up to the year 9999. RFC 7519 would allow fractions; no issuer needs
    /// them, and a number that is not an integer is where readers of JSON differ.
    fn instant(&self, name: &'static str) -> Result<Option<Timestamp>, AuthError> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        let seconds = value.as_u64().filter(|seconds| *seconds <= LAST_SECOND);
        let micros = seconds.and_then(|seconds| i64::try_from(seconds.checked_mul(1_000_000)?).ok());
        micros.map(|micros| Some(Timestamp::from_micros(micros))).ok_or(AuthError::Invalid(name))
    }

    fn text(&self, name: &'static str) -> Result<Option<&str>, AuthError> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(AuthError::Invalid(name)),
        }
    }

    fn names(&self, name: &'static str, most: usize) -> Result<Option<Vec<String>>, AuthError> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        let items = value.as_array().filter(|items| items.len() <= most).ok_or(AuthError::Invalid(name))?;
        let names = items.iter().map(|item| item.as_str().filter(|text| is_name(text)).map(str::to_owned));
        names.collect::<Option<Vec<_>>>().map(Some).ok_or(AuthError::Invalid(name))
    }
}

/// Whether a text may name a group, a method, a scope or a token: 1 to [`MAX_NAME_BYTES`] without control characters.
pub(super) fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}
