//! What a guest may see: the imports of `wit/policy.wit`, and the record of what was asked.

use std::{borrow::Cow, sync::Arc};

use serde_json::{Value, json};
use wasmtime::component::bindgen;

use super::limits::GuestLimits;
use crate::domain::{Identity, InputRead, Record, RequestContext, SecretPath, Timestamp};

bindgen!({ path: "wit", world: "policy", imports: { default: trappable } });

pub use portcullis::policy::types::{self, Decision as GuestDecision, Effect, Obligation, Scalar};

/// Longest note kept, in bytes, and how many are kept for one path.
const NOTE_BYTES: usize = 1_024;
const NOTES: usize = 64;
/// Different questions that are recorded of one request, and of one path.
const QUESTIONS: usize = 64;
/// Longest argument of a question, in bytes.
const ARGUMENT_BYTES: usize = 512;

/// A guest asked for more than is recorded. It ends there: a record with gaps explains nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a policy asks {QUESTIONS} different questions at most, with arguments of {ARGUMENT_BYTES} bytes at most")]
pub struct TooManyQuestions;

/// The request that all paths share.
#[derive(Debug, Clone)]
pub struct Inquiry {
    /// Who asks.
    pub identity: Arc<Identity>,
    /// Where and when.
    pub context: RequestContext,
}

/// What is asked about: a path, and what may be known of the secret there.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The path.
    pub path: SecretPath,
    /// The secret, where there is one.
    pub secret: Option<Arc<Record>>,
    /// Names of the top-level fields that a write would set.
    pub written_fields: Arc<[String]>,
}

impl Subject {
    /// A path with the secret there, where there is one; nothing would be written.
    #[must_use]
    pub fn at(path: SecretPath, secret: Option<Arc<Record>>) -> Self {
        Self { path, secret, written_fields: Arc::default() }
    }
}

/// The state of one guest's store. Never holds a value.
pub struct HostState {
    pub limits: GuestLimits,
    inquiry: Option<Arc<Inquiry>>,
    subject: Option<Subject>,
    request_inputs: Vec<InputRead>,
    subject_inputs: Vec<InputRead>,
    notes: Vec<String>,
}

impl HostState {
    /// For a guest that answers questions of one request.
    pub fn asked(limits: GuestLimits, inquiry: Arc<Inquiry>) -> Self {
        Self { inquiry: Some(inquiry), ..Self::unasked(limits) }
    }

