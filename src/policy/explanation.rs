//! One decision, told in full: what every module said and read, and how their answers became one.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::session::Opinion;
use crate::domain::{Decision, FieldFilter, InputRead, ModuleRef, Verdict};

/// Everything about one decision.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// Whether the access may go on.
    pub allowed: bool,
    /// `ok`, or the API's code of the refusal.
    pub code: &'static str,
    /// The deciding module's word for machines.
    pub reason: String,
    /// The refusal's sentence for people.
    pub message: Option<String>,
    /// The module that decided; none where no module had an opinion.
    pub module: Option<String>,
    /// The deciding module's names of the rules that decided.
    pub rules: Vec<String>,
    /// Which fields may be touched, as the duties of all allows were joined.
    pub obligations: JoinedFields,
    /// Shadow modules that would have decided otherwise.
    pub dissent: Vec<Dissent>,
    /// How the answers became one.
    pub combined: String,
    /// Everything that the modules asked, with the answers.
    pub inputs: BTreeMap<String, Value>,
    /// What every module said that was asked.
    pub modules: Vec<Opinion>,
}

/// Field obligations, joined to the stricter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JoinedFields {
    /// These fields alone; all where none.
    pub only_fields: Option<Vec<String>>,
    /// Never these fields.
    pub without_fields: Vec<String>,
}

impl From<&FieldFilter> for JoinedFields {
    fn from(filter: &FieldFilter) -> Self {
        Self { only_fields: filter.only.clone(), without_fields: filter.without.clone() }
    }
}

/// A shadow module that would have decided otherwise.
#[derive(Debug, Serialize)]
pub struct Dissent {
    /// The module.
    pub module: String,
    /// `allow` or `deny`.
    pub would: &'static str,
}

impl Explanation {
    /// Of a decision, what the modules said, and what they asked about the request.
    pub(super) fn new(decision: Decision, modules: Vec<Opinion>, request_inputs: Vec<InputRead>) -> Self {
        let inputs = request_inputs.into_iter().chain(decision.inputs);
        let inputs = inputs.map(|input| (input.name.into_owned(), input.value)).collect();
        let combined = combined(&decision.verdict, &modules);
        let (code, message, obligations) = match decision.verdict {
            Verdict::Allow(filter) => ("ok", None, JoinedFields::from(&filter)),
            Verdict::Deny(denial) => (denial.code.as_str(), Some(denial.message), JoinedFields::default()),
        };
        let dissent = |(module, would): (Arc<ModuleRef>, _)| Dissent { module: module.name.clone(), would };
        Self {
            allowed: code == "ok",
            code,
            reason: decision.reason,
            message,
            module: decision.module.map(|module| module.name.clone()),
            rules: decision.rules,
            obligations,
            dissent: decision.dissent.into_iter().map(dissent).collect(),
            combined,
            inputs,
            modules,
        }
    }
}

/// How the answers of the enforcing modules became one.
fn combined(verdict: &Verdict, modules: &[Opinion]) -> String {
    let enforcing = || modules.iter().filter(|opinion| opinion.mode == "enforce");
    let count = |outcome: &str| enforcing().filter(|opinion| opinion.outcome == outcome).count();
    let (allows, abstentions) = (count("allow"), count("abstain"));
    let verb = |number: usize, word: &str| format!("{number} {word}{}", if number == 1 { "s" } else { "" });
    // What decides against comes last: nobody is asked after it.
    match (verdict, enforcing().next_back()) {
        (_, None) => "no module is asked here: denied".to_owned(),
        (Verdict::Allow(_), _) if abstentions == 0 => format!("{}: allowed", verb(allows, "allow")),
        (Verdict::Allow(_), _) => format!("{}, {}: allowed", verb(allows, "allow"), verb(abstentions, "abstain")),
        (Verdict::Deny(_), Some(last)) => match last.outcome {
            "deny" => format!("{} denied; deny overrides", last.module),
            "abstain" => format!("{}, none allows: denied", verb(abstentions, "abstain")),
            "allow" => format!("{} allowed with a duty that the vault does not know: denied", last.module),
            failure => format!("{} failed ({failure}): denied", last.module),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Denial, DenialCode};

    type Answers<'a> = &'a [(&'a str, &'static str, &'static str)];

    fn opinion((module, mode, outcome): &(&str, &'static str, &'static str)) -> Opinion {
        Opinion {
            module: (*module).to_owned(),
            mode,
            outcome,
            reason: String::new(),
            message: None,
            rules: Vec::new(),
            obligations: Vec::new(),
            inputs: BTreeMap::new(),
            notes: Vec::new(),
            micros: 0,
        }
    }

    #[test]
    fn the_sentence_says_how() {
        let allow = Verdict::Allow(FieldFilter::default());
        let deny = Verdict::Deny(Denial { code: DenialCode::AccessDenied, message: String::new(), reason: None });
        let table: [(&Verdict, Answers<'_>, &str); 8] = [
            (&deny, &[], "no module is asked here: denied"),
            (&deny, &[("a", "shadow", "allow")], "no module is asked here: denied"),
            (&deny, &[("a", "enforce", "abstain")], "1 abstains, none allows: denied"),
            (
                &deny,
                &[("a", "enforce", "allow"), ("b", "enforce", "deny"), ("c", "shadow", "allow")],
                "b denied; deny overrides",
            ),
            (&deny, &[("a", "enforce", "trap")], "a failed (trap): denied"),
            (&deny, &[("a", "enforce", "allow")], "a allowed with a duty that the vault does not know: denied"),
            (&allow, &[("a", "enforce", "allow"), ("b", "shadow", "deny")], "1 allows: allowed"),
            (
                &allow,
                &[("a", "enforce", "abstain"), ("b", "enforce", "allow"), ("c", "enforce", "allow")],
                "2 allow, 1 abstains: allowed",
            ),
        ];
        for (verdict, opinions, expected) in table {
            let opinions: Vec<_> = opinions.iter().map(opinion).collect();
            assert_eq!(combined(verdict, &opinions), expected);
        }
    }
}
