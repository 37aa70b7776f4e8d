//! The combining of answers against a plain model of it: a million random cases, all of which must agree.
//!
//! The model knows the design's section "Combining" and nothing of the production code.

use std::{cell::RefCell, thread, time::Duration};

use super::*;
use crate::domain::PathPattern;

const CASES: u64 = 1_000_000;
const ACTIONS: [Action; 3] = [Action::Read, Action::Write, Action::List];
const PATHS: [&str; 4] = ["a/b", "a/c/d", "b/b", "c"];
/// Patterns, and which of [`PATHS`] each matches: by hand.
const PATTERNS: [(&str, [bool; 4]); 5] = [
    ("**", [true, true, true, true]),
    ("a/**", [true, true, false, false]),
    ("*/b", [true, false, true, false]),
    ("c", [false, false, false, true]),
    ("nowhere/*", [false, false, false, false]),
];
/// Fields that duties name; a secret has others too, of which `other` stands for all.
const FIELDS: [&str; 5] = ["user", "password", "host", "port", "other"];
const NAMED: usize = 4;
const REASONS: [&str; 7] =
    ["", "my-own", "access_denied", "mfa_required", "ip_not_allowed", "time_window_violation", "policy_error"];
const FAILURES: [Failure; 6] =
    [Failure::Trap, Failure::Deadline, Failure::Memory, Failure::Output, Failure::Malformed, Failure::GivenUp];

/// One module of a case: where it applies, and what it would say.
#[derive(Debug)]
struct Module {
    enforces: bool,
    actions: Option<Vec<usize>>,
    patterns: Vec<usize>,
    says: Says,
}

#[derive(Debug)]
enum Says {
    Allow(Text, Vec<Duty>),
    Deny(Text),
    Abstain(Text),
    Fail(Failure),
}

/// What comes with an answer.
#[derive(Debug)]
struct Text {
    reason: &'static str,
    message: Option<&'static str>,
    rules: Vec<String>,
    input: Option<u64>,
}

#[derive(Debug)]
enum Duty {
    /// These alone, by their place in [`FIELDS`].
    Only(Vec<usize>, bool),
    Without(Vec<usize>, bool),
    Unknown(&'static str, bool),
}

/// What follows from a case; production's [`Decision`] and the model's are both put so.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// Which of [`FIELDS`] may be touched, where it is allowed; else the code and the reason given to the caller.
    verdict: Result<[bool; FIELDS.len()], (&'static str, Option<String>)>,
    message: Option<String>,
    module: Option<usize>,
    reason: String,
    rules: Vec<String>,
    dissent: Vec<(usize, &'static str)>,
    inputs: Vec<u64>,
    asked: Vec<usize>,
}

// ----- the model -----

fn model(action: usize, path: usize, modules: &[Module]) -> Outcome {
    let applies = |module: &Module| {
        module.actions.as_ref().is_none_or(|actions| actions.contains(&action))
            && module.patterns.iter().any(|pattern| PATTERNS[*pattern].1[path])
    };
    let in_force: Vec<(usize, &Module)> = modules.iter().enumerate().filter(|(_, module)| applies(module)).collect();
    let enforcing: Vec<_> = in_force.iter().copied().filter(|(_, module)| module.enforces).collect();
    let ends = enforcing.iter().position(|(_, module)| module.says.forbids());
    let heard = &enforcing[..ends.map_or(enforcing.len(), |last| last + 1)];
    let is_heard = |place: usize| heard.iter().any(|(of_heard, _)| *of_heard == place);
    let inputs = heard.iter().filter_map(|(_, module)| module.says.text()?.input).collect();
    let asked = in_force.iter().filter(|(place, module)| !module.enforces || is_heard(*place)).map(|(p, _)| *p);
    let first_allow = heard.iter().find(|(_, module)| matches!(module.says, Says::Allow(..)));
    let base = Outcome {
        verdict: Err(("access_denied", None)),
        message: Some(format!("No policy permits {} on this path", ACTIONS[action].as_str())),
        module: None,
        reason: "no_policy".to_owned(),
        rules: Vec::new(),
        dissent: Vec::new(),
        inputs,
        asked: asked.collect(),
    };
    let mut outcome = match (ends.map(|last| enforcing[last]), first_allow) {
        (Some((place, module)), _) => denied_by(place, &module.says, base),
        (None, Some((place, module))) => Outcome {
            verdict: Ok(std::array::from_fn(|field| heard.iter().all(|(_, module)| module.says.leaves(field)))),
            message: None,
            module: Some(*place),
            reason: module.says.text().unwrap().reason.to_owned(),
            rules: module.says.text().unwrap().rules.clone(),
            ..base
        },
        (None, None) => base,
    };
    for (place, shadow) in in_force.iter().filter(|(_, module)| !module.enforces) {
        let would = match &shadow.says {
            Says::Abstain(_) => continue,
            says if says.forbids() => "deny",
            _ => "allow",
        };
        if (would == "allow") != outcome.verdict.is_ok() {
            outcome.dissent.push((*place, would));
        }
    }
    outcome
}

fn denied_by(place: usize, says: &Says, base: Outcome) -> Outcome {
    let rules = says.text().map(|text| text.rules.clone()).unwrap_or_default();
    let named = ["access_denied", "mfa_required", "ip_not_allowed", "time_window_violation"];
    let (code, told, reason, message) = match says {
        Says::Deny(text) => {
            let code = named.into_iter().find(|code| *code == text.reason);
            let message = text.message.unwrap_or("A policy denies this access").to_owned();
            (code.unwrap_or("access_denied"), code.is_none().then_some(text.reason), text.reason, message)
        }
        Says::Fail(failure) => {
            let message = "A policy could not decide; what cannot be decided is denied".to_owned();
            ("policy_error", Some(failure.as_str()), failure.as_str(), message)
        }
        Says::Allow(_, duties) => {
            let kind = duties.iter().find_map(Duty::unheard_of).unwrap();
            let message = format!("A policy asks for a duty that this vault does not know: {kind}");
            ("policy_error", Some("unknown_obligation"), "unknown_obligation", message)
        }
        Says::Abstain(_) => panic!("silence ends nothing"),
    };
    let verdict = Err((code, told.map(str::to_owned)));
    Outcome { verdict, message: Some(message), module: Some(place), reason: reason.to_owned(), rules, ..base }
}

impl Says {
    fn forbids(&self) -> bool {
        match self {
            Self::Deny(_) | Self::Fail(_) => true,
            Self::Allow(_, duties) => duties.iter().any(|duty| duty.unheard_of().is_some()),
            Self::Abstain(_) => false,
        }
    }

    fn leaves(&self, field: usize) -> bool {
        let Self::Allow(_, duties) = self else { return true };
        duties.iter().all(|duty| match duty {
            Duty::Only(fields, _) => fields.contains(&field),
            Duty::Without(fields, _) => !fields.contains(&field),
            Duty::Unknown(..) => true,
        })
    }

    fn text(&self) -> Option<&Text> {
        match self {
            Self::Allow(text, _) | Self::Deny(text) | Self::Abstain(text) => Some(text),
            Self::Fail(_) => None,
        }
    }
}

impl Duty {
    fn unheard_of(&self) -> Option<&'static str> {
        match self {
            Self::Unknown(kind, true) => Some(kind),
            _ => None,
        }
    }
}

// ----- the production code, fed with the same case -----

struct Bench {
    paths: Vec<SecretPath>,
    patterns: Vec<PathPattern>,
    references: Vec<Arc<ModuleRef>>,
}

impl Bench {
    fn new() -> Self {
        let reference = |place: usize| Arc::new(ModuleRef { name: place.to_string(), digest: String::new() });
        Self {
            paths: PATHS.iter().map(|path| SecretPath::parse(path).unwrap()).collect(),
            patterns: PATTERNS.iter().map(|(pattern, _)| PathPattern::parse(pattern).unwrap()).collect(),
            references: (0..7).map(reference).collect(),
        }
    }