    /// For a guest that is only configured.
    pub fn unasked(limits: GuestLimits) -> Self {
        Self {
            limits,
            inquiry: None,
            subject: None,
            request_inputs: Vec::new(),
            subject_inputs: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Turns to the next path.
    pub fn turn_to(&mut self, subject: Subject) {
        self.subject = Some(subject);
        self.subject_inputs.clear();
        self.notes.clear();
    }

    /// What was asked about the path at hand, and the notes left about it.
    pub fn take_findings(&mut self) -> (Vec<InputRead>, Vec<String>) {
        (std::mem::take(&mut self.subject_inputs), std::mem::take(&mut self.notes))
    }

    /// What was asked about the request so far.
    pub fn request_inputs(&self) -> &[InputRead] {
        &self.request_inputs
    }

    fn identity<T>(&mut self, name: &'static str, pick: impl Fn(&Identity) -> T, empty: T) -> wasmtime::Result<T>
    where
        T: serde::Serialize,
    {
        let answer = self.inquiry.as_ref().map_or(empty, |inquiry| pick(&inquiry.identity));
        record(&mut self.request_inputs, name, None, &answer)?;
        Ok(answer)
    }

    fn about<T>(&mut self, name: &'static str, pick: impl Fn(&Record) -> T, empty: T) -> wasmtime::Result<T>
    where
        T: serde::Serialize,
    {
        let secret = self.subject.as_ref().and_then(|subject| subject.secret.as_deref());
        let answer = secret.map_or(empty, pick);
        record(&mut self.subject_inputs, name, None, &answer)?;
        Ok(answer)
    }
}

/// Keeps the first answer to each question; later ones are the same.
fn record<T: serde::Serialize>(
    inputs: &mut Vec<InputRead>,
    name: &'static str,
    argument: Option<&str>,
    answer: &T,
) -> Result<(), TooManyQuestions> {
    if argument.is_some_and(|argument| argument.len() > ARGUMENT_BYTES) {
        return Err(TooManyQuestions);
    }
    let name: Cow<'static, str> = argument.map_or(name.into(), |argument| format!("{name}({argument})").into());
    if inputs.iter().any(|input| input.name == name) {
        return Ok(());
    }
    if inputs.len() >= QUESTIONS {
        return Err(TooManyQuestions);
    }
    inputs.push(InputRead { name, value: serde_json::to_value(answer).unwrap_or(Value::Null) });
    Ok(())
}

impl types::Host for HostState {}

impl portcullis::policy::principal::Host for HostState {
    fn id(&mut self) -> wasmtime::Result<String> {
        self.identity("principal.id", |who| who.id.to_string(), String::new())
    }

    fn kind(&mut self) -> wasmtime::Result<String> {
        self.identity("principal.kind", |who| who.kind.as_str().to_owned(), String::new())
    }

    fn tenant(&mut self) -> wasmtime::Result<String> {
        self.identity("principal.tenant", |who| who.tenant.to_string(), String::new())
    }

    fn scopes(&mut self) -> wasmtime::Result<Vec<String>> {
        self.identity("principal.scopes", |who| who.scopes.words().map(str::to_owned).collect(), Vec::new())
    }

    fn groups(&mut self) -> wasmtime::Result<Vec<String>> {
        self.identity("principal.groups", |who| who.groups.clone(), Vec::new())
    }

    fn claim(&mut self, pointer: String) -> wasmtime::Result<Vec<Scalar>> {
        let claim = self.inquiry.as_ref().and_then(|inquiry| inquiry.identity.claims.pointer(&pointer)).cloned();
        record(&mut self.request_inputs, "principal.claim", Some(&pointer), &claim)?;
        Ok(claim.as_ref().map(scalars).unwrap_or_default())
    }

    fn authenticated_at(&mut self) -> wasmtime::Result<Option<u64>> {
        let pick = |who: &Identity| who.authenticated_at.map(Timestamp::unix_millis);
        self.identity("principal.authenticated-at", pick, None)
    }

    fn authentication_methods(&mut self) -> wasmtime::Result<Vec<String>> {
        self.identity("principal.authentication-methods", |who| who.authentication_methods.clone(), Vec::new())
    }
}

impl portcullis::policy::context::Host for HostState {
    fn now(&mut self) -> wasmtime::Result<u64> {
        let now = self.inquiry.as_ref().map_or(0, |inquiry| inquiry.context.now.unix_millis());
        record(&mut self.request_inputs, "context.now", None, &now)?;
        Ok(now)
    }

    fn source_ip(&mut self) -> wasmtime::Result<Option<String>> {
        let ip = self.inquiry.as_ref().and_then(|inquiry| inquiry.context.source_ip).map(|ip| ip.to_string());
        record(&mut self.request_inputs, "context.source-ip", None, &ip)?;
        Ok(ip)
    }
}

impl portcullis::policy::secret::Host for HostState {
    fn exists(&mut self) -> wasmtime::Result<bool> {
        let now = self.inquiry.as_ref().map_or(Timestamp::default(), |inquiry| inquiry.context.now);
        self.about("secret.exists", |secret| secret.head.is_live(now), false)
    }

    fn secret_type(&mut self) -> wasmtime::Result<Option<String>> {
        let pick = |secret: &Record| {
            let of_version = secret.version.as_ref().map(|version| version.secret_type);
            Some(of_version.unwrap_or(secret.head.secret_type).as_str().to_owned())
        };
        self.about("secret.secret-type", pick, None)
    }

    fn version(&mut self) -> wasmtime::Result<Option<u64>> {
        let pick = |secret: &Record| {
            let of_version = secret.version.as_ref().map(|version| version.version);
            u64::try_from(of_version.unwrap_or(secret.head.latest).get()).ok()
        };
        self.about("secret.version", pick, None)
    }

    fn owner(&mut self) -> wasmtime::Result<Option<String>> {
        self.about("secret.owner", |secret| secret.head.metadata.parse().owner, None)
    }

    fn tags(&mut self) -> wasmtime::Result<Vec<String>> {
        self.about("secret.tags", |secret| secret.head.metadata.parse().tags, Vec::new())
    }

    fn custom(&mut self, key: String) -> wasmtime::Result<Option<String>> {
        let secret = self.subject.as_ref().and_then(|subject| subject.secret.as_deref());
        let answer = secret.and_then(|secret| secret.head.metadata.parse().custom.remove(&key));
        record(&mut self.subject_inputs, "secret.custom", Some(&key), &answer)?;
        Ok(answer)
    }

    fn created_by(&mut self) -> wasmtime::Result<Option<String>> {
        self.about("secret.created-by", |secret| Some(secret.head.created_by.clone()), None)
    }

    fn created_at(&mut self) -> wasmtime::Result<Option<u64>> {
        self.about("secret.created-at", |secret| Some(secret.head.created_at.unix_millis()), None)
    }

    fn updated_at(&mut self) -> wasmtime::Result<Option<u64>> {
        self.about("secret.updated-at", |secret| Some(secret.head.updated_at.unix_millis()), None)
    }

    fn expires_at(&mut self) -> wasmtime::Result<Option<u64>> {
        let pick = |secret: &Record| {
            let end = secret.version.as_ref().map_or(secret.head.expires_at, |version| version.expires_at);
            end.map(Timestamp::unix_millis)
        };
        self.about("secret.expires-at", pick, None)
    }

    fn written_fields(&mut self) -> wasmtime::Result<Vec<String>> {
        let fields = self.subject.as_ref().map_or_else(Vec::new, |subject| subject.written_fields.to_vec());
        record(&mut self.subject_inputs, "secret.written-fields", None, &json!(fields))?;
        Ok(fields)
    }
}

impl portcullis::policy::diagnostics::Host for HostState {
    fn note(&mut self, text: String) -> wasmtime::Result<()> {
        if self.notes.len() < NOTES {
            let end = text.floor_char_boundary(NOTE_BYTES);
            self.notes.push(text.get(..end).unwrap_or_default().to_owned());
        }
        Ok(())
    }
}

/// A claim as flat values: a scalar is one, an array of scalars as many; everything else is none.
fn scalars(claim: &Value) -> Vec<Scalar> {
    let scalar = |value: &Value| match value {
        Value::Bool(truth) => Some(Scalar::Boolean(*truth)),
        Value::Number(number) => number.as_i64().map(Scalar::Integer),
        Value::String(text) => Some(Scalar::Text(text.clone())),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    match claim {
        Value::Array(items) => items.iter().filter_map(scalar).collect(),
        single => scalar(single).into_iter().collect(),
    }
}
