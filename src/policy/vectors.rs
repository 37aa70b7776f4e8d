//! Test vectors: what one module by itself must answer, in a TOML file beside it. Part of every load, so that a module
//! that does not do what its author wrote down never comes into force.
//!
//! Each vector is asked three ways: in a fresh instance; in order, in one instance for all vectors of the same principal
//! and context, as a batch asks; and shuffled, twice, among questions of other vectors. A module that answers
//! differently then keeps something between questions, and its decisions depend on who asked what before.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Deserialize;

use super::{
    guest::{Failure, Guest, Template},
    host::{Effect, GuestDecision, Inquiry, Obligation, Subject},
    scenario::Scenario,
    session::word_of,
};
use crate::domain::{Action, Timestamp};

/// Most vectors of a module.
pub const MOST_VECTORS: usize = 10_000;
/// Longest name of a vector, in bytes.
const NAME_BYTES: usize = 256;
/// When a vector that names no instant is asked, so that no answer depends on the day: 2026-01-01T00:00:00Z.
const NOW: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);
/// How long a self-test may take; a slow module must not hold a reload for ever.
const LONGEST: Duration = Duration::from_secs(30);
/// Failures that are told.
const TOLD: usize = 20;
/// Questions to one instance: as many as a batch has paths.
const BATCH: usize = 100;
/// Questions of other vectors among which a group's own are shuffled.
const BORROWED: usize = 8;
/// How often a question is put before a deadline counts: on a busy machine the first may be the machine's fault.
const TRIES: u32 = 3;
/// What the shuffle starts from. The same order every time: a failure can be met again.
const SEED: u64 = 0x0070_6f72_7463_756c;

/// The vectors of one module.
#[derive(Debug)]
pub struct Suite {
    vectors: Vec<Vector>,
    /// Vectors of the same principal and context.
    groups: Vec<Vec<usize>>,
}

/// A question and what must be answered.
#[derive(Debug)]
struct Vector {
    name: String,
    inquiry: Arc<Inquiry>,
    subject: Subject,
    action: Action,
    expect: Expect,
}

/// What must be answered; what is absent may be anything.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    effect: ExpectedEffect,
    reason: Option<String>,
    message: Option<String>,
    rules: Option<Vec<String>>,
    obligations: Option<Vec<ExpectedDuty>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ExpectedEffect {
    Allow,
    Deny,
    Abstain,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedDuty {
    kind: String,
    #[serde(default)]
    args: Vec<String>,
    critical: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    vector: Vec<toml::Table>,
}

impl Suite {
    /// Reads a file of vectors.
    ///
    /// # Errors
    ///
    /// Every problem that was found, in words for the person who wrote the file.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let file: File = toml::from_str(text).map_err(|error| vec![error.to_string()])?;
        if file.vector.is_empty() {
            return Err(vec!["there is no [[vector]]".to_owned()]);
        }
        if file.vector.len() > MOST_VECTORS {
            return Err(vec![format!("there are {} vectors, {MOST_VECTORS} are the most", file.vector.len())]);
        }
        let mut problems = Problems::default();
        let mut names = HashSet::new();
        let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut vectors = Vec::new();
        for (index, table) in file.vector.into_iter().enumerate() {
            let place = format!("vector {}", index + 1);
            match Vector::read(table) {
                Ok((vector, _)) if !names.insert(vector.name.clone()) => {
                    problems.add(format!("{place}: another vector is named {:?}", vector.name));
                }
                Ok((vector, group)) => {
                    groups.entry(group).or_default().push(vectors.len());
                    vectors.push(vector);
                }
                Err(found) => found.into_iter().for_each(|problem| problems.add(format!("{place}: {problem}"))),
            }
        }
        let problems = problems.told();
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.sort_unstable();
        Ok(Self { vectors, groups })
    }

    /// How many vectors there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.vectors.len()
    }

    /// Asks a module all vectors. Answers the failures in words; 20 at most are told.
    #[must_use]
    pub fn run(&self, template: &Template) -> Vec<String> {
        self.run_within(template, LONGEST)
    }

    fn run_within(&self, template: &Template, longest: Duration) -> Vec<String> {
        let mut run = Run {
            template,
            end: Instant::now() + longest,
            asked: 0,
            alone: Vec::with_capacity(self.vectors.len()),
            failures: Problems::default(),
            unsteady: HashSet::new(),
        };
        if run.all(self).is_none() {
            let (asked, most) = (run.asked, longest.as_secs());
            run.failures.add(format!("the vectors take longer than {most} s: {asked} questions were answered by then"));
        }
        run.failures.told()
    }
}

