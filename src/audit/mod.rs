//! The audit log: what an event says, how the events of a request are packed into one row, and how rows are read.
//!
//! No event has room for a secret's value, for a token, or for text that the caller chose freely, but for the paths,
//! names and addresses that it is there to record. The hash chain and its checkpoints will join this module.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::{
    AuditRow, AuditSequence, Decision, FieldFilter, Identity, InputRead, RequestContext, SecretPath, StoredAuditRow,
    Timestamp, Verdict, Version,
};

/// The code of an event that went well.
pub const OK: &str = "ok";
/// The code of a read that released nothing, since the caller has the value already.
pub const NOT_MODIFIED: &str = "not_modified";
/// The code of a permitted read that released nothing, since another path of its batch failed.
pub const WITHHELD: &str = "withheld";

/// Hexadecimal digits of a digest of policies that each row repeats: enough to tell all that ever served apart.
const SHORT_DIGEST: usize = 16;

/// All events of one request (or of one page of a long one).
pub struct Entry<'a> {
    /// Who asked; none where nobody was authenticated.
    pub identity: Option<&'a Identity>,
    /// Where and when.
    pub context: &'a RequestContext,
    /// What was asked, for all events alike.
    pub action: &'static str,
    /// The generation of policies that decided.
    pub generation: Option<u64>,
    /// The digest of their manifest and files; numbers alone are each server's own.
    pub policies: Option<&'a str>,
    /// How many paths the batch names; none for a request about one path.
    pub batch_size: Option<usize>,
    /// How long it took until it was recorded.
    pub duration: Duration,
    /// What the policies asked about the request.
    pub inputs: Vec<InputRead>,
    /// What became of each path.
    pub events: Vec<Event>,
    /// What else is to be known, where the request is about no secret.
    pub details: Option<Value>,
}

/// What became of one path.
pub struct Event {
    /// The path; none where no path could be parsed, or the event is about none.
    pub path: Option<SecretPath>,
    /// The version released or written.
    pub version: Option<Version>,
    /// [`OK`], [`NOT_MODIFIED`], or an error code of the API.
    pub code: &'static str,
    /// What the policies decided.
    pub decision: Option<Decision>,
}

