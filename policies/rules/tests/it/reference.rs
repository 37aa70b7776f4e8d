//! The engine against a slow one that is read at a glance: random settings, the same answers.

use std::fmt::Write as _;

use rules::{
    request::Request,
    rules::Rules,
    settings::{Actions, Binding, Policy, RuleEffect, parse},
};

use crate::support::{Double, summary};

/// SplitMix64 (Steele, Lea, Flood, 2014): a failing seed is found again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn joined(&mut self, segments: &[&str], most: usize) -> String {
        (0..=self.below(most)).map(|_| self.of(segments)).collect::<Vec<_>>().join("/")
    }
}

const CONDITIONS: [&str; 9] = [
    "",
    "",
    "",
    "conditions = { ip_ranges = [\"10.0.0.0/8\"] }",
    "conditions = { require_mfa = true }",
    "conditions = { tags = [\"production\"] }",
    "conditions = { time_window = { days = [\"mon\"] } }",
    "conditions = { time_window = { days = [\"tue-sun\"] } }",
    "conditions = { ip_ranges = [\"::1\"], require_mfa = \"5m\" }",
];

fn settings(random: &mut Random) -> String {
    let mut text = String::new();
    for policy in 0..1 + random.below(100) {
        let binding = random.of(&["*", "user:ada", "user:bob", "sa:x", "group:developers", "group:ops"]);
        let _infallible = write!(text, "[[policy]]\nname = \"p{policy}\"\nbindings = [{binding:?}]\n");
        for _ in 0..1 + random.below(3) {
            let pattern = random.joined(&["a", "b", "c", "*", "a*", "?", "**"], 4);
            let action = random.of(&["read", "write"]);
            let effect = random.of(&["allow", "allow", "allow", "deny"]);
            let conditions = random.of(&CONDITIONS);
            let _infallible = write!(
                text,
                "[[policy.rules]]\npath_pattern = {pattern:?}\npermissions = [{action:?}]\neffect = {effect:?}\n{conditions}\n"
            );
        }
    }
    text
}

/// Every rule is looked at, in the words of the documentation.
fn slowly(policies: &[Policy], double: &Double, action: &str, path: &str) -> (&'static str, &'static str) {
    let request = Request::new(double);
    let bound = |binding: &Binding| match binding {
        Binding::Everyone => true,
        Binding::Subject(id) => id == double.id,
        Binding::Group(name) => double.groups.contains(&name.as_str()),
    };
    let carries = |tags: &[String]| tags.iter().all(|tag| double.tags.contains(&tag.as_str()));
    let about_it = policies
        .iter()
        .filter(|policy| policy.bindings.iter().any(bound))
        .flat_map(|policy| &policy.rules)
        .filter(|rule| Actions::named(action).is_some_and(|action| rule.actions.contains(action)))
        .filter(|rule| rule.pattern.matches(path))
        .filter(|rule| rule.conditions.as_ref().is_none_or(|conditions| carries(&conditions.tags)));
    let (mut allowed, mut refused, mut denied) = (false, None, false);
    for rule in about_it {
        let conditions = rule.conditions.as_ref();
        match (rule.effect, conditions.and_then(|conditions| conditions.refusal(&request))) {
            (RuleEffect::Deny, _) => denied |= conditions.is_none_or(|conditions| conditions.may_hold(&request)),
            (RuleEffect::Allow, None) => allowed = true,
            (RuleEffect::Allow, Some(cause)) => refused = Some(refused.map_or(cause, |before| cause.min(before))),
        }
    }
    match (denied, allowed, refused) {
        (true, ..) => ("deny", "denied_by_rule"),
        (_, true, _) => ("allow", "allowed_by_rule"),
        (_, _, Some(cause)) => ("deny", cause.code()),
        _ => ("abstain", "no_rule"),
    }
}

#[test]
fn the_index_changes_no_answer() {
    let mut seen = std::collections::BTreeMap::new();
    for seed in 0..400 {
        let mut random = Random(seed);
        let text = settings(&mut random);
        let policies = parse(&text).unwrap();
        let rules = Rules::new(parse(&text).unwrap());
        let double = Double {
            id: random.of(&["user:ada", "user:bob", "sa:x", "sa:nobody"]),
            groups: random.of::<&[&str]>(&[&[], &["developers"], &["ops", "developers"]]).to_vec(),
            ip: random.of(&[Some("10.0.0.1"), Some("11.0.0.1"), None]),
            methods: random.of::<&[&str]>(&[&[], &["pwd"], &["mfa"]]).to_vec(),
            tags: random.of::<&[&str]>(&[&[], &["production"]]).to_vec(),
            ..Double::default()
        };
        let request = Request::new(&double);
        for _ in 0..40 {
            let path = random.joined(&["a", "b", "c", "ab", "aa"], 4);
            let action = random.of(&["read", "write", "list"]);
            let quick = summary(&rules.decide(&request, action, &path));
            assert_eq!(quick, slowly(&policies, &double, action, &path), "seed {seed}: {action} {path}\n{text}");
            *seen.entry(quick).or_insert(0) += 1;
        }
    }
    assert_eq!(seen.len(), 6, "every kind of answer was met: {seen:?}");
}

#[test]
fn a_few_bound_policies_are_found_among_many() {
    let rule = "[[policy.rules]]\npath_pattern = \"**\"\npermissions = [\"read\"]\n";
    let policy = |n: usize| format!("[[policy]]\nname = \"p{n}\"\nbindings = [\"sa:s{}\"]\n{rule}{rule}", n % 500);
    let text: String = (0..1_000).map(policy).collect();
    let rules = Rules::new(parse(&text).unwrap());
    let double = Double { id: "sa:s7", ..Double::default() };
    let decision = rules.decide(&Request::new(&double), "read", "x").rules.join(" ");
    assert_eq!(decision, "p7/1", "one allow settles it");
    let stranger = Double { id: "sa:s500", ..Double::default() };
    assert_eq!(summary(&rules.decide(&Request::new(&stranger), "read", "x")), ("abstain", "no_rule"));
}