impl Vector {
    /// A vector, and what it has in common with the others that one instance may be asked.
    fn read(mut table: toml::Table) -> Result<(Self, String), Vec<String>> {
        let name = match table.remove("name") {
            Some(toml::Value::String(name)) if is_name(&name) => name,
            _ => return Err(vec![format!("a `name` of 1 to {NAME_BYTES} bytes is wanted")]),
        };
        let blame = |problem: String| format!("{name:?}: {problem}");
        let expect = table.remove("expect").ok_or_else(|| vec![blame("[vector.expect] is missing".to_owned())])?;
        let expect: Expect = read(expect).map_err(|problem| vec![blame(format!("expect{problem}"))])?;
        let scenario: Scenario = read(toml::Value::Table(table))
            .map_err(|problem| vec![blame(problem.trim_start_matches('.').to_owned())])?;
        let posed = scenario.pose(NOW);
        let (inquiry, subject, action) =
            posed.map_err(|problems| problems.iter().map(|problem| blame(problem.to_string())).collect::<Vec<_>>())?;
        let group = format!("{:?}{:?}", scenario.principal, scenario.context);
        Ok((Self { name, inquiry: Arc::new(inquiry), subject, action, expect }, group))
    }
}

fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES).contains(&name.len()) && !name.trim().is_empty()
}

/// A part of a vector, or `.field.within: what is wrong with it`.
fn read<'d, T: Deserialize<'d>>(value: toml::Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let place = error.path().to_string();
        let place = if place == "." { String::new() } else { format!(".{place}") };
        format!("{place}: {}", error.inner().message())
    })
}

/// Lines of which the first few are told.
#[derive(Default)]
struct Problems {
    lines: Vec<String>,
    more: usize,
}

impl Problems {
    fn add(&mut self, line: String) {
        if self.lines.len() < TOLD { self.lines.push(line) } else { self.more += 1 }
    }

    fn told(mut self) -> Vec<String> {
        if self.more > 0 {
            self.lines.push(format!("and {} more", self.more));
        }
        self.lines
    }
}

/// A self-test under way. What answers `None` ran out of time.
struct Run<'t> {
    template: &'t Template,
    end: Instant,
    asked: usize,
    /// What each vector answered alone.
    alone: Vec<Told>,
    failures: Problems,
    /// Vectors of which it was told already that they depend on what was asked before.
    unsteady: HashSet<usize>,
}

/// An answer, as far as it can be compared.
#[derive(Debug, PartialEq)]
enum Told {
    Decided(Box<Comparable>),
    Failed(Failure),
}

#[derive(Debug, PartialEq)]
struct Comparable {
    effect: &'static str,
    reason: String,
    message: Option<String>,
    rules: Vec<String>,
    obligations: Vec<(String, Vec<String>, bool)>,
}

