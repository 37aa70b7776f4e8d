//! One request's questions: an instance of each module, the answers combined. The only road of a decision.

use std::{sync::Arc, time::Instant};

use serde::Serialize;

use super::{
    PolicySet,
    guest::{Answer, Failure, Guest},
    host::{Effect, Inquiry, Obligation, Subject},
    manifest::Mode,
    set::Module,
};
use crate::domain::{Action, Decision, Denial, DenialCode, FieldFilter, InputRead, ModuleRef, Verdict};

/// How often one request instantiates a module anew after failures; after that the module's paths are denied unasked.
const REVIVALS: u32 = 3;

/// The questions of one request, all put to one generation of policies.
///
/// It holds guests, so it must end before the request waits for anything.
pub struct Session<'s> {
    set: &'s PolicySet,
    inquiry: Arc<Inquiry>,
    slots: Vec<Slot>,
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
    /// Duties, as `kind(args)`.
    pub obligations: Vec<String>,
    /// What it noted.
    pub notes: Vec<String>,
    /// Time in the guest, in microseconds.
    pub micros: u64,
}

impl<'s> Session<'s> {
    /// Begins. Instances are made when first needed.
    pub(super) fn new(set: &'s PolicySet, inquiry: Inquiry) -> Self {
        let slots = set.modules.iter().map(|_| Slot::default()).collect();
        Self { set, inquiry: Arc::new(inquiry), slots }
    }

    /// May the principal do this with that path? One call of each module in force for it.
    pub fn decide(&mut self, action: Action, subject: &Subject) -> Decision {
        self.consider(action, subject, &mut |_| ())
    }

    /// As [`Session::decide`], with what every module said.
    pub fn explain(&mut self, action: Action, subject: &Subject) -> (Decision, Vec<Opinion>) {
        let mut opinions = Vec::new();
        let decision = self.consider(action, subject, &mut |opinion| opinions.push(opinion()));
        (decision, opinions)
    }

    /// What the modules asked about the request itself, all paths together.
    #[must_use]
    pub fn request_inputs(&self) -> Vec<InputRead> {
        let mut inputs: Vec<InputRead> = Vec::new();
        for slot in &self.slots {
            let of_guest = slot.guest.as_ref().map_or(&[][..], Guest::request_inputs);
            for input in slot.request_inputs.iter().chain(of_guest) {
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
        let mut combination = Combination::default();
        let mut shadows = Vec::new();
        for (module, slot) in self.set.modules.iter().zip(&mut self.slots) {
            let enforced = module.mode == Mode::Enforce;
            if !module.applies(action, &subject.path) || (enforced && combination.is_closed()) {
                continue;
            }
            let (answer, took) = slot.ask(module, &self.inquiry, action, subject);
            observe(&|| opinion(module, &answer, took));
            if enforced {
                combination.add(module, answer);
            } else {
                shadows.push((module, stance(answer)));
            }
        }
        let mut decision = combination.conclude(action);
        let allowed = matches!(decision.verdict, Verdict::Allow(_));
        for (module, effect) in shadows {
            if effect != Effect::Abstain && (effect == Effect::Allow) != allowed {
                module.stats.disagreed();
                let would = if allowed { "deny" } else { "allow" };
                tracing::info!(policy = module.reference.name, path = %subject.path, would, "a shadow policy disagrees");
                decision.dissent.push((Arc::clone(&module.reference), would));
            }
        }
        decision
    }
}

impl Slot {
    fn ask(
        &mut self,
        module: &Module,
        inquiry: &Arc<Inquiry>,
        action: Action,
        subject: &Subject,
    ) -> (Result<Answer, Failure>, std::time::Duration) {
        let start = Instant::now();
        let answer = self.answer(module, inquiry, action, subject);
        let took = start.elapsed();
        if answer.is_err() {
            self.failures += 1;
            if let Some(guest) = self.guest.take() {
                self.request_inputs.extend_from_slice(guest.request_inputs());
            }
        }
        module.stats.called(outcome_of(&answer), took);
        (answer, took)
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

    fn add(&mut self, module: &Module, answer: Result<Answer, Failure>) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => {
                let message = "A policy could not decide; what cannot be decided is denied".to_owned();
                let denial =
                    Denial { code: DenialCode::PolicyError, message, reason: Some(failure.as_str().to_owned()) };
                return self.deny(module, denial, failure.as_str().to_owned(), Vec::new());
            }
        };
        self.inputs.extend(answer.inputs);
        let decision = answer.decision;
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
                    self.allowed.get_or_insert((Arc::clone(&module.reference), decision.reason, decision.rules));
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

    fn deny(&mut self, module: &Module, denial: Denial, reason: String, rules: Vec<String>) {
        self.denied = Some(Decision {
            verdict: Verdict::Deny(denial),
            module: Some(Arc::clone(&module.reference)),
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
fn stance(answer: Result<Answer, Failure>) -> Effect {
    let Ok(Answer { decision, .. }) = answer else { return Effect::Deny };
    let refused =
        decision.effect == Effect::Allow && oblige(&mut FieldFilter::default(), decision.obligations).is_err();
    if refused { Effect::Deny } else { decision.effect }
}

fn outcome_of(answer: &Result<Answer, Failure>) -> &'static str {
    match answer {
        Ok(answer) => match answer.decision.effect {
            Effect::Allow => "allow",
            Effect::Deny => "deny",
            Effect::Abstain => "abstain",
        },
        Err(failure) => failure.as_str(),
    }
}

fn opinion(module: &Module, answer: &Result<Answer, Failure>, took: std::time::Duration) -> Opinion {
    let decision = answer.as_ref().ok().map(|answer| &answer.decision);
    let duties = decision.map_or(&[][..], |decision| &decision.obligations);
    Opinion {
        module: module.reference.name.clone(),
        mode: module.mode.as_str(),
        outcome: outcome_of(answer),
        reason: decision.map(|decision| decision.reason.clone()).unwrap_or_default(),
        message: decision.and_then(|decision| decision.message.clone()),
        rules: decision.map(|decision| decision.rules.clone()).unwrap_or_default(),
        obligations: duties.iter().map(|duty| format!("{}({})", duty.kind, duty.args.join(", "))).collect(),
        notes: answer.as_ref().map(|answer| answer.notes.clone()).unwrap_or_default(),
        micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
    }
}
