//! One request's questions: an instance of each module, the answers combined. The only road of a decision.

use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::Value;

use super::{
    PolicySet,
    explanation::Explanation,
    guest::{Answer, Failure, Guest},
    host::{Effect, GuestDecision, Inquiry, Obligation, Subject},
    lane,
    manifest::{Entry, Mode},
    set::Module,
    stats::Disagreement,
};
use crate::domain::{Action, Decision, Denial, DenialCode, FieldFilter, InputRead, ModuleRef, SecretPath, Verdict};

/// How long the calls of one request may take together; after that its paths are denied unasked.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often one request instantiates a module anew after failures; after that the module's paths are denied unasked.
const REVIVALS: u32 = 3;

/// The questions of one request, all put to one generation of policies.
///
/// It holds guests, so it must end before the request waits for anything.
pub struct Session<S> {
    set: S,
    inquiry: Arc<Inquiry>,
    slots: Vec<Slot>,
    /// Whether the modules' counters count it.
    counted: bool,
    /// How long this thread had worked when that was last asked.
    worked: Duration,
    /// The time of all calls so far, and of those that did not end in time.
    spent: Duration,
    late: Duration,
}

/// How many of a request's questions are put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// All of them.
    End,
    /// Those up to the first denial.
    Denied,
    /// Those up to the last of so many permissions.
    Allowed(usize),
}

/// A module's instance in this request.
#[derive(Default)]
struct Slot {
    guest: Option<Guest>,
    failures: u32,
    request_inputs: Vec<InputRead>,
}

/// What one module said, for the author's eyes.
#[derive(Debug, Serialize)]
pub struct Opinion {
    /// The module.
    pub module: String,
    /// Its mode.
    pub mode: &'static str,
    /// `allow`, `deny`, `abstain`, or how it failed.
    pub outcome: &'static str,
    /// Its word for machines.
    pub reason: String,
    /// Its sentence for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The names of the rules that decided.
    pub rules: Vec<String>,
    /// Duties.
    pub obligations: Vec<Duty>,
    /// What it asked, with the answers: about the secret, and about the request what it had not asked before.
    pub inputs: BTreeMap<String, Value>,
    /// What it noted.
    pub notes: Vec<String>,
    /// Time in the guest, in microseconds.
    pub micros: u64,
}

/// A duty that a module attaches to its answer.
#[derive(Debug, Serialize)]
pub struct Duty {
    /// Such as `only-fields`.
    pub kind: String,
    /// Such as the fields.
    pub args: Vec<String>,
    /// Whether a vault that does not know it must deny.
    pub critical: bool,
}

/// One module's answer to one question, and what there was beside it.
struct Heard {
    answer: Result<GuestDecision, Failure>,
    inputs: Vec<InputRead>,
    notes: Vec<String>,
    took: Duration,
}

impl<S: Deref<Target = PolicySet>> Session<S> {
    /// Begins. Instances are made when first needed.
    pub(super) fn new(set: S, inquiry: impl Into<Arc<Inquiry>>) -> Self {
        let slots = set.modules.iter().map(|_| Slot::default()).collect();
        Self {
            set,
            inquiry: inquiry.into(),
            slots,
            counted: true,
            worked: lane::worked(),
            spent: Duration::ZERO,
            late: Duration::ZERO,
        }
    }

    /// Begins the questions of a dry run: decided as in earnest, counted and logged nowhere.
    #[must_use]
    pub fn dry(set: S, inquiry: impl Into<Arc<Inquiry>>) -> Self {
        Self { counted: false, ..Self::new(set, inquiry) }
    }

    /// May the principal do this with that path? One call of each module in force for it.
    pub fn decide(&mut self, action: Action, subject: &Subject) -> Decision {
        self.consider(action, subject, &mut |_| ())
    }

    /// As [`Session::decide`], told in full.
    pub fn explain(&mut self, action: Action, subject: &Subject) -> Explanation {
        let mut opinions = Vec::new();
        let decision = self.consider(action, subject, &mut |opinion| opinions.push(opinion()));
        Explanation::new(decision, opinions, self.request_inputs())
    }