    fn production(&self, action: usize, path: usize, modules: &[Module]) -> Outcome {
        let entries: Vec<Entry> = modules.iter().map(|module| self.entry(module)).collect();
        let asked = RefCell::new(Vec::new());
        let voters = entries.iter().zip(&self.references).enumerate();
        let voters = voters.map(|(place, (entry, reference))| (entry, reference, place));
        let decision = combine(ACTIONS[action], &self.paths[path], voters, |place| {
            asked.borrow_mut().push(place);
            heard(&modules[place].says)
        });
        let (verdict, message) = match decision.verdict {
            Verdict::Allow(filter) => {
                let permitted = FIELDS.map(|field| filter.permits(field));
                assert_eq!(filter.is_open(), permitted == [true; FIELDS.len()]);
                (Ok(permitted), None)
            }
            Verdict::Deny(denial) => (Err((denial.code.as_str(), denial.reason)), Some(denial.message)),
        };
        let place = |reference: Arc<ModuleRef>| reference.name.parse().unwrap();
        Outcome {
            verdict,
            message,
            module: decision.module.map(place),
            reason: decision.reason,
            rules: decision.rules,
            dissent: decision.dissent.into_iter().map(|(reference, would)| (place(reference), would)).collect(),
            inputs: decision.inputs.iter().map(|input| input.value.as_u64().unwrap()).collect(),
            asked: asked.into_inner(),
        }
    }

