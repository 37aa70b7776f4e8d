//! A principal, a place and a secret, and which questions were asked about them.

use std::cell::RefCell;

use rules::{
    request::{Inputs, Request},
    rules::{Decision, Effect, Rules},
    settings,
};

/// Monday 2026-04-20, 12:00 UTC, in Unix milliseconds.
pub const MONDAY_NOON: u64 = 1_776_686_400_000;
pub const MINUTE: u64 = 60_000;

/// What the host would say.
#[derive(Debug, Clone)]
pub struct Double {
    pub id: &'static str,
    pub groups: Vec<&'static str>,
    pub authenticated_at: Option<u64>,
    pub methods: Vec<&'static str>,
    pub now: u64,
    pub ip: Option<&'static str>,
    pub tags: Vec<&'static str>,
    pub asked: RefCell<Vec<&'static str>>,
}

impl Default for Double {
    fn default() -> Self {
        Self {
            id: "user:ada",
            groups: vec!["developers"],
            authenticated_at: Some(MONDAY_NOON - 10 * MINUTE),
            methods: vec!["pwd", "mfa"],
            now: MONDAY_NOON,
            ip: Some("10.1.2.3"),
            tags: vec!["production", "eu"],
            asked: RefCell::default(),
        }
    }
}

impl Double {
    fn ask<T>(&self, question: &'static str, answer: T) -> T {
        self.asked.borrow_mut().push(question);
        answer
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

impl Inputs for &Double {
    fn principal_id(&self) -> String {
        self.ask("id", self.id.to_owned())
    }

    fn principal_groups(&self) -> Vec<String> {
        self.ask("groups", owned(&self.groups))
    }

    fn authenticated_at(&self) -> Option<u64> {
        self.ask("authenticated-at", self.authenticated_at)
    }

    fn authentication_methods(&self) -> Vec<String> {
        self.ask("authentication-methods", owned(&self.methods))
    }

    fn now(&self) -> u64 {
        self.ask("now", self.now)
    }

    fn source_ip(&self) -> Option<String> {
        self.ask("source-ip", self.ip.map(str::to_owned))
    }

    fn secret_tags(&self) -> Vec<String> {
        self.ask("tags", owned(&self.tags))
    }
}

pub fn rules(settings: &str) -> Rules {
    Rules::new(settings::parse(settings).unwrap_or_else(|problems| panic!("{}", problems.join("\n"))))
}

/// One policy for everyone, with these rules (`[[policy.rules]]` each).
pub fn for_everyone(bodies: &[&str]) -> Rules {
    let rules_text: String = bodies.iter().map(|body| format!("[[policy.rules]]\n{body}\n")).collect();
    rules(&format!("[[policy]]\nname = \"p\"\nbindings = [\"*\"]\n{rules_text}"))
}

/// `allow`, `deny` or `abstain`, and the reason.
pub fn verdict(rules: &Rules, double: &Double, action: &str, path: &str) -> (&'static str, &'static str) {
    summary(&rules.decide(&Request::new(double), action, path))
}

pub fn summary(decision: &Decision<'_>) -> (&'static str, &'static str) {
    let effect = match decision.effect {
        Effect::Allow => "allow",
        Effect::Deny => "deny",
        Effect::Abstain => "abstain",
    };
    (effect, decision.reason)
}
