//! The policy module that Portcullis ships: access rules as settings, no code needed.
//!
//! This file is the glue between the contract (`wit/policy.wit`) and the engine; it decides nothing. The engine
//! ([`rules`], [`index`], [`conditions`]) knows nothing of components: it pulls its inputs through [`request::Inputs`],
//! so the tests run it natively. [`settings`] reads the TOML.

use std::cell::RefCell;

pub mod chunks;
pub mod conditions;
pub mod index;
/// The host's own patterns: the same file, so a path cannot match there and not here.
#[path = "../../../src/domain/pattern.rs"]
pub mod pattern;
pub mod reader;
pub mod request;
pub mod rules;
pub mod settings;

use bindings::portcullis::policy::{context, principal, secret};
use request::{Inputs, Request};
use rules::Rules;

#[expect(unsafe_code, reason = "the component model's calling convention, generated")]
mod bindings {
    wit_bindgen::generate!({ world: "policy", path: "../../wit" });
    export!(Module with_types_in self);
    use super::Module;
}

thread_local! {
    /// Filled by `configure`; the host snapshots the memory then, and every request starts from that snapshot.
    static STATE: RefCell<State> = RefCell::default();
}

#[derive(Default)]
struct State {
    /// `None` until the settings were accepted.
    rules: Option<Rules>,
    /// What the one principal of this instance was found to be. Empty in the snapshot.
    request: Request<Host>,
}

struct Module;

impl bindings::Guest for Module {
    fn configure(settings: String) -> Result<(), Vec<String>> {
        let rules = Rules::new(settings::parse(&settings)?);
        STATE.replace(State { rules: Some(rules), request: Request::default() });
        Ok(())
    }

    fn evaluate(action: String, path: String) -> bindings::Decision {
        STATE.with_borrow(|state| match &state.rules {
            Some(rules) => rules.decide(&state.request, &action, &path).into(),
            None => rules::Decision::not_configured().into(),
        })
    }
}

/// The imports of the contract.
#[derive(Default)]
struct Host;

impl Inputs for Host {
    fn principal_id(&self) -> String {
        principal::id()
    }

    fn principal_groups(&self) -> Vec<String> {
        principal::groups()
    }

    fn authenticated_at(&self) -> Option<u64> {
        principal::authenticated_at()
    }

    fn authentication_methods(&self) -> Vec<String> {
        principal::authentication_methods()
    }

    fn now(&self) -> u64 {
        context::now()
    }

    fn source_ip(&self) -> Option<String> {
        context::source_ip()
    }

    fn secret_tags(&self) -> Vec<String> {
        secret::tags()
    }
}

impl From<rules::Decision<'_>> for bindings::Decision {
    fn from(decision: rules::Decision<'_>) -> Self {
        let words = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect();
        let critical = |(kind, args): (&str, Vec<&str>)| bindings::portcullis::policy::types::Obligation {
            kind: kind.to_owned(),
            args: words(args),
            critical: true,
        };
        Self {
            effect: decision.effect.into(),
            reason: decision.reason.to_owned(),
            message: decision.message,
            obligations: decision.obligations.into_iter().map(critical).collect(),
            rules: words(decision.rules),
        }
    }
}

impl From<rules::Effect> for bindings::portcullis::policy::types::Effect {
    fn from(effect: rules::Effect) -> Self {
        match effect {
            rules::Effect::Allow => Self::Allow,
            rules::Effect::Deny => Self::Deny,
            rules::Effect::Abstain => Self::Abstain,
        }
    }
}