impl Run<'_> {
    fn all(&mut self, suite: &Suite) -> Option<()> {
        for vector in &suite.vectors {
            let answer = self.ask(&mut None, &vector.inquiry, vector)?;
            let wrong = vector.expect.differences(&answer);
            if !wrong.is_empty() {
                self.failures.add(format!("{:?}: {}", vector.name, wrong.join("; ")));
            }
            self.alone.push(answer);
        }
        for group in &suite.groups {
            self.series(suite, group, group, "in order")?;
        }
        let mut random = Random(SEED);
        for group in &suite.groups {
            let mut order: Vec<usize> = group.iter().chain(group).copied().collect();
            order.extend((0..BORROWED).map(|_| random.below(suite.vectors.len())));
            random.shuffle(&mut order);
            self.series(suite, group, &order, &format!("shuffled with seed {SEED:#x}"))?;
        }
        Some(())
    }

    /// Questions of one principal and context, put to one instance after the other.
    fn series(&mut self, suite: &Suite, own: &[usize], order: &[usize], way: &str) -> Option<()> {
        let Some(inquiry) = own.first().and_then(|first| suite.vectors.get(*first)).map(|first| &first.inquiry) else {
            return Some(());
        };
        for batch in order.chunks(BATCH) {
            let mut guest = None;
            for (place, &index) in batch.iter().enumerate() {
                let Some(vector) = suite.vectors.get(index) else { continue };
                let answer = self.ask(&mut guest, inquiry, vector)?;
                let Some(alone) = self.alone.get(index) else { continue };
                // A borrowed question is another principal's: its answer here is nobody's business.
                if own.binary_search(&index).is_ok() && answer != *alone && self.unsteady.insert(index) {
                    let failure = format!(
                        "{:?} depends on what was asked before: alone {alone}; {way}, as question {}, {answer}",
                        vector.name,
                        place + 1
                    );
                    self.failures.add(failure);
                }
            }
        }
        Some(())
    }

    /// Puts a vector's question in another's name to an instance, or to a fresh one where there is none.
    fn ask(&mut self, guest: &mut Option<Guest>, inquiry: &Arc<Inquiry>, vector: &Vector) -> Option<Told> {
        let mut tries = 0;
        loop {
            if Instant::now() >= self.end {
                return None;
            }
            tries += 1;
            let answer = self.try_ask(guest, inquiry, vector);
            if answer.is_err() {
                *guest = None;
            }
            match answer {
                Err(Failure::Deadline) if tries < TRIES => (),
                Err(failure) => return Some(Told::Failed(failure)),
                Ok(decision) => {
                    self.asked += 1;
                    return Some(Told::Decided(Box::new(decision.into())));
                }
            }
        }
    }

    fn try_ask(
        &self,
        guest: &mut Option<Guest>,
        inquiry: &Arc<Inquiry>,
        vector: &Vector,
    ) -> Result<GuestDecision, Failure> {
        let guest = match guest {
            Some(guest) => guest,
            empty => empty.insert(self.template.instantiate(Arc::clone(inquiry))?),
        };
        guest.evaluate(vector.action, vector.subject.clone()).map(|answer| answer.decision)
    }
}

impl From<GuestDecision> for Comparable {
    fn from(decision: GuestDecision) -> Self {
        let duty = |duty: Obligation| (duty.kind, duty.args, duty.critical);
        Self {
            effect: word_of(decision.effect),
            reason: decision.reason,
            message: decision.message,
            rules: decision.rules,
            obligations: decision.obligations.into_iter().map(duty).collect(),
        }
    }
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let told = match self {
            Self::Failed(failure) => return write!(f, "it failed ({})", failure.as_str()),
            Self::Decided(told) => told,
        };
        let mut text = format!("{} with reason {:?}", told.effect, told.reason);
        if let Some(message) = &told.message {
            write!(text, ", message {message:?}")?;
        }
        if !told.rules.is_empty() {
            write!(text, ", rules {:?}", told.rules)?;
        }
        if !told.obligations.is_empty() {
            write!(text, ", obligations {}", duties(&told.obligations))?;
        }
        f.write_str(&text)
    }
}

fn duties(duties: &[(String, Vec<String>, bool)]) -> String {
    let one = |(kind, args, critical): &(String, Vec<String>, bool)| {
        format!("{kind:?} {args:?}{}", if *critical { " critical" } else { "" })
    };
    format!("[{}]", duties.iter().map(one).collect::<Vec<_>>().join(", "))
}

