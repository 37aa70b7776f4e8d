//! Yesterday's decisions put to other policies. The audit log has what was asked, and what the policies of that day read;
//! an input that nobody read then is not known, and a decision that turns on it cannot be judged.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    PolicySet,
    explanation::{Explanation, JoinedFields},
    guest::Failure,
    host::{Inquiry, Subject},
    scenario::{ContextFacts, PrincipalFacts, Scenario, SecretFacts},
    session::Session,
};
use crate::domain::{Action, DenialCode, Timestamp};

/// The codes of events that the policies denied.
const DENIALS: [DenialCode; 5] = [
    DenialCode::AccessDenied,
    DenialCode::MfaRequired,
    DenialCode::IpNotAllowed,
    DenialCode::TimeWindowViolation,
    DenialCode::PolicyError,
];
/// Inputs that every event tells by itself.
const TOLD: [&str; 5] = ["principal.id", "principal.kind", "principal.tenant", "context.now", "context.source-ip"];
/// Inputs that are null of a path without a secret alone: one of them tells all about what is not there.
const NULL_IF_ABSENT: [&str; 5] =
    ["secret.secret-type", "secret.version", "secret.created-by", "secret.created-at", "secret.updated-at"];
/// How often an event is decided at most.
const TRIES: u32 = 3;
const WRITTEN_FIELDS: &str = "secret.written-fields";
const CLAIM: &str = "principal.claim(";
const CUSTOM: &str = "secret.custom(";

/// An event of the audit log, as far as it matters here.
#[derive(Debug, Clone, Deserialize)]
pub struct PastEvent {
    id: String,
    timestamp: Timestamp,
    action: String,
    identity_id: Option<String>,
    tenant_id: Option<String>,
    secret_path: Option<String>,
    source_ip: Option<IpAddr>,
    code: String,
    request_id: String,
    decision: Option<PastDecision>,
}

#[derive(Debug, Clone, Deserialize)]
struct PastDecision {
    module: Option<String>,
    reason: String,
    #[serde(default)]
    obligations: JoinedFields,
    inputs: Map<String, Value>,
}

/// What other policies make of an event.
#[derive(Debug)]
pub enum Judgement {
    /// It is about nothing that policies decide.
    NoPolicyAction,
    /// It ended before the policies were asked.
    Undecided,
    /// They decide as it was decided.
    Same,
    /// They decide otherwise.
    Flipped(Turn, Box<Flip>),
    /// They ask what was not recorded.
    Unjudged(Box<Unjudged>),
}

/// How a decision changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// What was denied would be allowed.
    DenyToAllow,
    /// What was allowed would be denied.
    AllowToDeny,
    /// It stays allowed, with other fields.
    OtherFields,
}

/// The access that was decided about.
#[derive(Debug, Clone, Serialize)]
pub struct Access {
    /// The event's id.
    pub id: String,
    /// When.
    pub timestamp: Timestamp,
    /// Joins the events of one request.
    pub request_id: String,
    /// Who.
    pub identity_id: String,
    /// Of which tenant.
    pub tenant_id: String,
    /// What.
    pub action: String,
    /// Where.
    pub path: String,
}

/// A decision that would be another.
#[derive(Debug, Serialize)]
pub struct Flip {
    /// The access.
    #[serde(flatten)]
    pub access: Access,
    /// What was decided.
    pub before: Outcome,
    /// What would be.
    pub after: Outcome,
}

/// One side of a flip.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// `ok`, or the API's code.
    pub code: String,
    /// The deciding module.
    pub module: Option<String>,
    /// Its word for machines.
    pub reason: String,
    /// Which fields may be touched.
    pub obligations: JoinedFields,
}

/// A decision that turns on what was not recorded.
#[derive(Debug, Serialize)]
pub struct Unjudged {
    /// The access.
    #[serde(flatten)]
    pub access: Access,
    /// The inputs that the policies ask and the event does not tell.
    pub missing: Vec<String>,
}