    /// What the modules asked about the request itself, all paths together.
    #[must_use]
    pub fn request_inputs(&self) -> Vec<InputRead> {
        let mut inputs: Vec<InputRead> = Vec::new();
        for slot in &self.slots {
            for input in slot.request_inputs() {
                if !inputs.iter().any(|known| known.name == input.name) {
                    inputs.push(input.clone());
                }
            }
        }
        inputs
    }

    fn consider(
        &mut self,
        action: Action,
        subject: &Subject,
        observe: &mut dyn FnMut(&dyn Fn() -> Opinion),
    ) -> Decision {
        let modules = self.set.modules.iter().zip(&mut self.slots);
        let modules = modules.map(|(module, slot)| (&module.entry, &module.reference, (module, slot)));
        let decision = combine(action, &subject.path, modules, |(module, slot)| {
            let known = slot.request_inputs().count();
            let exhausted = self.spent > PATIENCE;
            let heard = slot.ask(module, &self.inquiry, action, subject, exhausted);
            self.spent += heard.took;
            if matches!(heard.answer, Err(Failure::Deadline)) {
                self.late += heard.took;
            }
            if self.counted {
                module.stats.pace.called(worked_long(&mut self.worked, heard.took));
                module.stats.called(outcome_of(&heard.answer), heard.took);
            }
            observe(&|| opinion(module, &heard, slot.request_inputs().skip(known)));
            heard
        });
        if self.counted {
            self.tell_dissent(&decision, action, &subject.path);
        }
        decision
    }

    fn tell_dissent(&self, decision: &Decision, action: Action, path: &SecretPath) {
        for (reference, would) in &decision.dissent {
            tracing::info!(policy = reference.name, %path, would, "a shadow policy disagrees");
            let of_it = |module: &&Module| Arc::ptr_eq(&module.reference, reference);
            let Some(module) = self.set.modules.iter().find(of_it) else { continue };
            module.stats.disagreed(Disagreement {
                at: self.inquiry.context.now,
                tenant: self.inquiry.identity.tenant.clone(),
                request_id: Arc::clone(&self.inquiry.context.request_id),
                action,
                path: path.clone(),
                would,
            });
        }
    }
}

/// All questions of one request, on their way to be answered.
pub(super) struct Round {
    session: Session<Arc<PolicySet>>,
    action: Action,
    subjects: std::vec::IntoIter<Subject>,
    until: Until,
    allowed: usize,
    decisions: Vec<Decision>,
}

impl Round {
    pub(super) fn new(session: Session<Arc<PolicySet>>, action: Action, subjects: Vec<Subject>, until: Until) -> Self {
        let decisions = Vec::with_capacity(subjects.len());
        Self { session, action, subjects: subjects.into_iter(), until, allowed: 0, decisions }
    }

    /// Puts questions, in their order, until there is no more to ask or the time is over. Whether there is no more.
    pub(super) fn go_on(&mut self, time: Duration) -> bool {
        let limit = self.session.spent.saturating_add(time);
        while self.until != Until::Allowed(self.allowed)
            && let Some(subject) = self.subjects.next()
        {
            let decision = self.session.decide(self.action, &subject);
            let permits = matches!(decision.verdict, Verdict::Allow(_));
            self.allowed += usize::from(permits);
            self.decisions.push(decision);
            if !permits && self.until == Until::Denied {
                return true;
            }
            if self.session.spent > limit {
                return self.subjects.len() == 0;
            }
        }
        true
    }

    /// How long modules were asked that did not answer in time.
    pub(super) fn late(&self) -> Duration {
        self.session.late
    }

    /// The decisions, and what the modules asked about the request itself.
    pub(super) fn end(self) -> (Vec<Decision>, Vec<InputRead>) {
        let inputs = self.session.request_inputs();
        (self.decisions, inputs)
    }
}

/// Whether a call that took so long was also at work for long. Asked of the system for calls that may have been alone.
fn worked_long(before: &mut Duration, took: Duration) -> bool {
    if took < lane::LONG {
        return false;
    }
    let now = lane::worked();
    now.saturating_sub(std::mem::replace(before, now)) >= lane::LONG
}