    fn entry(&self, module: &Module) -> Entry {
        let actions = module.actions.as_ref();
        Entry {
            name: String::new(),
            module: String::new(),
            sha256: None,
            settings: None,
            settings_sha256: None,
            vectors: None,
            mode: if module.enforces { Mode::Enforce } else { Mode::Shadow },
            actions: actions.map(|actions| actions.iter().map(|action| ACTIONS[*action]).collect()),
            paths: module.patterns.iter().map(|pattern| self.patterns[*pattern].clone()).collect(),
            deadline: Duration::ZERO,
            configure_deadline: Duration::ZERO,
            memory: 0,
        }
    }
}

fn heard(says: &Says) -> Heard {
    let silent = |answer| Heard { answer, inputs: Vec::new(), notes: Vec::new(), took: Duration::ZERO };
    let (effect, text, duties) = match says {
        Says::Allow(text, duties) => (Effect::Allow, text, &duties[..]),
        Says::Deny(text) => (Effect::Deny, text, &[][..]),
        Says::Abstain(text) => (Effect::Abstain, text, &[][..]),
        Says::Fail(failure) => return silent(Err(*failure)),
    };
    let names = |fields: &[usize]| fields.iter().map(|field| FIELDS[*field].to_owned()).collect();
    let obligation = |duty: &Duty| match duty {
        Duty::Only(fields, critical) => {
            Obligation { kind: "only-fields".to_owned(), args: names(fields), critical: *critical }
        }
        Duty::Without(fields, critical) => {
            Obligation { kind: "without-fields".to_owned(), args: names(fields), critical: *critical }
        }
        Duty::Unknown(kind, critical) => {
            Obligation { kind: (*kind).to_owned(), args: vec!["user".to_owned()], critical: *critical }
        }
    };
    let decision = super::super::host::GuestDecision {
        effect,
        reason: text.reason.to_owned(),
        message: text.message.map(str::to_owned),
        rules: text.rules.clone(),
        obligations: duties.iter().map(obligation).collect(),
    };
    let input = |number: u64| InputRead { name: "n".into(), value: number.into() };
    Heard { inputs: text.input.map(input).into_iter().collect(), ..silent(Ok(decision)) }
}

// ----- random cases -----

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % bound
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    fn some_of(&mut self, bound: usize, most: usize) -> Vec<usize> {
        (0..self.below(most + 1)).map(|_| self.below(bound)).collect()
    }

    fn module(&mut self) -> Module {
        let everywhere = self.one_in(2);
        Module {
            enforces: !self.one_in(4),
            actions: if self.one_in(3) { Some(self.some_of(ACTIONS.len(), 3)) } else { None },
            patterns: if everywhere { vec![0] } else { self.some_of(PATTERNS.len(), 2) },
            says: self.says(),
        }
    }

    fn says(&mut self) -> Says {
        let text = Text {
            reason: REASONS[self.below(REASONS.len())],
            message: self.one_in(3).then_some("A sentence"),
            rules: self.some_of(9, 2).iter().map(|rule| format!("rule-{rule}")).collect(),
            input: self.one_in(2).then(|| self.next() >> 1),
        };
        match self.below(10) {
            0 => Says::Deny(text),
            1 => Says::Fail(FAILURES[self.below(FAILURES.len())]),
            2 | 3 => Says::Abstain(text),
            _ => Says::Allow(text, (0..self.below(4)).map(|_| self.duty()).collect()),
        }
    }

    fn duty(&mut self) -> Duty {
        let critical = self.one_in(2);
        match self.below(16) {
            0 => Duty::Unknown(["sing-a-song", "ONLY-FIELDS", ""][self.below(3)], critical),
            1 | 2 => Duty::Unknown("dance", false),
            3..=9 => Duty::Only(self.some_of(NAMED, 4), critical),
            _ => Duty::Without(self.some_of(NAMED, 2), critical),
        }
    }
}

#[test]
fn a_million_cases_are_combined_as_the_model_says() {
    let workers = 4;
    let tally: Vec<[u32; 4]> = thread::scope(|scope| {
        let run = |worker| scope.spawn(move || compare((worker..CASES).step_by(workers)));
        let running: Vec<_> = (0..u64::try_from(workers).unwrap()).map(run).collect();
        running.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let [allows, filtered, denials, dissents] =
        std::array::from_fn(|what| tally.iter().map(|of| of[what]).sum::<u32>());
    println!("{allows} allowed, {filtered} of them filtered; {denials} denied by a module; {dissents} with dissent");
    for rare in [allows - filtered, filtered, denials, dissents] {
        assert!(rare > 50_000, "{allows} {filtered} {denials} {dissents}: the cases tell too little");
    }
}

/// Compares these cases, each of which is made of its number alone.
fn compare(seeds: impl Iterator<Item = u64>) -> [u32; 4] {
    let bench = Bench::new();
    let mut tally = [0; 4];
    for seed in seeds {
        let mut random = Random(seed);
        let (action, path) = (random.below(ACTIONS.len()), random.below(PATHS.len()));
        let modules: Vec<Module> = (0..random.below(7)).map(|_| random.module()).collect();
        let (expected, got) = (model(action, path, &modules), bench.production(action, path, &modules));
        assert_eq!(got, expected, "case {seed}: {} on {}, {modules:#?}", ACTIONS[action].as_str(), PATHS[path]);
        tally[0] += u32::from(expected.verdict.is_ok());
        tally[1] += u32::from(expected.verdict.as_ref().is_ok_and(|fields| *fields != [true; FIELDS.len()]));
        tally[2] += u32::from(expected.verdict.is_err() && expected.module.is_some());
        tally[3] += u32::from(!expected.dissent.is_empty());
    }
    tally
}
