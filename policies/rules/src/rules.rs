//! The engine: one decision for one principal, action and path. Pure, and the same for every order of the rules.

use std::{
    cell::OnceCell,
    collections::{BTreeSet, HashMap},
};

use smallvec::SmallVec;

use crate::{
    conditions::Cause,
    index::{Entry, Index, PolicySet},
    request::{Inputs, Request},
    settings::{Actions, Binding, Policy, Rule, RuleEffect},
};

/// Most rule names in one decision; what is cut changes the report alone, never the answer.
const MAX_REPORTED_RULES: usize = 16;

/// As many as mostly are about one access: they are dealt with without asking for memory.
const FEW: usize = 8;

/// Rules, each with the position of its policy.
type Applying<'r> = SmallVec<[(usize, &'r Rule); FEW]>;

/// Accepted settings, made ready for many questions.
pub struct Rules {
    /// Names, in the order of the settings.
    policies: Vec<String>,
    /// The rules of all policies, each with the position of its policy, in the order of the settings.
    rules: Vec<(usize, Rule)>,
    index: Index,
    everyone: PolicySet,
    by_subject: HashMap<String, Vec<usize>>,
    by_group: HashMap<String, Vec<usize>>,
}

/// What the rules say about one access.
#[derive(Debug, PartialEq, Eq)]
pub struct Decision<'r> {
    /// The answer.
    pub effect: Effect,
    /// A stable word: `allowed_by_rule`, `denied_by_rule`, `no_rule`, or a [`Cause`]'s code.
    pub reason: &'static str,
    /// For people.
    pub message: Option<String>,
    /// The rules that decided; 16 at most.
    pub rules: Vec<&'r str>,
    /// Kind and arguments; all of them critical.
    pub obligations: Vec<(&'static str, Vec<&'r str>)>,
}

/// The contract's three answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// A rule allows it.
    Allow,
    /// A rule denies it, or would allow it if its conditions held.
    Deny,
    /// No rule is about it.
    Abstain,
}

impl Rules {
    /// Builds the indices.
    #[must_use]
    pub fn new(policies: Vec<Policy>) -> Self {
        let index = Index::new(&policies);
        let mut everyone = PolicySet::default();
        let (mut by_subject, mut by_group) =
            (HashMap::<String, Vec<usize>>::new(), HashMap::<String, Vec<usize>>::new());
        let (mut names, mut rules) = (Vec::new(), Vec::new());
        for (at, policy) in policies.into_iter().enumerate() {
            for binding in policy.bindings {
                match binding {
                    Binding::Everyone => everyone.insert(at),
                    Binding::Subject(id) => by_subject.entry(id).or_default().push(at),
                    Binding::Group(name) => by_group.entry(name).or_default().push(at),
                }
            }
            names.push(policy.name);
            rules.extend(policy.rules.into_iter().map(|rule| (at, rule)));
        }
        Self { policies: names, rules, index, everyone, by_subject, by_group }
    }

    /// Decides one access. Asks the request only for what a rule that could apply needs.
    #[must_use]
    pub fn decide<I: Inputs>(&self, request: &Request<I>, action: &str, path: &str) -> Decision<'_> {
        let Some(action) = Actions::named(action) else {
            return Decision::no_rule();
        };
        let applying = self.applying(request, action, path);
        match self.denying(request, &applying) {
            Some((policy, rule)) => Decision::denied(self.policies.get(policy).map_or("", String::as_str), rule),
            None => allowed(request, &applying),
        }
    }

    /// The rules that are about this access, in the order of the settings: bound, of this action, the path matching,
    /// the secret carrying the rule's tags.
    fn applying<I: Inputs>(&self, request: &Request<I>, action: Actions, path: &str) -> Applying<'_> {
        let mut found: SmallVec<[usize; FEW]> = SmallVec::new();
        for bucket in self.index.buckets(path) {
            if bucket.iter().any(|entry| entry.actions.contains(action)) {
                let bound = request.bound(|inputs| self.bound_to(inputs));
                let candidates = bound_entries(bucket, bound).filter(|entry| entry.actions.contains(action));
                found.extend(candidates.map(|entry| entry.rule));
            }
        }
        found.sort_unstable();
        let tags = OnceCell::new();
        let carried = || tags.get_or_init(|| request.secret_tags()).as_slice();
        let tags_hold = |rule: &Rule| rule.conditions.as_ref().is_none_or(|conditions| conditions.tags_hold(carried));
        let rules = found.iter().filter_map(|at| self.rules.get(*at)).map(|(policy, rule)| (*policy, rule));
        rules.filter(|(_, rule)| rule.pattern.matches(path) && tags_hold(rule)).collect()
    }

    fn bound_to(&self, inputs: &impl Inputs) -> PolicySet {
        let mut bound = self.everyone.clone();
        if !self.by_subject.is_empty() {
            let policies = self.by_subject.get(&inputs.principal_id());
            policies.into_iter().flatten().for_each(|policy| bound.insert(*policy));
        }
        if !self.by_group.is_empty() {
            let groups = inputs.principal_groups();
            let policies = groups.iter().filter_map(|group| self.by_group.get(group));
            policies.flatten().for_each(|policy| bound.insert(*policy));
        }
        bound
    }

    /// The deny rule that denies, one without conditions before the others: it asks for nothing.
    fn denying<'r, I: Inputs>(
        &self,
        request: &Request<I>,
        applying: &[(usize, &'r Rule)],
    ) -> Option<(usize, &'r Rule)> {
        let denies = || applying.iter().copied().filter(|(_, rule)| rule.effect == RuleEffect::Deny);
        let holds = |rule: &Rule| rule.conditions.as_ref().is_none_or(|conditions| conditions.may_hold(request));
        denies().find(|(_, rule)| rule.conditions.is_none()).or_else(|| denies().find(|(_, rule)| holds(rule)))
    }
}