/// The packed form. Short names, since it is written at every request; a decision shared by many paths stands once.
#[derive(Serialize, Deserialize)]
struct Packed {
    v: u8,
    at: i64,
    request: String,
    action: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<(String, String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agent: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policies: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    batch: Option<usize>,
    micros: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<(String, Value)>,
    decisions: Vec<PackedDecision>,
    events: Vec<PackedEvent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    details: Option<Value>,
}

/// Path, version, code, index into [`Packed::decisions`].
type PackedEvent = (Option<String>, Option<i64>, String, Option<usize>);

#[derive(Serialize, Deserialize, PartialEq)]
struct PackedDecision {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    module: Option<(String, String)>,
    reason: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rules: Vec<String>,
    #[serde(default, skip_serializing_if = "LogObligations::are_none")]
    obligations: LogObligations,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dissent: Vec<LogDissent>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<(String, Value)>,
}

/// Packs the events of a request into the row that the store keeps.
#[must_use]
pub fn pack(entry: Entry<'_>) -> AuditRow {
    let Entry { identity, context, action, generation, policies, batch_size, duration, inputs, events, details } =
        entry;
    let source_ip = context.source_ip.map(|ip| ip.to_string());
    let mut packed = Packed {
        v: 1,
        at: context.now.micros(),
        request: context.request_id.to_string(),
        action: action.to_owned(),
        identity: identity.map(|who| (who.id.to_string(), who.kind.as_str().to_owned(), who.tenant.to_string())),
        ip: source_ip.clone(),
        agent: context.user_agent.clone(),
        generation,
        policies: policies.and_then(|digest| digest.get(..SHORT_DIGEST)).map(str::to_owned),
        batch: batch_size,
        micros: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
        inputs: pack_inputs(inputs),
        decisions: Vec::new(),
        events: Vec::with_capacity(events.len()),
        details,
    };
    for event in events {
        let decision = event.decision.map(|decision| index_of(&mut packed.decisions, decision));
        let path = event.path.map(|path| path.as_str().to_owned());
        packed.events.push((path, event.version.map(Version::get), event.code.to_owned(), decision));
    }
    AuditRow {
        at: context.now,
        tenant: identity.map(|who| who.tenant.clone()),
        identity_id: identity.map(|who| who.id.to_string()),
        identity_type: identity.map(|who| who.kind.as_str()),
        action,
        source_ip,
        request_id: context.request_id.to_string(),
        // INVARIANT: the packed form has text keys and plain values alone, so it always serialises.
        body: serde_json::to_vec(&packed).unwrap_or_default(),
    }
}

fn pack_inputs(inputs: Vec<InputRead>) -> Vec<(String, Value)> {
    inputs.into_iter().map(|input| (input.name.into_owned(), input.value)).collect()
}

/// How far back an equal decision is looked for: neighbours mostly share one, and a longer search would cost more than
/// the bytes it saves.
const LOOK_BACK: usize = 8;

fn index_of(decisions: &mut Vec<PackedDecision>, decision: Decision) -> usize {
    let packed = PackedDecision {
        module: decision.module.map(|module| (module.name.clone(), module.digest.clone())),
        reason: decision.reason,
        rules: decision.rules,
        obligations: match decision.verdict {
            Verdict::Allow(FieldFilter { only, without }) => {
                LogObligations { only_fields: only, without_fields: without }
            }
            Verdict::Deny(_) => LogObligations::default(),
        },
        dissent: decision
            .dissent
            .iter()
            .map(|(module, would)| LogDissent { module: module.name.clone(), would: (*would).to_owned() })
            .collect(),
        inputs: pack_inputs(decision.inputs),
    };
    let from = decisions.len().saturating_sub(LOOK_BACK);
    let known = decisions.iter().enumerate().skip(from).find(|(_, before)| **before == packed);
    if let Some((index, _)) = known {
        return index;
    }
    decisions.push(packed);
    decisions.len() - 1
}

/// One event as the API answers it.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct LogEntry {
    /// Its place in the log as text.
    pub id: String,
    /// Its place in the log: the row, and the event within it.
    #[serde(skip)]
    pub position: (AuditSequence, usize),
    /// When the request arrived.
    pub timestamp: Timestamp,
    /// What was asked.
    pub action: String,
    /// `user` or `service_account`; none where nobody was authenticated.
    pub identity_type: Option<String>,
    /// The principal.
    pub identity_id: Option<String>,
    /// The tenant.
    pub tenant_id: Option<String>,
    /// The path.
    pub secret_path: Option<String>,
    /// The version released or written.
    pub version: Option<i64>,
    /// The peer's address.
    pub source_ip: Option<String>,
    /// What the client calls itself.
    pub user_agent: Option<Arc<str>>,
    /// Whether it was permitted and done.
    pub success: bool,
    /// `ok`, `not_modified`, or an error code of the API.
    pub code: String,
    /// What the policies decided.
    pub decision: Option<LogDecision>,
    /// How long the request took until it was recorded, in milliseconds.
    pub duration_ms: f64,
    /// Joins the events of one request.
    pub request_id: String,
    /// The event's place in its batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<LogBatch>,
    /// What else is to be known, where the request was about no secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
}

/// What the policies decided, as the API answers it.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct LogDecision {
    /// The deciding module; none where no module had an opinion.
    pub module: Option<String>,
    /// The SHA-256 of its file.
    pub digest: Option<String>,
    /// Its word for machines.
    pub reason: String,
    /// The names of the rules that decided.
    pub rules: Vec<String>,
    /// Which fields the decision let be touched.
    #[serde(skip_serializing_if = "LogObligations::are_none")]
    pub obligations: LogObligations,
    /// Shadow modules that would have decided otherwise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dissent: Vec<LogDissent>,
    /// The generation of policies.
    pub generation: Option<u64>,
    /// The beginning of the digest of their manifest and files, which `GET /v1/policies/status` shows in full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policies: Option<String>,
    /// Everything that the policies asked, with the answers.
    pub inputs: serde_json::Map<String, Value>,
}

/// Field obligations, as they were joined.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LogObligations {
    /// These fields alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_fields: Option<Vec<String>>,
    /// Never these fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without_fields: Vec<String>,
}

impl LogObligations {
    fn are_none(&self) -> bool {
        *self == Self::default()
    }
}

/// A shadow module that would have decided otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogDissent {
    /// The module.
    pub module: String,
    /// `allow` or `deny`.
    pub would: String,
}

/// A place in a batch.
#[derive(Debug, Clone, Copy, Serialize, PartialEq)]
pub struct LogBatch {
    /// 0, 1, …
    pub index: usize,
    /// How many paths the batch named.
    pub size: usize,
}

/// Takes a row apart into its events, newest first like the rows. `None` where the row was not written by [`pack`].
#[must_use]
pub fn unpack(row: &StoredAuditRow) -> Option<Vec<LogEntry>> {
    let packed: Packed = serde_json::from_slice(&row.body).ok()?;
    let mut entries: Vec<LogEntry> =
        (0..packed.events.len()).filter_map(|index| log_entry(row.sequence, &packed, index)).collect();
    entries.reverse();
    Some(entries)
}

