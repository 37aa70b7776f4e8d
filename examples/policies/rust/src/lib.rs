//! Office rules, in Rust. What they say is in `../README.md`.

mod settings;

use std::sync::OnceLock;

use portcullis::policy::{
    context,
    diagnostics::note,
    principal, secret,
    types::{Effect, Obligation},
};
use settings::{DAYS, Settings};

wit_bindgen::generate!({ world: "policy", path: "wit" });
export!(Office);

struct Office;

/// Filled by `configure`, once. Every request starts from a copy of the memory as it is then.
static SETTINGS: OnceLock<Settings> = OnceLock::new();

impl Guest for Office {
    fn configure(text: String) -> Result<(), Vec<String>> {
        let settings = Settings::read(&text)?;
        SETTINGS.set(settings).map_err(|_| vec!["there are settings already".to_owned()])
    }

    fn evaluate(action: String, path: String) -> Decision {
        match SETTINGS.get() {
            Some(settings) => decide(settings, &action, &path),
            None => deny("not_configured", "The policy has no settings", "configured"),
        }
    }
}

fn decide(settings: &Settings, action: &str, path: &str) -> Decision {
    if principal::kind() == "user" {
        if !is_open(settings) {
            return deny("time_window_violation", "People have access in office hours only", "office-hours");
        }
        if path.split('/').next() == Some("production") && !has_fresh_mfa(settings) {
            let message = format!("Production needs a second factor of the last {} minutes", settings.mfa_minutes);
            return deny("mfa_required", &message, "production-mfa");
        }
    }
    let groups = principal::groups();
    if matches!(action, "write" | "delete") && !may_change(&groups) {
        return deny("not_owner", "Only its owners change this secret", "owners");
    }
    if action == "read" && groups.iter().any(|group| group == "contractors") {
        return contractor(&settings.hidden_field);
    }
    if groups.iter().any(|group| settings.groups.contains(group)) {
        return decision(Effect::Allow, "member", None, Some("members"));
    }
    decision(Effect::Abstain, "no_rule", None, None)
}

fn is_open(settings: &Settings) -> bool {
    // 1970 began on a Thursday. A week more, and no offset leads to a time before that.
    let local = (context::now() / 60_000 + 7 * 1440).saturating_add_signed(settings.utc_offset);
    let (day, minute) = ((local / 1440 + 3) % 7, local % 1440);
    let name = DAYS[day as usize];
    note(&format!("on the office's clock it is {name} {:02}:{:02}", minute / 60, minute % 60));
    settings.days[day as usize] && settings.hours.contains(&minute)
}

/// An authentication in the future is one of now: clocks differ a little.
fn has_fresh_mfa(settings: &Settings) -> bool {
    let Some(authenticated_at) = principal::authenticated_at() else { return false };
    let age = context::now().saturating_sub(authenticated_at);
    age <= settings.mfa_minutes * 60_000 && principal::authentication_methods().iter().any(|method| method == "mfa")
}

/// A tag `owner:user:ada` or `owner:payments` names who may change the secret. One without such a tag has no owners.
fn may_change(groups: &[String]) -> bool {
    let tags = secret::tags();
    let mut owners = tags.iter().filter_map(|tag| tag.strip_prefix("owner:")).peekable();
    let id = principal::id();
    owners.peek().is_none() || owners.any(|owner| owner == id || groups.iter().any(|group| group == owner))
}

fn contractor(hidden_field: &str) -> Decision {
    let duty = Obligation { kind: "without-fields".to_owned(), args: vec![hidden_field.to_owned()], critical: true };
    Decision { obligations: vec![duty], ..decision(Effect::Allow, "contractor", None, Some("contractors")) }
}

fn deny(reason: &str, message: &str, rule: &str) -> Decision {
    decision(Effect::Deny, reason, Some(message.to_owned()), Some(rule))
}

fn decision(effect: Effect, reason: &str, message: Option<String>, rule: Option<&str>) -> Decision {
    let rules = rule.into_iter().map(str::to_owned).collect();
    Decision { effect, reason: reason.to_owned(), message, rules, obligations: Vec::new() }
}
