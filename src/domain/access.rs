//! One access: what is asked, and what was decided.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, sync::Arc};

use serde_json::{Value, value::RawValue};
use zeroize::Zeroizing;

use super::{Entropy, ReceiptSlot, SecretValue, Timestamp, hex};

/// What a principal wants to do with a path. The words are those that policies see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// See the value.
    Read,
    /// Write a new version, restore, or change the metadata.
    Write,
    /// Delete or destroy.
    Delete,
    /// See that it exists, its metadata and its versions.
    List,
    /// Govern the vault at this path; no endpoint asks for it yet.
    Admin,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Delete, Self::List, Self::Admin];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Delete => "delete",
            Self::List => "list",
            Self::Admin => "admin",
        }
    }

    /// The action that a word names.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == word)
    }
}

/// Where and when a request was made. One instant serves the whole request.
#[derive(Debug, Clone)]
pub struct RequestContext {
    /// `req_…`: joins the answer, the log and the audit.
    pub request_id: Arc<str>,
    /// When the request arrived.
    pub now: Timestamp,
    /// The peer's address.
    pub source_ip: Option<IpAddr>,
    /// What the client calls itself, cut to 256 bytes.
    pub user_agent: Option<Arc<str>>,
    /// Where the receipt for what is recorded of the request is laid down.
    pub receipt: ReceiptSlot,
}

impl RequestContext {
    /// Where what the vault does by itself comes from.
    #[must_use]
    pub fn own(request_id: Arc<str>, now: Timestamp) -> Self {
        Self { request_id, now, source_ip: None, user_agent: None, receipt: ReceiptSlot::default() }
    }
}

/// A new name for a request, or for what the vault does by itself: 48 bits of milliseconds since 1970 and 80 random bits,
/// so that the names that are kept together were given at about one time (as in RFC 9562, version 7).
#[must_use]
pub fn request_id(entropy: &dyn Entropy, now: Timestamp) -> Arc<str> {
    let mut name = [0; 16];
    entropy.fill(&mut name);
    let millis = now.micros().div_euclid(1_000).to_be_bytes();
    for (byte, of_time) in name.iter_mut().zip(&millis[2..]) {
        *byte = *of_time;
    }
    format!("req_{}", hex(&name)).into()
}

/// A policy module by name and content.
#[derive(Debug, PartialEq, Eq)]
pub struct ModuleRef {
    /// Its name in the manifest.
    pub name: String,
    /// SHA-256 of the module's file, in hexadecimal.
    pub digest: String,
}

/// One thing that a policy asked the host, and what it was told.
#[derive(Debug, Clone, PartialEq)]
pub struct InputRead {
    /// Interface, function and argument, as in `secret.custom("team")`.
    pub name: Cow<'static, str>,
    /// The answer.
    pub value: Value,
}

/// What was decided for one path, and why.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The answer.
    pub verdict: Verdict,
    /// The module that decided; none where no module had an opinion.
    pub module: Option<Arc<ModuleRef>>,
    /// The deciding module's word for machines.
    pub reason: String,
    /// The deciding module's names of the rules that decided.
    pub rules: Vec<String>,
    /// Shadow modules that would have decided otherwise, and how.
    pub dissent: Vec<(Arc<ModuleRef>, &'static str)>,
    /// What the modules asked about this secret (what they asked about the request is recorded once for all its paths).
    pub inputs: Vec<InputRead>,
}

/// Allowed, with what of the value may be seen; or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The access may go on.
    Allow(FieldFilter),
    /// It may not.
    Deny(Denial),
}

/// A refusal in the words of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// One of the API's codes of status 403.
    pub code: DenialCode,
    /// A sentence for people.
    pub message: String,
    /// The module's own reason, where it is none of the API's codes.
    pub reason: Option<String>,
}

/// The API's codes for a refusal by policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DenialCode {
    /// No policy permits it, or one forbids it.
    AccessDenied,
    /// A fresh second factor would be needed.
    MfaRequired,
    /// Not from this address.
    IpNotAllowed,
    /// Not at this time.
    TimeWindowViolation,
    /// A policy failed; what cannot be decided is denied.
    PolicyError,
}

impl DenialCode {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AccessDenied => "access_denied",
            Self::MfaRequired => "mfa_required",
            Self::IpNotAllowed => "ip_not_allowed",
            Self::TimeWindowViolation => "time_window_violation",
            Self::PolicyError => "policy_error",
        }
    }

    /// The code that a module's reason names, where a module may name it (`policy_error` is the host's alone).
    #[must_use]
    pub fn named_by(reason: &str) -> Option<Self> {
        [Self::AccessDenied, Self::MfaRequired, Self::IpNotAllowed, Self::TimeWindowViolation]
            .into_iter()
            .find(|code| code.as_str() == reason)
    }
}

/// Which top-level fields of a value an allowed access may touch: the joined field obligations of all allows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldFilter {
    /// These alone; all where none.
    pub only: Option<Vec<String>>,
    /// Never these.
    pub without: Vec<String>,
}

impl FieldFilter {
    /// Makes the filter stricter: these fields alone.
    pub fn restrict_to(&mut self, fields: Vec<String>) {
        self.only = Some(match self.only.take() {
            Some(before) => before.into_iter().filter(|field| fields.contains(field)).collect(),
            None => fields,
        });
    }

    /// Makes the filter stricter: never these fields.
    pub fn exclude(&mut self, fields: Vec<String>) {
        self.without.extend(fields);
    }

    /// Whether every field may be touched.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.only.is_none() && self.without.is_empty()
    }

    /// Whether this field may be touched.
    #[must_use]
    pub fn permits(&self, field: &str) -> bool {
        let named = |fields: &Vec<String>| fields.iter().any(|name| name == field);
        self.only.as_ref().is_none_or(named) && !named(&self.without)
    }

    /// The JSON object with the permitted fields alone; `None` where the text is no object.
    #[must_use]
    pub fn apply(&self, object: &SecretValue) -> Option<SecretValue> {
        let mut fields: BTreeMap<String, &RawValue> = serde_json::from_slice(object.expose()).ok()?;
        fields.retain(|name, _| self.permits(name));
        // Names may grow when they are written anew (an escape for each byte at most), so this never has to move.
        let names: usize = fields.keys().map(|name| name.len() * 6).sum();
        let mut kept = Zeroizing::new(Vec::with_capacity(object.expose().len() + names));
        serde_json::to_writer(&mut *kept, &fields).ok()?;
        Some(SecretValue::new(kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn filters_join_to_the_stricter() {
        let mut filter = FieldFilter::default();
        assert!(filter.is_open());
        filter.restrict_to(words(&["a", "b"]));
        filter.restrict_to(words(&["b", "c"]));
        filter.exclude(words(&["d"]));
        assert!(filter.permits("b") && !filter.permits("a") && !filter.permits("c"));
        filter.exclude(words(&["b"]));
        assert!(!filter.permits("b"));
    }

    #[test]
    fn a_filter_keeps_the_text_of_what_it_keeps() {
        let mut filter = FieldFilter::default();
        filter.exclude(words(&["secret"]));
        let value = |text: &str| SecretValue::new(Zeroizing::new(text.as_bytes().to_vec()));
        let kept = filter.apply(&value(r#"{"secret":"x","n":1.50,"deep":{"secret":1}}"#)).unwrap();
        assert_eq!(kept.expose(), br#"{"deep":{"secret":1},"n":1.50}"#);
        assert!(filter.apply(&value("[1]")).is_none());
    }
}
