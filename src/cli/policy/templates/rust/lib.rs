//! The policy `{{name}}`: members of one group may do everything below one path prefix.

use std::sync::OnceLock;

use portcullis::policy::{diagnostics::note, principal, types::Effect};

wit_bindgen::generate!({ world: "policy", path: "wit" });
export!(Policy);

struct Policy;

struct Settings {
    group: String,
    prefix: String,
}

/// Filled by `configure`, once. Every request starts from a copy of the memory as it is then.
static SETTINGS: OnceLock<Settings> = OnceLock::new();

impl Guest for Policy {
    fn configure(settings: String) -> Result<(), Vec<String>> {
        let settings = parse(&settings)?;
        SETTINGS
            .set(settings)
            .map_err(|_| vec!["there are settings already".to_owned()])
    }

    fn evaluate(_action: String, path: String) -> Decision {
        let Some(settings) = SETTINGS.get() else {
            return answer(Effect::Deny, "not_configured", &[]);
        };
        if !path.starts_with(&settings.prefix) {
            return answer(Effect::Abstain, "no_rule", &[]);
        }
        let groups = principal::groups();
        note(&format!("the groups are: {}", groups.join(", ")));
        if groups.contains(&settings.group) {
            answer(Effect::Allow, "in_group", &["group"])
        } else {
            answer(Effect::Abstain, "no_rule", &[])
        }
    }
}

fn answer(effect: Effect, reason: &str, rules: &[&str]) -> Decision {
    Decision {
        effect,
        reason: reason.to_owned(),
        message: None,
        rules: rules.iter().map(|&rule| rule.to_owned()).collect(),
        obligations: Vec::new(),
    }
}

/// Reads the settings, or says all that is wrong with them.
fn parse(text: &str) -> Result<Settings, Vec<String>> {
    let mut settings = Settings {
        group: String::new(),
        prefix: String::new(),
    };
    let mut problems = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        match key.trim() {
            "group" => settings.group = value.trim().to_owned(),
            "prefix" => settings.prefix = value.trim().to_owned(),
            key => problems.push(format!("line {}: there is no key `{key}`", index + 1)),
        }
    }
    for (key, value) in [("group", &settings.group), ("prefix", &settings.prefix)] {
        if value.is_empty() {
            problems.push(format!("`{key}` is missing"));
        }
    }
    if problems.is_empty() {
        Ok(settings)
    } else {
        Err(problems)
    }
}