fn log_entry(sequence: AuditSequence, packed: &Packed, index: usize) -> Option<LogEntry> {
    let (path, version, code, decision) = packed.events.get(index)?;
    let (id, kind, tenant) = match &packed.identity {
        Some((id, kind, tenant)) => (Some(id.clone()), Some(kind.clone()), Some(tenant.clone())),
        None => (None, None, None),
    };
    #[expect(clippy::cast_precision_loss, reason = "a duration far below 2^52 microseconds")]
    let duration_ms = packed.micros as f64 / 1_000.0;
    Some(LogEntry {
        id: format!("evt_{sequence}_{index}"),
        position: (sequence, index),
        timestamp: Timestamp::from_micros(packed.at),
        action: packed.action.clone(),
        identity_type: kind,
        identity_id: id,
        tenant_id: tenant,
        secret_path: path.clone(),
        version: *version,
        source_ip: packed.ip.clone(),
        user_agent: packed.agent.clone(),
        success: matches!(code.as_str(), OK | NOT_MODIFIED),
        code: code.clone(),
        decision: decision.and_then(|index| packed.decisions.get(index)).map(|decision| log_decision(packed, decision)),
        duration_ms,
        request_id: packed.request.clone(),
        batch: packed.batch.map(|size| LogBatch { index, size }),
        details: packed.details.clone(),
    })
}

fn log_decision(packed: &Packed, decision: &PackedDecision) -> LogDecision {
    let (module, digest) = decision.module.clone().unzip();
    LogDecision {
        module,
        digest,
        reason: decision.reason.clone(),
        rules: decision.rules.clone(),
        obligations: decision.obligations.clone(),
        dissent: decision.dissent.clone(),
        generation: packed.generation,
        policies: packed.policies.clone(),
        inputs: packed.inputs.iter().chain(&decision.inputs).cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::ModuleRef;

    fn decision(reason: &str) -> Decision {
        Decision {
            verdict: Verdict::Allow(FieldFilter { only: Some(vec!["id".into()]), without: vec![] }),
            module: Some(Arc::new(ModuleRef { name: "rules".into(), digest: "ab".into() })),
            reason: reason.into(),
            rules: vec!["r/0".into()],
            dissent: vec![(Arc::new(ModuleRef { name: "next".into(), digest: "cd".into() }), "deny")],
            inputs: vec![],
        }
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let context = RequestContext {
            request_id: "req_1".into(),
            now: Timestamp::from_micros(5),
            source_ip: Some([10, 0, 0, 1].into()),
            user_agent: Some("curl".into()),
        };
        let event = |path, code, decision| Event {
            path: SecretPath::parse(path).ok(),
            version: Version::new(2),
            code,
            decision: Some(decision),
        };
        let row = pack(Entry {
            identity: None,
            context: &context,
            action: "read",
            generation: Some(7),
            policies: Some("0123456789abcdef0123"),
            batch_size: Some(3),
            duration: Duration::from_micros(1_500),
            inputs: vec![InputRead { name: "principal.id".into(), value: "sa:x".into() }],
            events: vec![
                event("a/b", OK, decision("ok")),
                event("a/c", OK, decision("ok")),
                event("a/d", "access_denied", decision("no")),
            ],
            details: None,
        });
        let text = String::from_utf8(row.body.clone()).unwrap();
        assert_eq!(text.matches("\"rules\"").count(), 4, "two decisions, stored once each: {text}");
        let entries = unpack(&StoredAuditRow { sequence: 9, body: row.body }).unwrap();
        let ids: Vec<_> = entries.iter().map(|e| (e.id.as_str(), e.success)).collect();
        assert_eq!(ids, [("evt_9_2", false), ("evt_9_1", true), ("evt_9_0", true)]);
        assert_eq!(entries[1].secret_path.as_deref(), Some("a/c"));
        assert_eq!(entries[1].batch, Some(LogBatch { index: 1, size: 3 }));
        let decision = entries[0].decision.as_ref().unwrap();
        assert_eq!((decision.reason.as_str(), decision.generation), ("no", Some(7)));
        assert_eq!(decision.policies.as_deref(), Some("0123456789abcdef"));
        assert_eq!(decision.inputs["principal.id"], "sa:x");
        assert_eq!(decision.obligations.only_fields.as_deref(), Some(&["id".to_owned()][..]));
        assert_eq!(decision.dissent, [LogDissent { module: "next".into(), would: "deny".into() }]);
        assert_eq!(unpack(&StoredAuditRow { sequence: 1, body: b"{}".to_vec() }), None);
    }
}
