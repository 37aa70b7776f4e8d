//! How a row is taken apart into its events.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    NOT_MODIFIED, OK,
    pack::{Outcome, Packed, PackedDecision},
};
use crate::domain::{AuditPlace, StoredAuditRow, Timestamp};

/// One event as the API answers it.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct LogEntry {
    /// Its place in the log as text.
    pub id: String,
    /// Its place in the order of the log: its row, and the event within it.
    #[serde(skip)]
    pub position: (Timestamp, AuditPlace, usize),
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
    pub(super) fn are_none(&self) -> bool {
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

/// Takes a row apart into its events, in the order in which they were packed. `None` where the row was not written by
/// [`super::pack`].
#[must_use]
pub fn unpack(row: &StoredAuditRow) -> Option<Vec<LogEntry>> {
    let packed: Packed = serde_json::from_slice(&row.row.body).ok()?;
    let events = packed.events(usize::try_from(row.row.events).ok()?)?.into_iter().enumerate();
    Some(events.map(|(index, (path, outcome))| log_entry(row, &packed, index, path, outcome)).collect())
}

fn log_entry(
    StoredAuditRow { place, row, .. }: &StoredAuditRow,
    packed: &Packed,
    index: usize,
    path: Option<String>,
    (version, code, decision): Outcome,
) -> LogEntry {
    #[expect(clippy::cast_precision_loss, reason = "a duration far below 2^52 microseconds")]
    let duration_ms = packed.micros as f64 / 1_000.0;
    LogEntry {
        id: format!("evt_{place}_{index}"),
        position: (row.at, *place, index),
        timestamp: row.at,
        action: row.action.to_string(),
        identity_type: row.identity_type.as_deref().map(str::to_owned),
        identity_id: row.identity_id.clone(),
        tenant_id: row.tenant.as_ref().map(|tenant| tenant.as_str().to_owned()),
        secret_path: path,
        version,
        source_ip: row.source_ip.clone(),
        user_agent: packed.agent.clone(),
        success: matches!(&*code, OK | NOT_MODIFIED),
        code: code.into_owned(),
        decision: decision.and_then(|index| packed.decisions.get(index)).map(|decision| log_decision(packed, decision)),
        duration_ms,
        request_id: row.request_id.clone(),
        batch: packed.batch.map(|size| LogBatch { index, size }),
        details: packed.details.clone(),
    }
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
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
        audit::{Entry, Event, pack},
        domain::{
            AuditPlace, AuditRow, Decision, FieldFilter, InputRead, ModuleRef, ReceiptSlot, RequestContext, SecretPath,
            TenantId, Verdict, Version,
        },
    };

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
            receipt: ReceiptSlot::default(),
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
        let place = AuditPlace { chain: 1, number: 9 };
        let stored = |row| StoredAuditRow { place, row, link: vec![] };
        let entries = unpack(&stored(row.clone())).unwrap();
        let ids: Vec<_> = entries.iter().map(|e| (e.id.as_str(), e.success)).collect();
        assert_eq!(ids, [("evt_1_9_0", true), ("evt_1_9_1", true), ("evt_1_9_2", false)]);
        assert_eq!(entries[1].secret_path.as_deref(), Some("a/c"));
        assert_eq!(entries[1].batch, Some(LogBatch { index: 1, size: 3 }));
        let decision = entries[2].decision.as_ref().unwrap();
        assert_eq!((decision.reason.as_str(), decision.generation), ("no", Some(7)));
        assert_eq!(decision.policies.as_deref(), Some("0123456789abcdef"));
        assert_eq!(decision.inputs["principal.id"], "sa:x");
        assert_eq!(decision.obligations.only_fields.as_deref(), Some(&["id".to_owned()][..]));
        assert_eq!(decision.dissent, [LogDissent { module: "next".into(), would: "deny".into() }]);
        let entry = Entry { events: vec![], ..Entry::new(&context, "checkpoint", Duration::ZERO) };
        assert_eq!(unpack(&stored(pack(entry))), Some(vec![]));
    }

    fn row(events: u32, body: &str) -> StoredAuditRow {
        let row = AuditRow {
            at: Timestamp::from_micros(5),
            tenant: TenantId::parse("default"),
            identity_id: Some("sa:x".to_owned()),
            identity_type: Some("service_account".into()),
            action: "batch_read".into(),
            source_ip: Some("10.0.0.1".to_owned()),
            request_id: "req_1".to_owned(),
            events,
            body: body.into(),
        };
        StoredAuditRow { place: AuditPlace { chain: 1, number: 9 }, row, link: vec![] }
    }

    #[test]
    fn a_row_of_the_first_version_is_unpacked_alike() {
        let first = row(
            3,
            r#"{"v":1,"at":5,"request":"req_1","action":"batch_read","identity":["sa:x","service_account","default"],
                "ip":"10.0.0.1","micros":9,"decisions":[{"reason":"ok"}],
                "events":[["a/b",2,"ok",0],["a/c",2,"ok",0],[null,null,"not_found",null]]}"#,
        );
        let second = row(
            3,
            r#"{"v":2,"micros":9,"decisions":[{"reason":"ok"}],
                "paths":"a/b 2:c ","outcomes":[[2,[2,"ok",0]],[1,[null,"not_found",null]]]}"#,
        );
        let entries = unpack(&first).unwrap();
        assert_eq!(entries[1].secret_path.as_deref(), Some("a/c"));
        assert_eq!((entries.len(), entries[2].code.as_str()), (3, "not_found"));
        assert_eq!(unpack(&second).unwrap(), entries);
    }

    #[test]
    fn what_was_not_packed_is_not_unpacked() {
        let outcomes =
            |times: &str| format!(r#"{{"v":2,"micros":9,"paths":"a/b 2:c","outcomes":[[{times},[2,"ok",0]]]}}"#);
        assert_eq!(unpack(&row(2, &outcomes("2"))).map(|entries| entries.len()), Some(2));
        assert_eq!(unpack(&row(3, &outcomes("2"))), None);
        let without_outcomes = r#"{"v":2,"micros":9,"paths":"a/b 2:c"}"#;
        let wrong = ["1", "3", "18446744073709551615"].map(outcomes);
        for body in wrong.iter().map(String::as_str).chain(["", "{}", r#"{"v":3,"micros":9}"#, without_outcomes]) {
            for events in 0..4 {
                assert_eq!(unpack(&row(events, body)), None, "{body}");
            }
        }
    }
}
