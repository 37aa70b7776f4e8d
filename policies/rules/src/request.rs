//! What the engine asks about a request. Every answer is asked for when first needed and kept: the host makes an
//! instance per request, so one instance never sees two principals or two instants.

use std::{cell::OnceCell, net::IpAddr};

use crate::{conditions::Answer, index::PolicySet};

/// The questions that the contract lets a module ask.
pub trait Inputs {
    /// The typed subject: `user:…` or `sa:…`.
    fn principal_id(&self) -> String;
    /// The principal's groups, without a prefix.
    fn principal_groups(&self) -> Vec<String>;
    /// When the principal authenticated, in Unix milliseconds.
    fn authenticated_at(&self) -> Option<u64>;
    /// How the principal authenticated: words of RFC 8176.
    fn authentication_methods(&self) -> Vec<String>;
    /// The instant of the request, in Unix milliseconds.
    fn now(&self) -> u64;
    /// The caller's address.
    fn source_ip(&self) -> Option<String>;
    /// The tags of the secret at the path that is being evaluated.
    fn secret_tags(&self) -> Vec<String>;
}

/// The inputs of one request, and what was learnt from them.
#[derive(Default)]
pub struct Request<I> {
    inputs: I,
    bound: OnceCell<PolicySet>,
    now: OnceCell<u64>,
    source_ip: OnceCell<Option<IpAddr>>,
    second_factor: OnceCell<Answer>,
    authenticated_at: OnceCell<Option<u64>>,
}

impl<I: Inputs> Request<I> {
    /// A request of which nothing was asked yet.
    pub fn new(inputs: I) -> Self {
        Self {
            inputs,
            bound: OnceCell::new(),
            now: OnceCell::new(),
            source_ip: OnceCell::new(),
            second_factor: OnceCell::new(),
            authenticated_at: OnceCell::new(),
        }
    }

    /// The policies that are bound to the principal; `find` looks them up, once.
    pub fn bound(&self, find: impl FnOnce(&I) -> PolicySet) -> &PolicySet {
        self.bound.get_or_init(|| find(&self.inputs))
    }

    /// The instant of the request, in Unix milliseconds.
    pub fn now(&self) -> u64 {
        *self.now.get_or_init(|| self.inputs.now())
    }

    /// The caller's address; an IPv4 address inside IPv6 is the IPv4 address. `None` where it is not known.
    pub fn source_ip(&self) -> Option<IpAddr> {
        let parse = |text: String| text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
        *self.source_ip.get_or_init(|| self.inputs.source_ip().and_then(parse))
    }

    /// Whether a second factor was used (see [`crate::conditions::SecondFactor`]); unknown where no method is named.
    pub fn second_factor(&self) -> Answer {
        *self.second_factor.get_or_init(|| match self.inputs.authentication_methods() {
            methods if methods.is_empty() => Answer::Unknown,
            methods => methods.iter().any(|word| matches!(word.as_str(), "mfa" | "otp" | "hwk" | "fido")).into(),
        })
    }

    /// When the principal authenticated, in Unix milliseconds.
    pub fn authenticated_at(&self) -> Option<u64> {
        *self.authenticated_at.get_or_init(|| self.inputs.authenticated_at())
    }

    /// The tags of the secret at the path that is being evaluated: another answer for another path, so never kept.
    pub fn secret_tags(&self) -> Vec<String> {
        self.inputs.secret_tags()
    }
}