impl<'r> Decision<'r> {
    /// The answer of a module that has accepted no settings.
    #[must_use]
    pub fn not_configured() -> Self {
        Self::without_rules(Effect::Deny, "not_configured", Some("The policy module has no settings".to_owned()))
    }

    fn no_rule() -> Self {
        Self::without_rules(Effect::Abstain, "no_rule", None)
    }

    fn denied(policy: &str, rule: &'r Rule) -> Self {
        let message = format!("A rule of policy \"{policy}\" denies this access");
        Self { rules: vec![&rule.name], ..Self::without_rules(Effect::Deny, "denied_by_rule", Some(message)) }
    }

    fn without_rules(effect: Effect, reason: &'static str, message: Option<String>) -> Self {
        Self { effect, reason, message, rules: Vec::new(), obligations: Vec::new() }
    }
}

/// The entries of a bucket whose policy is bound. Walks the bucket, or the bound policies where those are much fewer.
fn bound_entries<'i>(bucket: &'i [Entry], bound: &'i PolicySet) -> impl Iterator<Item = &'i Entry> {
    const SMALL: usize = 64;
    let by_bucket = bucket.len() <= SMALL || bucket.len() / SMALL < bound.len();
    let (walked, looked_up) = if by_bucket { (Some(bucket), None) } else { (None, Some(bound)) };
    let of_policy = |policy| {
        let start = bucket.partition_point(|entry| entry.policy < policy);
        bucket.iter().skip(start).take_while(move |entry| entry.policy == policy)
    };
    let walked = walked.into_iter().flatten().filter(|entry| bound.contains(entry.policy));
    walked.chain(looked_up.into_iter().flat_map(PolicySet::iter).flat_map(of_policy))
}

/// The answer where no rule denies. A rule that could only repeat what is settled is not asked about its conditions.
fn allowed<'r, I: Inputs>(request: &Request<I>, applying: &[(usize, &'r Rule)]) -> Decision<'r> {
    let allows = applying.iter().map(|(_, rule)| *rule).filter(|rule| rule.effect == RuleEffect::Allow);
    let mut allows: SmallVec<[&Rule; FEW]> = allows.collect();
    allows.sort_by_key(|rule| (rule.conditions.is_some(), !rule.limits_fields()));
    let mut holding: SmallVec<[&Rule; FEW]> = SmallVec::new();
    let mut refusals: SmallVec<[(Cause, &Rule); FEW]> = SmallVec::new();
    for rule in allows {
        if !holding.is_empty() && !rule.limits_fields() {
            continue;
        }
        match rule.conditions.as_ref().and_then(|conditions| conditions.refusal(request)) {
            Some(cause) => refusals.push((cause, rule)),
            None => holding.push(rule),
        }
    }
    if holding.is_empty() {
        return refused(&refusals);
    }
    Decision {
        obligations: obligations(&holding),
        rules: names(holding),
        ..Decision::without_rules(Effect::Allow, "allowed_by_rule", None)
    }
}

/// A condition that fails is a refusal with its cause, not a missing opinion.
fn refused<'r>(refusals: &[(Cause, &'r Rule)]) -> Decision<'r> {
    let Some((cause, first)) = refusals.iter().min_by_key(|(cause, _)| *cause) else {
        return Decision::no_rule();
    };
    let message = first.conditions.as_ref().map(|conditions| conditions.explain(*cause));
    let of_cause = refusals.iter().filter(|(other, _)| other == cause).map(|(_, rule)| *rule);
    Decision { rules: names(of_cause), ..Decision::without_rules(Effect::Deny, cause.code(), message) }
}

/// The field limits of all rules that allow, joined to the stricter: `only_fields` intersect, `without_fields` unite.
fn obligations<'r>(holding: &[&'r Rule]) -> Vec<(&'static str, Vec<&'r str>)> {
    fn words(fields: &[String]) -> BTreeSet<&str> {
        fields.iter().map(String::as_str).collect()
    }
    let only = holding.iter().filter_map(|rule| rule.only_fields.as_deref()).map(words);
    let only = only.reduce(|kept, fields| kept.intersection(&fields).copied().collect());
    let without: BTreeSet<&str> = holding.iter().flat_map(|rule| words(&rule.without_fields)).collect();
    let without = Some(without).filter(|fields| !fields.is_empty());
    let duty = |kind, fields: Option<BTreeSet<&'r str>>| fields.map(|fields| (kind, fields.into_iter().collect()));
    duty("only-fields", only).into_iter().chain(duty("without-fields", without)).collect()
}

fn names<'r>(rules: impl IntoIterator<Item = &'r Rule>) -> Vec<&'r str> {
    rules.into_iter().take(MAX_REPORTED_RULES).map(|rule| rule.name.as_str()).collect()
}
