//! How the events of a request are packed into one row.

use std::{borrow::Cow, fmt::Write, iter::repeat_n, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::log_entry::{LogDissent, LogObligations};
use crate::domain::{
    AuditRow, Decision, FieldFilter, Identity, InputRead, MAX_PATH_BYTES, ModuleRef, RequestContext, SecretPath,
    Timestamp, Verdict, Version,
};

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

impl<'a> Entry<'a> {
    /// An entry of nobody that tells nothing yet.
    #[must_use]
    pub fn new(context: &'a RequestContext, action: &'static str, duration: Duration) -> Self {
        Self {
            identity: None,
            context,
            action,
            generation: None,
            policies: None,
            batch_size: None,
            duration,
            inputs: Vec::new(),
            events: Vec::new(),
            details: None,
        }
    }
}

/// What became of one path.
pub struct Event {
    /// The path; none where no path could be parsed, or the event is about none.
    pub path: Option<SecretPath>,
    /// The version released or written.
    pub version: Option<Version>,
    /// [`super::OK`], [`super::NOT_MODIFIED`], or an error code of the API.
    pub code: &'static str,
    /// What the policies decided.
    pub decision: Option<Decision>,
}

impl Event {
    /// An event about no path.
    #[must_use]
    pub const fn of(code: &'static str) -> Self {
        Self { path: None, version: None, code, decision: None }
    }
}

/// The version of the packed form that is written.
const PACKED: u8 = 2;

/// The packed form. Short, since it is written at every request: what the row's columns say is not said again, a decision
/// or an outcome shared by many paths stands once, and a path tells only how it differs from the one before.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Packed {
    v: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) agent: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) generation: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) policies: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) batch: Option<usize>,
    pub(super) micros: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) inputs: Vec<(String, Value)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) decisions: Vec<PackedDecision>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    paths: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    outcomes: Vec<(usize, Outcome)>,
    /// Version 1 had no paths and outcomes, but these.
    #[serde(default, skip_serializing)]
    events: Vec<FirstEvent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) details: Option<Value>,
}

/// Path, and what is now an [`Outcome`].
type FirstEvent = (Option<String>, Option<i64>, String, Option<usize>);

/// Version, code, index into [`Packed::decisions`].
pub(super) type Outcome = (Option<i64>, Cow<'static, str>, Option<usize>);

impl Packed {
    /// The events, path and outcome. `None` where this does not come to so many.
    pub(super) fn events(&self, count: usize) -> Option<Vec<(Option<String>, Outcome)>> {
        let flat = |(path, version, code, by): &FirstEvent| (path.clone(), (*version, code.clone().into(), *by));
        let events: Vec<_> = match self.v {
            1 => self.events.iter().map(flat).collect(),
            PACKED if self.outcomes.is_empty() && self.paths.is_empty() => Vec::new(),
            PACKED => {
                let times = self.outcomes.iter().try_fold(0_usize, |sum, (times, _)| sum.checked_add(*times));
                let paths = unfold(&self.paths).filter(|paths| times == Some(paths.len()))?;
                let outcomes = self.outcomes.iter().flat_map(|(times, outcome)| repeat_n(outcome.clone(), *times));
                paths.into_iter().zip(outcomes).collect()
            }
            _ => return None,
        };
        (events.len() == count).then_some(events)
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct PackedDecision {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) module: Option<(String, String)>,
    pub(super) reason: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) rules: Vec<String>,
    #[serde(default, skip_serializing_if = "LogObligations::are_none")]
    pub(super) obligations: LogObligations,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) dissent: Vec<LogDissent>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) inputs: Vec<(String, Value)>,
}

/// Packs the events of a request into the row that the store keeps.
#[must_use]
pub fn pack(entry: Entry<'_>) -> AuditRow {
    let Entry { identity, context, action, generation, policies, batch_size, duration, inputs, events, details } =
        entry;
    let count = events.len();
    let mut packed = Packed {
        v: PACKED,
        agent: context.user_agent.clone(),
        generation,
        policies: policies.and_then(|digest| digest.get(..SHORT_DIGEST)).map(str::to_owned),
        batch: batch_size,
        micros: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
        inputs: pack_inputs(inputs),
        paths: fold(events.iter().map(|event| event.path.as_ref())),
        details,
        ..Packed::default()
    };
    for event in events {
        let decision = event.decision.map(|decision| index_of(&mut packed.decisions, decision));
        let outcome = (event.version.map(Version::get), Cow::Borrowed(event.code), decision);
        match packed.outcomes.last_mut() {
            Some((times, same)) if *same == outcome => *times += 1,
            _ => packed.outcomes.push((1, outcome)),
        }
    }
    AuditRow {
        at: context.now,
        tenant: identity.map(|who| who.tenant.clone()),
        identity_id: identity.map(|who| who.id.to_string()),
        identity_type: identity.map(|who| Cow::Borrowed(who.kind.as_str())),
        action: Cow::Borrowed(action),
        source_ip: context.source_ip.map(|ip| ip.to_string()),
        request_id: context.request_id.to_string(),
        events: u32::try_from(count).unwrap_or(u32::MAX),
        // INVARIANT: the packed form has text keys and plain values alone, so it always serialises.
        body: serde_json::to_vec(&packed).unwrap_or_default(),
    }
}