impl PastEvent {
    /// Decides the event anew.
    ///
    /// # Errors
    ///
    /// In words, where it is no event as the vault records them.
    pub fn judge(&self, set: &PolicySet) -> Result<Judgement, String> {
        let Some(action) = Action::parse(&self.action) else { return Ok(Judgement::NoPolicyAction) };
        let Some(decision) = &self.decision else { return Ok(Judgement::Undecided) };
        let access = self.access()?;
        let recorded = Recorded::new(&decision.inputs, action);
        let posed = recorded.scenario(&access, self.source_ip)?.pose(self.timestamp);
        let (inquiry, subject, action) = posed.map_err(|problems| {
            problems.iter().map(|problem| format!("it cannot be rebuilt: {problem}")).collect::<Vec<_>>().join("; ")
        })?;
        let explanation = decide(set, inquiry, action, &subject);
        let mut missing = recorded.missing(&explanation);
        let after = self.outcome(action, decision, &recorded, explanation, &subject.written_fields);
        if after.is_none() {
            missing.insert(WRITTEN_FIELDS.to_owned());
        }
        Ok(match after.filter(|_| missing.is_empty()) {
            None => Judgement::Unjudged(Box::new(Unjudged { access, missing: missing.into_iter().collect() })),
            Some(after) => self.compare(action, decision, access, after),
        })
    }

    fn access(&self) -> Result<Access, String> {
        let absent = |what: &str| format!("it has a decision and no `{what}`");
        Ok(Access {
            id: self.id.clone(),
            timestamp: self.timestamp,
            request_id: self.request_id.clone(),
            identity_id: self.identity_id.clone().ok_or_else(|| absent("identity_id"))?,
            tenant_id: self.tenant_id.clone().ok_or_else(|| absent("tenant_id"))?,
            action: self.action.clone(),
            path: self.secret_path.clone().ok_or_else(|| absent("secret_path"))?,
        })
    }

    fn was_denied(&self) -> bool {
        DENIALS.iter().any(|code| code.as_str() == self.code)
    }

    /// What would follow; `None` where it turns on the names of fields that are not known.
    fn outcome(
        &self,
        action: Action,
        before: &PastDecision,
        recorded: &Recorded<'_>,
        explanation: Explanation,
        written: &[String],
    ) -> Option<Outcome> {
        let Explanation { code, module, reason, obligations, .. } = explanation;
        let after = Outcome { code: code.to_owned(), module, reason, obligations };
        if action != Action::Write || code != "ok" || permitted(&after.obligations).is_open() {
            return Some(after);
        }
        let refused = if recorded.knows(WRITTEN_FIELDS) {
            !written.iter().all(|field| permitted(&after.obligations).permits(field))
        } else if permitted(&before.obligations) == permitted(&after.obligations) {
            // The same duties met the same fields then.
            self.was_denied()
        } else {
            return None;
        };
        let code = if refused { DenialCode::AccessDenied.as_str().to_owned() } else { after.code.clone() };
        Some(Outcome { code, ..after })
    }

    fn compare(&self, action: Action, before: &PastDecision, access: Access, after: Outcome) -> Judgement {
        let fields_matter = matches!(action, Action::Read | Action::Write);
        let turn = match (self.was_denied(), after.code != "ok") {
            (true, false) => Turn::DenyToAllow,
            (false, true) => Turn::AllowToDeny,
            (false, false) if fields_matter && permitted(&before.obligations) != permitted(&after.obligations) => {
                Turn::OtherFields
            }
            _ => return Judgement::Same,
        };
        let before = Outcome {
            code: self.code.clone(),
            module: before.module.clone(),
            reason: before.reason.clone(),
            obligations: before.obligations.clone(),
        };
        Judgement::Flipped(turn, Box::new(Flip { access, before, after }))
    }
}

/// One session for each event. A deadline may be the machine's fault, and is no flip before it was met every time.
fn decide(set: &PolicySet, inquiry: Inquiry, action: Action, subject: &Subject) -> Explanation {
    let inquiry = Arc::new(inquiry);
    let mut explanation = Session::dry(set, Arc::clone(&inquiry)).explain(action, subject);
    for _ in 1..TRIES {
        if explanation.modules.iter().all(|module| module.outcome != Failure::Deadline.as_str()) {
            break;
        }
        explanation = Session::dry(set, Arc::clone(&inquiry)).explain(action, subject);
    }
    explanation
}