impl Slot {
    /// What this module asked about the request so far, in that order.
    fn request_inputs(&self) -> impl Iterator<Item = &InputRead> {
        self.request_inputs.iter().chain(self.guest.as_ref().map_or(&[][..], Guest::request_inputs))
    }

    fn ask(
        &mut self,
        module: &Module,
        inquiry: &Arc<Inquiry>,
        action: Action,
        subject: &Subject,
        exhausted: bool,
    ) -> Heard {
        let start = Instant::now();
        let answer = if exhausted { Err(Failure::GivenUp) } else { self.answer(module, inquiry, action, subject) };
        let took = start.elapsed();
        match answer {
            Ok(Answer { decision, inputs, notes }) => Heard { answer: Ok(decision), inputs, notes, took },
            Err(failure) => {
                self.failures += 1;
                let (inputs, notes) = self.bury();
                Heard { answer: Err(failure), inputs, notes, took }
            }
        }
    }

    /// Lets go of an instance that failed. What it asked and noted before stays.
    fn bury(&mut self) -> (Vec<InputRead>, Vec<String>) {
        let Some(mut guest) = self.guest.take() else { return Default::default() };
        self.request_inputs.extend_from_slice(guest.request_inputs());
        guest.take_findings()
    }

    fn answer(
        &mut self,
        module: &Module,
        inquiry: &Arc<Inquiry>,
        action: Action,
        subject: &Subject,
    ) -> Result<Answer, Failure> {
        if self.failures > REVIVALS {
            return Err(Failure::GivenUp);
        }
        let guest = match &mut self.guest {
            Some(guest) => guest,
            empty => empty.insert(module.template.instantiate(Arc::clone(inquiry))?),
        };
        guest.evaluate(action, subject.clone())
    }
}

/// Asks the modules that have to be asked, in the manifest's order, and makes their answers one.
fn combine<'m, M>(
    action: Action,
    path: &SecretPath,
    modules: impl Iterator<Item = (&'m Entry, &'m Arc<ModuleRef>, M)>,
    mut ask: impl FnMut(M) -> Heard,
) -> Decision {
    let mut combination = Combination::default();
    let mut shadows = Vec::new();
    for (entry, reference, module) in modules {
        let enforced = entry.mode == Mode::Enforce;
        if !entry.applies(action, path) || (enforced && combination.is_closed()) {
            continue;
        }
        let heard = ask(module);
        if enforced {
            combination.add(reference, heard);
        } else {
            shadows.push((reference, stance(heard.answer)));
        }
    }
    let mut decision = combination.conclude(action);
    let allowed = matches!(decision.verdict, Verdict::Allow(_));
    for (reference, effect) in shadows {
        if effect != Effect::Abstain && (effect == Effect::Allow) != allowed {
            let would = if allowed { "deny" } else { "allow" };
            decision.dissent.push((Arc::clone(reference), would));
        }
    }
    decision
}

/// The answers of the enforcing modules so far. Deny overrides; a failure is a denial; silence is one too.
#[derive(Default)]
struct Combination {
    denied: Option<Decision>,
    allowed: Option<(Arc<ModuleRef>, String, Vec<String>)>,
    filter: FieldFilter,
    inputs: Vec<InputRead>,
}

impl Combination {
    /// Whether nothing that follows can change the answer.
    fn is_closed(&self) -> bool {
        self.denied.is_some()
    }

    fn add(&mut self, module: &Arc<ModuleRef>, heard: Heard) {
        self.inputs.extend(heard.inputs);
        let decision = match heard.answer {
            Ok(decision) => decision,
            Err(failure) => {
                let message = "A policy could not decide; what cannot be decided is denied".to_owned();
                let denial =
                    Denial { code: DenialCode::PolicyError, message, reason: Some(failure.as_str().to_owned()) };
                return self.deny(module, denial, failure.as_str().to_owned(), Vec::new());
            }
        };
        match decision.effect {
            Effect::Abstain => (),
            Effect::Deny => {
                let named = DenialCode::named_by(&decision.reason);
                let denial = Denial {
                    code: named.unwrap_or(DenialCode::AccessDenied),
                    message: decision.message.unwrap_or_else(|| "A policy denies this access".to_owned()),
                    reason: named.is_none().then(|| decision.reason.clone()),
                };
                self.deny(module, denial, decision.reason, decision.rules);
            }
            Effect::Allow => match oblige(&mut self.filter, decision.obligations) {
                Ok(()) => {
                    self.allowed.get_or_insert((Arc::clone(module), decision.reason, decision.rules));
                }
                Err(kind) => {
                    let reason = "unknown_obligation".to_owned();
                    let message =
                        format!("A policy asks for a duty that this vault does not know: {}", kind.escape_default());
                    let denial = Denial { code: DenialCode::PolicyError, message, reason: Some(reason.clone()) };
                    self.deny(module, denial, reason, decision.rules);
                }
            },
        }
    }