impl Expect {
    /// What differs, in words.
    fn differences(&self, answer: &Told) -> Vec<String> {
        let expected = word_of(self.effect.into());
        let told = match answer {
            Told::Failed(_) => return vec![format!("{expected} was expected, but {answer}")],
            Told::Decided(told) => told,
        };
        let mut wrong = Vec::new();
        if expected != told.effect {
            wrong.push(format!("{expected} was expected, it answered {answer}"));
            return wrong;
        }
        if let Some(reason) = self.reason.as_ref().filter(|reason| **reason != told.reason) {
            wrong.push(format!("reason {reason:?} was expected, it answered {:?}", told.reason));
        }
        if self.message.is_some() && self.message != told.message {
            wrong.push(format!("message {:?} was expected, it answered {:?}", self.message, told.message));
        }
        if let Some(rules) = self.rules.as_ref().filter(|rules| **rules != told.rules) {
            wrong.push(format!("rules {rules:?} were expected, it answered {:?}", told.rules));
        }
        if let Some(expected) = self.obligations.as_ref().filter(|expected| !fit(expected, &told.obligations)) {
            let expected: Vec<_> = expected.iter().map(ExpectedDuty::in_words).collect();
            let answered = duties(&told.obligations);
            wrong.push(format!("obligations [{}] were expected, it answered {answered}", expected.join(", ")));
        }
        wrong
    }
}

impl ExpectedDuty {
    fn in_words(&self) -> String {
        let critical = match self.critical {
            Some(true) => " critical",
            Some(false) => " not critical",
            None => "",
        };
        format!("{:?} {:?}{critical}", self.kind, self.args)
    }
}

impl From<ExpectedEffect> for Effect {
    fn from(expected: ExpectedEffect) -> Self {
        match expected {
            ExpectedEffect::Allow => Self::Allow,
            ExpectedEffect::Deny => Self::Deny,
            ExpectedEffect::Abstain => Self::Abstain,
        }
    }
}

fn fit(expected: &[ExpectedDuty], told: &[(String, Vec<String>, bool)]) -> bool {
    expected.len() == told.len()
        && expected.iter().zip(told).all(|(expected, (kind, args, critical))| {
            expected.kind == *kind
                && expected.args == *args
                && expected.critical.is_none_or(|expected| expected == *critical)
        })
}