/// Field obligations by what they permit, however they are written.
#[derive(PartialEq)]
struct Permitted<'f> {
    only: Option<BTreeSet<&'f str>>,
    without: BTreeSet<&'f str>,
}

fn permitted(fields: &JoinedFields) -> Permitted<'_> {
    let without: BTreeSet<&str> = fields.without_fields.iter().map(String::as_str).collect();
    match &fields.only_fields {
        None => Permitted { only: None, without },
        Some(only) => {
            let only = only.iter().map(String::as_str).filter(|field| !without.contains(field)).collect();
            Permitted { only: Some(only), without: BTreeSet::new() }
        }
    }
}

impl Permitted<'_> {
    fn is_open(&self) -> bool {
        self.only.is_none() && self.without.is_empty()
    }

    fn permits(&self, field: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(field)) && !self.without.contains(field)
    }
}

/// The inputs that an event tells.
struct Recorded<'e> {
    inputs: &'e Map<String, Value>,
    action: Action,
    /// There was no secret at all.
    absent: bool,
}

impl<'e> Recorded<'e> {
    fn new(inputs: &'e Map<String, Value>, action: Action) -> Self {
        let absent = NULL_IF_ABSENT.iter().any(|name| inputs.get(*name).is_some_and(Value::is_null));
        Self { inputs, action, absent }
    }

    /// What the enforcing modules asked that the event does not tell. Shadow modules decide nothing.
    fn missing(&self, explanation: &Explanation) -> BTreeSet<String> {
        let enforcing = explanation.modules.iter().filter(|module| module.mode == "enforce");
        let asked = enforcing.flat_map(|module| module.inputs.keys());
        asked.filter(|name| !self.knows(name)).cloned().collect()
    }

    fn knows(&self, name: &str) -> bool {
        self.inputs.contains_key(name)
            || TOLD.contains(&name)
            || (name == WRITTEN_FIELDS && self.action != Action::Write)
            || (self.absent && name != WRITTEN_FIELDS && name.starts_with("secret."))
            || argument(name, CLAIM).is_some_and(|pointer| self.tells_around(pointer))
    }

    /// Whether a claim was recorded that this one is a part of.
    fn tells_around(&self, pointer: &str) -> bool {
        let ends = pointer.match_indices('/').map(|(end, _)| end);
        ends.filter_map(|end| pointer.get(..end)).any(|outer| self.inputs.contains_key(&format!("{CLAIM}{outer})")))
    }

    fn scenario(&self, access: &Access, source_ip: Option<IpAddr>) -> Result<Scenario, String> {
        let principal = PrincipalFacts {
            id: access.identity_id.clone(),
            tenant: access.tenant_id.clone(),
            groups: self.get("principal.groups")?.unwrap_or_default(),
            scopes: self.get("principal.scopes")?.unwrap_or_default(),
            claims: self.claims(),
            authenticated_at: self.instant("principal.authenticated-at")?,
            authentication_methods: self.get("principal.authentication-methods")?.unwrap_or_default(),
        };
        Ok(Scenario {
            action: access.action.clone(),
            path: access.path.clone(),
            principal,
            context: ContextFacts { now: Some(access.timestamp), source_ip },
            secret: if self.absent { SecretFacts::absent() } else { self.secret()? },
            written_fields: self.get(WRITTEN_FIELDS)?.unwrap_or_default(),
        })
    }