    fn deny(&mut self, module: &Arc<ModuleRef>, denial: Denial, reason: String, rules: Vec<String>) {
        self.denied = Some(Decision {
            verdict: Verdict::Deny(denial),
            module: Some(Arc::clone(module)),
            reason,
            rules,
            dissent: Vec::new(),
            inputs: Vec::new(),
        });
    }

    fn conclude(self, action: Action) -> Decision {
        if let Some(denied) = self.denied {
            return Decision { inputs: self.inputs, ..denied };
        }
        if let Some((module, reason, rules)) = self.allowed {
            let verdict = Verdict::Allow(self.filter);
            let dissent = Vec::new();
            return Decision { verdict, module: Some(module), reason, rules, dissent, inputs: self.inputs };
        }
        let message = format!("No policy permits {} on this path", action.as_str());
        Decision {
            verdict: Verdict::Deny(Denial { code: DenialCode::AccessDenied, message, reason: None }),
            module: None,
            reason: "no_policy".to_owned(),
            rules: Vec::new(),
            dissent: Vec::new(),
            inputs: self.inputs,
        }
    }
}

/// Joins an allow's duties to the stricter. Answers the kind of a critical duty that is not known.
fn oblige(filter: &mut FieldFilter, obligations: Vec<Obligation>) -> Result<(), String> {
    for duty in obligations {
        match duty.kind.as_str() {
            "only-fields" => filter.restrict_to(duty.args),
            "without-fields" => filter.exclude(duty.args),
            _ if duty.critical => return Err(duty.kind),
            _ => (),
        }
    }
    Ok(())
}

/// What would follow from a shadow module's answer: a failure or an unknown critical duty is a denial.
fn stance(answer: Result<GuestDecision, Failure>) -> Effect {
    let Ok(decision) = answer else { return Effect::Deny };
    let refused =
        decision.effect == Effect::Allow && oblige(&mut FieldFilter::default(), decision.obligations).is_err();
    if refused { Effect::Deny } else { decision.effect }
}

fn outcome_of(answer: &Result<GuestDecision, Failure>) -> &'static str {
    match answer {
        Ok(decision) => word_of(decision.effect),
        Err(failure) => failure.as_str(),
    }
}

/// The contract's word for an answer.
pub(super) const fn word_of(effect: Effect) -> &'static str {
    match effect {
        Effect::Allow => "allow",
        Effect::Deny => "deny",
        Effect::Abstain => "abstain",
    }
}

fn opinion<'i>(module: &Module, heard: &'i Heard, about_request: impl Iterator<Item = &'i InputRead>) -> Opinion {
    let decision = heard.answer.as_ref().ok();
    let duties = decision.map_or(&[][..], |decision| &decision.obligations);
    let duty = |duty: &Obligation| Duty { kind: duty.kind.clone(), args: duty.args.clone(), critical: duty.critical };
    let inputs = about_request.chain(&heard.inputs);
    Opinion {
        module: module.reference.name.clone(),
        mode: module.mode.as_str(),
        outcome: outcome_of(&heard.answer),
        reason: decision.map(|decision| decision.reason.clone()).unwrap_or_default(),
        message: decision.and_then(|decision| decision.message.clone()),
        rules: decision.map(|decision| decision.rules.clone()).unwrap_or_default(),
        obligations: duties.iter().map(duty).collect(),
        inputs: inputs.map(|input| (input.name.to_string(), input.value.clone())).collect(),
        notes: heard.notes.clone(),
        micros: u64::try_from(heard.took.as_micros()).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