/// `SplitMix64`: a sequence that looks random and is always the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % end).unwrap_or(0)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
        [[vector]]
        name = "a developer reads in office hours"
        action = "read"
        path = "environments/staging/db"
        principal = { id = "user:ada", groups = ["developers"], authenticated_at = "2026-03-02T09:00:00Z", authentication_methods = ["pwd", "mfa"] }
        context = { now = "2026-03-02T09:30:00Z", source_ip = "10.0.0.1" }
        secret = { owner = "user:ada", tags = ["production"], custom = { k = "v" } }
        written_fields = ["password"]
        [vector.expect]
        effect = "allow"
        reason = "office-hours"
        message = "m"
        rules = ["r"]
        obligations = [{ kind = "without-fields", args = ["token"], critical = true }]
        [[vector]]
        name = "another"
        path = "a"
        expect = { effect = "abstain" }
        [[vector]]
        name = "a third"
        path = "b"
        expect = { effect = "deny" }
    "#;

    type Change = fn(&mut Comparable);

    fn told(effect: &'static str) -> Comparable {
        Comparable {
            effect,
            reason: "office-hours".into(),
            message: Some("m".into()),
            rules: vec!["r".into()],
            obligations: vec![("without-fields".into(), vec!["token".into()], true)],
        }
    }

    #[test]
    fn a_file_is_read_and_grouped_by_who_asks() {
        let suite = Suite::parse(WHOLE).unwrap();
        assert_eq!(suite.count(), 3);
        assert_eq!(suite.groups, [vec![0], vec![1, 2]]);
        assert_eq!(suite.vectors[1].inquiry.context.now.to_string(), "2026-01-01T00:00:00.000000Z");
    }

    #[test]
    fn every_problem_is_named_with_its_place() {
        let vector = |lines: &str| format!("[[vector]]\npath = \"a\"\n{lines}\n");
        let good = "expect = { effect = \"allow\" }";
        let table: [(String, &str); 15] = [
            (String::new(), "there is no [[vector]]"),
            ("vectors = []".into(), "vectors"),
            ("[[vector]".into(), "line 1"),
            (vector(good), "vector 1: a `name`"),
            (vector(&format!("name = \" \"\n{good}")), "vector 1: a `name`"),
            (vector("name = \"n\""), "vector 1: \"n\": [vector.expect] is missing"),
            (vector("name = \"n\"\nexpect = {}"), "vector 1: \"n\": expect: missing field `effect`"),
            (vector("name = \"n\"\nexpect = { effect = \"permit\" }"), "expect.effect: unknown variant `permit`"),
            (vector("name = \"n\"\nexpect = { effect = \"allow\", rule = [] }"), "unknown field `rule`"),
            (vector(&format!("name = \"n\"\nactoin = \"read\"\n{good}")), "unknown field `actoin`"),
            (
                vector(&format!("name = \"n\"\ncontext = {{ time = \"x\" }}\n{good}")),
                "context.time: unknown field `time`",
            ),
            (
                vector(&format!("name = \"n\"\ncontext = {{ now = \"x\" }}\n{good}")),
                "context.now: an instant as RFC 3339",
            ),
            (vector(&format!("name = \"n\"\nprincipal = {{ id = \"x\" }}\n{good}")), "\"n\": principal.id: user:NAME"),
            (vector(&format!("name = \"n\"\n{good}")).repeat(2), "vector 2: another vector is named \"n\""),
            (vector(&format!("name = \"n\"\n{good}")).repeat(MOST_VECTORS + 1), "10001 vectors, 10000 are the most"),
        ];
        for (text, expected) in table {
            let problems = Suite::parse(&text).unwrap_err();
            assert!(problems[0].contains(expected), "{expected}: {problems:?}");
        }
        let many = Suite::parse(&vector("name = \"n\"").repeat(30)).unwrap_err();
        assert_eq!((many.len(), many.last().unwrap().as_str()), (21, "and 10 more"));
    }

    #[test]
    fn only_what_is_said_is_compared() {
        let suite = Suite::parse(WHOLE).unwrap();
        let [strict, lax] = [&suite.vectors[0].expect, &suite.vectors[1].expect];
        let decided = |change: Change| {
            let mut told = told("allow");
            change(&mut told);
            Told::Decided(Box::new(told))
        };
        assert_eq!(strict.differences(&decided(|_| ())), Vec::<String>::new());
        let changes: [(Change, &str); 9] = [
            (|told| told.effect = "deny", "allow was expected"),
            (|told| told.reason.clear(), "reason"),
            (|told| told.message = None, "message"),
            (|told| told.rules.clear(), "rules"),
            (|told| told.obligations.clear(), "obligations"),
            (|told| told.obligations[0].0.clear(), "obligations"),
            (|told| told.obligations[0].1.clear(), "obligations"),
            (|told| told.obligations[0].2 = false, "obligations"),
            (|told| told.obligations.push(told.obligations[0].clone()), "obligations"),
        ];
        for (change, named) in changes {
            let wrong = strict.differences(&decided(change));
            assert!(wrong.len() == 1 && wrong[0].starts_with(named), "{named}: {wrong:?}");
        }
        assert_eq!(lax.differences(&decided(|told| told.effect = "abstain")), Vec::<String>::new());
        assert!(
            lax.differences(&Told::Failed(Failure::Trap))[0].contains("abstain was expected, but it failed (trap)")
        );
    }

    #[test]
    fn the_shuffle_is_always_the_same_and_loses_nothing() {
        let order = || {
            let mut items: Vec<usize> = (0..50).collect();
            Random(SEED).shuffle(&mut items);
            items
        };
        let mut shuffled = order();
        assert_eq!(shuffled, order());
        assert!(!shuffled.is_sorted());
        shuffled.sort_unstable();
        assert_eq!(shuffled, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn a_self_test_ends_in_time() {
        let shipped = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
        let policies = crate::policy::Policies::load(shipped.clone(), Timestamp::default()).unwrap();
        let template = &policies.current().modules[0].template;
        let suite = Suite::parse(&std::fs::read_to_string(shipped.join("rules.vectors.toml")).unwrap()).unwrap();
        assert!(suite.count() >= 25);
        assert_eq!(suite.run(template), Vec::<String>::new());
        let late = suite.run_within(template, Duration::ZERO);
        assert_eq!(late, ["the vectors take longer than 0 s: 0 questions were answered by then"]);
    }
}