    fn secret(&self) -> Result<SecretFacts, String> {
        let custom = self.inputs.iter().filter_map(|(name, value)| {
            let key = argument(name, CUSTOM)?;
            value.as_str().map(|value| (key.to_owned(), value.to_owned()))
        });
        Ok(SecretFacts {
            exists: Some(self.get("secret.exists")?.unwrap_or(true)),
            secret_type: self.get("secret.secret-type")?,
            version: self.get("secret.version")?,
            owner: self.get::<Option<String>>("secret.owner")?.flatten(),
            tags: self.get("secret.tags")?.unwrap_or_default(),
            custom: custom.collect(),
            created_by: self.get("secret.created-by")?,
            created_at: self.instant("secret.created-at")?,
            updated_at: self.instant("secret.updated-at")?,
            expires_at: self.instant("secret.expires-at")?,
        })
    }

    fn get<T: Deserialize<'e>>(&self, name: &str) -> Result<Option<T>, String> {
        let value = self.inputs.get(name).map(T::deserialize).transpose();
        value.map_err(|_| format!("the recorded `{name}` has another type"))
    }

    /// An instant, which policies see in milliseconds.
    fn instant(&self, name: &str) -> Result<Option<Timestamp>, String> {
        let millis = self.get::<Option<i64>>(name)?.flatten();
        Ok(millis.map(|millis| Timestamp::from_micros(millis.saturating_mul(1_000))))
    }

    /// The claims that were recorded, outer ones before their parts. What is null was not there.
    fn claims(&self) -> Map<String, Value> {
        let claims = self.inputs.iter().filter_map(|(name, value)| Some((argument(name, CLAIM)?, value)));
        let mut claims: Vec<_> = claims.filter(|(_, value)| !value.is_null()).collect();
        claims.sort_by_key(|(pointer, _)| pointer.len());
        let mut root = Value::Object(Map::new());
        for (pointer, value) in claims {
            place(&mut root, pointer, value);
        }
        if let Value::Object(claims) = root { claims } else { Map::new() }
    }
}

/// The argument in the recorded name of a question.
fn argument<'n>(name: &'n str, question: &str) -> Option<&'n str> {
    name.strip_prefix(question)?.strip_suffix(')')
}