/// Paths as one text, parted by spaces: of each, how many bytes it begins with like the one before, a colon, and the rest.
/// What shares nothing has no number; what is no path is empty. No path holds a space or a colon.
fn fold<'a>(paths: impl Iterator<Item = Option<&'a SecretPath>>) -> String {
    let (mut text, mut before) = (String::new(), "");
    for (index, path) in paths.map(|path| path.map_or("", SecretPath::as_str)).enumerate() {
        if index > 0 {
            text.push(' ');
        }
        let shared = path.bytes().zip(before.bytes()).take_while(|(here, there)| here == there).count();
        if shared > 0 {
            write!(text, "{shared}:").ok();
        }
        text.push_str(path.get(shared..).unwrap_or_default());
        before = path;
    }
    text
}

/// Undoes [`fold`] of one path at least. `None` where this is not its work.
fn unfold(text: &str) -> Option<Vec<Option<String>>> {
    let mut before = String::new();
    let unfolded = |part: &str| {
        if let Some((shared, rest)) = part.split_once(':') {
            before = format!("{}{rest}", before.get(..shared.parse().ok()?)?);
        } else {
            part.clone_into(&mut before);
        }
        (before.len() <= MAX_PATH_BYTES).then(|| Some(before.clone()).filter(|path| !path.is_empty()))
    };
    text.split(' ').map(unfolded).collect()
}

/// Packs what the vault says for itself, and what is no event.
pub(super) fn pack_own(action: &'static str, at: Timestamp, details: Value) -> AuditRow {
    let context = RequestContext::own("".into(), at);
    pack(Entry { details: Some(details), ..Entry::new(&context, action, Duration::ZERO) })
}

fn pack_inputs(inputs: Vec<InputRead>) -> Vec<(String, Value)> {
    inputs.into_iter().map(|input| (input.name.into_owned(), input.value)).collect()
}

/// How far back an equal decision is looked for: neighbours mostly share one, and a longer search would cost more than
/// the bytes it saves.
const LOOK_BACK: usize = 16;

fn index_of(decisions: &mut Vec<PackedDecision>, decision: Decision) -> usize {
    let known = decisions.iter().rev().take(LOOK_BACK).position(|before| before.is(&decision));
    if let Some(back) = known {
        return decisions.len() - 1 - back;
    }
    decisions.push(PackedDecision {
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
    });
    decisions.len() - 1
}

impl PackedDecision {
    /// Whether this decision would be packed like that.
    fn is(&self, decision: &Decision) -> bool {
        let module = decision.module.as_ref().map(|module| (&module.name, &module.digest));
        let (only, without) = match &decision.verdict {
            Verdict::Allow(FieldFilter { only, without }) => (only.as_ref(), without.as_slice()),
            Verdict::Deny(_) => (None, &[][..]),
        };
        let dissents = |before: &LogDissent, (module, would): &(Arc<ModuleRef>, &str)| {
            before.module == module.name && before.would == *would
        };
        self.rules == decision.rules
            && self.reason == decision.reason
            && self.module.as_ref().map(|(name, digest)| (name, digest)) == module
            && self.obligations.only_fields.as_ref() == only
            && self.obligations.without_fields == without
            && self.dissent.len() == decision.dissent.len()
            && self.dissent.iter().zip(&decision.dissent).all(|(before, now)| dissents(before, now))
            && self.inputs.len() == decision.inputs.len()
            && self
                .inputs
                .iter()
                .zip(&decision.inputs)
                .all(|((name, value), now)| *name == now.name && *value == now.value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn folded(paths: &[Option<&str>]) -> String {
        let paths: Vec<_> = paths.iter().map(|path| path.map(|path| SecretPath::parse(path).unwrap())).collect();
        fold(paths.iter().map(Option::as_ref))
    }

    #[test]
    fn folded_paths_unfold() {
        let cases: [(&[Option<&str>], &str); 6] = [
            (&[None], ""),
            (&[None, None], " "),
            (&[Some("a/b"), Some("a/b")], "a/b 3:"),
            (&[Some("shop/db"), Some("shop/mail"), None, Some("shop/mail")], "shop/db 5:mail  shop/mail"),
            (&[Some("a/b/c"), Some("a/b"), Some("a/b/d")], "a/b/c 3: 3:/d"),
            (&[Some("1/2"), Some("13"), Some("x")], "1/2 1:3 x"),
        ];
        for (paths, text) in cases {
            assert_eq!(folded(paths), text);
            let unfolded = unfold(text).unwrap();
            assert_eq!(unfolded.iter().map(Option::as_deref).collect::<Vec<_>>(), paths);
        }
    }

    proptest! {
        #[test]
        fn every_list_of_paths_unfolds(paths in vec(option::of("[a-b0-1]{1,2}(/[a-b0-1]{1,2}){0,3}"), 1..20)) {
            let paths: Vec<_> = paths.iter().map(Option::as_deref).collect();
            let unfolded = unfold(&folded(&paths)).unwrap();
            prop_assert_eq!(unfolded.iter().map(Option::as_deref).collect::<Vec<_>>(), paths);
        }
    }

    #[test]
    fn what_was_not_folded_does_not_unfold() {
        let long = "x".repeat(MAX_PATH_BYTES);
        for text in ["1:a", "a/b 4:c", "a x:b", "a -1:b", "a :b", &format!("{long} {MAX_PATH_BYTES}:y")] {
            assert_eq!(unfold(text), None, "{text}");
        }
    }
}