/// Puts a value where the pointer leads, in objects all the way: a pointer finds the member `0` of an object as it finds
/// the first item of an array. What an outer claim said already stays as it is.
fn place(root: &mut Value, pointer: &str, value: &Value) {
    if pointer.is_empty() {
        root.clone_from(value);
        return;
    }
    if root.pointer(pointer).is_some() || !pointer.starts_with('/') {
        return;
    }
    let mut here = root;
    for step in pointer.split('/').skip(1) {
        let Value::Object(members) = here else { return };
        let step = step.replace("~1", "/").replace("~0", "~");
        here = members.entry(step).or_insert_with(|| Value::Object(Map::new()));
    }
    here.clone_from(value);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::policy::{
        host::{
            HostState,
            portcullis::policy::{context, principal, secret},
        },
        limits::GuestLimits,
    };

    fn map(value: Value) -> Map<String, Value> {
        if let Value::Object(map) = value { map } else { panic!("an object") }
    }

    #[test]
    fn claims_are_rebuilt_from_what_was_asked_of_them() {
        let inputs = map(json!({
            "principal.claim(/team/name)": "red",
            "principal.claim(/team)": {"name": "red", "rooms": ["a", "b"]},
            "principal.claim(/list/0)": 1,
            "principal.claim(/none)": null,
            "principal.claim(/a~1b/c~0d)": true,
            "principal.claim(no pointer)": null,
        }));
        let recorded = Recorded::new(&inputs, Action::Read);
        let claims = Value::Object(recorded.claims());
        for (name, value) in &inputs {
            let pointer = argument(name, CLAIM).unwrap();
            assert_eq!(claims.pointer(pointer).unwrap_or(&Value::Null), value, "{name}");
        }
        for (pointer, known) in [
            ("/team/rooms/0", true),
            ("/none/deeper", true),
            ("/list", false),
            ("/list/1", false),
            ("/teams", false),
            ("", false),
        ] {
            assert_eq!(recorded.knows(&format!("{CLAIM}{pointer})")), known, "{pointer}");
        }
        let whole = map(json!({"principal.claim()": {"x": {"y": 2}}}));
        let recorded = Recorded::new(&whole, Action::Read);
        assert!(recorded.knows("principal.claim(/anything)"));
        assert_eq!(Value::Object(recorded.claims()), json!({"x": {"y": 2}}));
    }

    #[test]
    fn what_an_event_tells_by_itself_is_known() {
        let nothing = Map::new();
        let read = Recorded::new(&nothing, Action::Read);
        let write = Recorded::new(&nothing, Action::Write);
        assert!(TOLD.iter().all(|name| read.knows(name)));
        assert!(read.knows(WRITTEN_FIELDS) && !write.knows(WRITTEN_FIELDS));
        assert!(!read.knows("principal.groups") && !read.knows("secret.tags") && !read.knows("secret.custom(k)"));
        let absent = map(json!({"secret.version": null}));
        let absent = Recorded::new(&absent, Action::Write);
        assert!(absent.knows("secret.tags") && absent.knows("secret.custom(k)") && !absent.knows(WRITTEN_FIELDS));
        // An owner can be null of a secret that is there.
        let present = map(json!({"secret.owner": null, "secret.expires-at": null}));
        assert!(!Recorded::new(&present, Action::Read).knows("secret.tags"));
    }

    #[test]
    fn obligations_are_compared_by_what_they_permit() {
        let fields = |only: Option<&[&str]>, without: &[&str]| {
            let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
            JoinedFields { only_fields: only.map(words), without_fields: words(without) }
        };
        let same = |a: &JoinedFields, b: &JoinedFields| permitted(a) == permitted(b);
        assert!(same(&fields(Some(&["a", "b"]), &[]), &fields(Some(&["b", "a", "a"]), &["c"])));
        assert!(same(&fields(Some(&["a", "b"]), &["b"]), &fields(Some(&["a"]), &[])));
        assert!(!same(&fields(Some(&[]), &[]), &fields(None, &[])));
        assert!(!same(&fields(None, &["a"]), &fields(None, &[])));
        assert!(permitted(&fields(None, &[])).is_open() && !permitted(&fields(Some(&[]), &[])).is_open());
    }

    /// Every question that a guest can ask, with the answers.
    fn all_inputs((inquiry, subject, _): (Inquiry, Subject, Action)) -> Map<String, Value> {
        let limits = GuestLimits::new(Duration::ZERO, Duration::ZERO, 0);
        let mut host = HostState::asked(limits, Arc::new(inquiry));
        host.turn_to(subject);
        let asked = [
            principal::Host::id(&mut host).map(drop),
            principal::Host::kind(&mut host).map(drop),
            principal::Host::tenant(&mut host).map(drop),
            principal::Host::scopes(&mut host).map(drop),
            principal::Host::groups(&mut host).map(drop),
            principal::Host::claim(&mut host, "/sub".into()).map(drop),
            principal::Host::claim(&mut host, "/team/rooms/1".into()).map(drop),
            principal::Host::claim(&mut host, "/nothing".into()).map(drop),
            principal::Host::authenticated_at(&mut host).map(drop),
            principal::Host::authentication_methods(&mut host).map(drop),
            context::Host::now(&mut host).map(drop),
            context::Host::source_ip(&mut host).map(drop),
            secret::Host::exists(&mut host).map(drop),
            secret::Host::secret_type(&mut host).map(drop),
            secret::Host::version(&mut host).map(drop),
            secret::Host::owner(&mut host).map(drop),
            secret::Host::tags(&mut host).map(drop),
            secret::Host::custom(&mut host, "k".into()).map(drop),
            secret::Host::custom(&mut host, "none".into()).map(drop),
            secret::Host::created_by(&mut host).map(drop),
            secret::Host::created_at(&mut host).map(drop),
            secret::Host::updated_at(&mut host).map(drop),
            secret::Host::expires_at(&mut host).map(drop),
            secret::Host::written_fields(&mut host).map(drop),
        ];
        assert!(asked.iter().all(Result::is_ok));
        let about_request = host.request_inputs().to_vec();
        let inputs = about_request.into_iter().chain(host.take_findings().0);
        inputs.map(|input| (input.name.into_owned(), input.value)).collect()
    }

    #[test]
    fn what_was_recorded_is_what_is_seen_again() {
        let now: Timestamp = "2026-03-02T09:30:00.123456Z".parse().unwrap();
        let rich = r#"
            action = "write"
            path = "a/b"
            principal = { id = "sa:x", tenant = "t", groups = ["g", "h"], scopes = ["secrets:read"], claims = { team = { rooms = ["a", 7] } }, authenticated_at = "2026-03-02T09:00:00.999Z", authentication_methods = ["pwd"] }
            context = { source_ip = "2001:db8::1" }
            written_fields = ["f"]
            [secret]
            secret_type = "json"
            version = 7
            owner = "o"
            tags = ["t"]
            custom = { k = "v" }
            created_by = "user:c"
            created_at = "2026-01-01T00:00:00.001999Z"
            updated_at = "2026-01-02T00:00:00Z"
        "#;
        let expired = "expires_at = \"2026-02-01T00:00:00Z\"";
        let scenarios = [
            "path = \"a\"".to_owned(),
            "path = \"a\"\nsecret = { exists = false }".to_owned(),
            rich.to_owned(),
            format!("{rich}\nexpires_at = \"2027-01-01T00:00:00Z\""),
            format!("{rich}\n{expired}"),
            format!("{rich}\n{expired}\nexists = true"),
            format!("{rich}\nexists = false"),
        ];
        for text in scenarios {
            let before: Scenario = toml::from_str(&text).unwrap();
            let inputs = all_inputs(before.pose(now).unwrap());
            let access = Access {
                id: "evt_1_0".into(),
                timestamp: now,
                request_id: "req".into(),
                identity_id: before.principal.id.clone(),
                tenant_id: before.principal.tenant.clone(),
                action: before.action.clone(),
                path: before.path.clone(),
            };
            let action = Action::parse(&before.action).unwrap();
            let after = Recorded::new(&inputs, action).scenario(&access, before.context.source_ip).unwrap();
            assert_eq!(all_inputs(after.pose(Timestamp::default()).unwrap()), inputs, "{text}");
        }
    }

    #[test]
    fn what_is_no_event_of_the_vault_is_told() {
        let set = crate::policy::Policies::load("/nonexistent".into(), Timestamp::default()).unwrap().current();
        let judged = |change: Value| {
            let mut event = json!({
                "id": "evt_1_0", "timestamp": "2026-03-02T09:30:00Z", "action": "read", "identity_id": "user:a",
                "tenant_id": "default", "secret_path": "a", "source_ip": null, "code": "ok", "request_id": "req_1",
                "decision": {"module": "m", "reason": "r", "inputs": {}}, "more": 1,
            });
            event.as_object_mut().unwrap().extend(map(change));
            PastEvent::deserialize(event).unwrap().judge(&set)
        };
        assert!(matches!(judged(json!({})), Ok(Judgement::Flipped(Turn::AllowToDeny, _))));
        assert!(matches!(judged(json!({"code": "secret_not_found"})), Ok(Judgement::Flipped(Turn::AllowToDeny, _))));
        for code in DENIALS {
            assert!(matches!(judged(json!({"code": code.as_str()})), Ok(Judgement::Same)), "{code:?}");
        }
        assert!(matches!(judged(json!({"action": "audit"})), Ok(Judgement::NoPolicyAction)));
        assert!(matches!(judged(json!({"decision": null})), Ok(Judgement::Undecided)));
        let decided = |inputs: Value| json!({"decision": {"reason": "r", "inputs": inputs}});
        for (change, named) in [
            (json!({"secret_path": null}), "secret_path"),
            (json!({"secret_path": "a//b"}), "path: "),
            (json!({"identity_id": "root"}), "principal.id: "),
            (decided(json!({"principal.groups": 1})), "principal.groups"),
            (decided(json!({"secret.created-at": "today"})), "secret.created-at"),
        ] {
            assert!(judged(change.clone()).unwrap_err().contains(named), "{change}");
        }
    }
}
