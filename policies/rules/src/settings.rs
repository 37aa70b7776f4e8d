//! Reads and checks the settings. Collects every problem, each with its line, its policy, its rule and what to do, so
//! that one look at the answer mends the file.

use std::ops::Range;

use toml::{Spanned, de::DeValue};

use crate::{
    chunks::{CHUNK_BYTES, chunks},
    conditions::{Conditions, IpRange, SecondFactor, Span, TimeWindow},
    pattern::PathPattern,
    reader::{Reader, Table, Word},
};

/// Longest name of a policy or a rule, in bytes.
const MAX_NAME_BYTES: usize = 64;
/// Longest binding without its prefix, in bytes; as long as the host's longest principal.
const MAX_BOUND_BYTES: usize = 200;
/// Most fields in `only_fields` and in `without_fields`.
const MAX_FIELDS: usize = 64;

/// Rules that share a name and those they are bound to.
#[derive(Debug)]
pub struct Policy {
    /// Unique in the settings.
    pub name: String,
    /// Whom the rules are about.
    pub bindings: Vec<Binding>,
    /// Never empty.
    pub rules: Vec<Rule>,
}

/// Whom a policy is about.
#[derive(Debug, PartialEq, Eq)]
pub enum Binding {
    /// `*`: every principal.
    Everyone,
    /// `user:…` or `sa:…`, as the principal's id is written.
    Subject(String),
    /// `group:…`, without the prefix.
    Group(String),
}

/// What some principals may do, or not, with the paths of a pattern.
#[derive(Debug)]
pub struct Rule {
    /// Its own name, else the policy's name, a slash and its number in the policy, the first being 1.
    pub name: String,
    /// Which paths.
    pub pattern: PathPattern,
    /// Which actions.
    pub actions: Actions,
    /// What it does.
    pub effect: RuleEffect,
    /// What must hold besides; always, where none.
    pub conditions: Option<Box<Conditions>>,
    /// The answer shows these fields alone. Where several rules allow an access, the fields that all such lists share:
    /// a further rule never opens more than the strictest shows.
    pub only_fields: Option<Vec<String>>,
    /// The answer never shows these fields; where several rules allow an access, those of any of them.
    pub without_fields: Vec<String>,
}

impl Rule {
    /// Whether an access that the rule allows sees only some of the fields.
    #[must_use]
    pub fn limits_fields(&self) -> bool {
        self.only_fields.is_some() || !self.without_fields.is_empty()
    }
}

/// What a rule does. Deny wins over allow, in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleEffect {
    /// Allows, where its conditions hold. What a condition needs to know and is not known does not hold.
    Allow,
    /// Denies, where its conditions hold. What a condition needs to know and is not known holds.
    Deny,
}

/// A set of actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Actions(u8);

impl Actions {
    const WORDS: [&str; 5] = ["read", "write", "delete", "list", "admin"];

    /// The one action that a word names.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        Self::WORDS.iter().position(|known| *known == word).map(|bit| Self(1 << bit))
    }

    /// Both sets in one.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in the set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Reads the settings. An empty text is accepted: no rules, no opinion.
///
/// # Errors
///
/// All problems, in the order of the file, as `line 14: policy "x", rule 2: what is wrong; what to do`. Where the text
/// is not TOML, those of its syntax alone.
pub fn parse(text: &str) -> Result<Vec<Policy>, Vec<String>> {
    let mut reader = Reader::default();
    let mut policies = Vec::new();
    for chunk in chunks(text, CHUNK_BYTES) {
        reader.base = chunk.start;
        let (table, errors) = Table::parse_recoverable(chunk.text);
        errors.iter().for_each(|error| reader.syntax_problem(error));
        if errors.is_empty() {
            reader.chunk(table.get_ref(), &mut policies);
        }
    }
    reader.finish(text, policies)
}

impl Reader {
    fn chunk(&mut self, root: &Table<'_>, policies: &mut Vec<Policy>) {
        // The piece goes on with the last policy of the one before.
        if let (Some(rest), Some(policy)) =
            (root.get("policy").and_then(|v| v.get_ref().as_table()), policies.last_mut())
        {
            self.only_keys(rest, &["rules"]);
            return self.rules(rest, policy);
        }
        self.enter_policy(String::new());
        self.only_keys(root, &["policy"]);
        for value in self.tables(root, "policy") {
            self.enter_policy(format!("policy {}", policies.len() + 1));
            if let Some(table) = self.table(value, "a policy") {
                let policy = self.policy(table, &value.span());
                policies.push(policy);
            }
        }
    }

    fn policy(&mut self, table: &Table<'_>, span: &Range<usize>) -> Policy {
        let name = self.policy_name(table, span);
        self.only_keys(table, &["name", "description", "bindings", "rules"]);
        self.text_at(table, "description");
        let mut policy = Policy { name, bindings: self.bindings(table, span), rules: Vec::new() };
        if !table.contains_key("rules") {
            self.problem(span, "no rules; add a [[policy.rules]] or remove the policy");
        }
        self.rules(table, &mut policy);
        policy
    }

    fn policy_name(&mut self, table: &Table<'_>, span: &Range<usize>) -> String {
        if !table.contains_key("name") {
            self.problem(span, "`name` is missing; give the policy one");
        }
        let Some(name) = self.name_at(table) else { return String::new() };
        self.enter_policy(format!("policy {name:?}"));
        // The slash keeps it apart from the rules' own names.
        if !self.first_use(&format!("{name}/")) {
            self.problem(span, "the name is taken; give each policy its own");
        }
        name.to_owned()
    }

    fn bindings(&mut self, table: &Table<'_>, span: &Range<usize>) -> Vec<Binding> {
        if !table.contains_key("bindings") {
            self.problem(span, "`bindings` is missing; say whom the policy is about, or \"*\" for everyone");
        }
        let read = |reader: &mut Self, (text, span): Word<'_>| match parse_binding(text) {
            Some(binding) => Some(binding),
            None => {
                let message = format!("{text:?} binds no one; write \"user:…\", \"sa:…\", \"group:…\" or \"*\"");
                reader.problem(&span, message);
                None
            }
        };
        let words = self.words_at(table, "bindings").unwrap_or_default();
        words.into_iter().filter_map(|word| read(self, word)).collect()
    }

    /// Adds the rules of the table to the policy.
    fn rules(&mut self, table: &Table<'_>, policy: &mut Policy) {
        for value in self.tables(table, "rules") {
            self.rule += 1;
            if let Some(table) = self.table(value, "a rule") {
                policy.rules.extend(self.rule(table, &value.span(), &policy.name));
            }
        }
    }

    fn rule(&mut self, table: &Table<'_>, span: &Range<usize>, policy: &str) -> Option<Rule> {
        const KEYS: [&str; 6] = ["name", "description", "path_pattern", "permissions", "effect", "conditions"];
        self.only_keys(table, &KEYS);
        self.text_at(table, "description");
        let name = self.name_at(table);
        if name.is_some_and(|name| !self.first_use(name)) {
            self.problem(span, "the rule's name is taken; a rule's own name is unique among all policies");
        }
        let pattern = self.pattern(table, span);
        let actions = self.actions(table, span);
        let effect = self.effect(table);
        let mut rule = Rule {
            name: name.map_or_else(|| format!("{policy}/{}", self.rule), str::to_owned),
            pattern: pattern?,
            actions,
            effect,
            conditions: None,
            only_fields: None,
            without_fields: Vec::new(),
        };
        if let Some(value) = table.get("conditions") {
            let conditions = self.table(value, "`conditions`")?;
            self.conditions(conditions, &mut rule);
        }
        Some(rule)
    }

    fn pattern(&mut self, table: &Table<'_>, span: &Range<usize>) -> Option<PathPattern> {
        let Some(value) = table.get("path_pattern") else {
            self.problem(span, "`path_pattern` is missing; say which paths the rule is about, or \"**\" for all");
            return None;
        };
        let text = self.text_at(table, "path_pattern")?;
        let parsed = PathPattern::parse(text);
        parsed.map_err(|error| self.problem(&value.span(), format!("`path_pattern` {text:?}: {error}"))).ok()
    }

    fn actions(&mut self, table: &Table<'_>, span: &Range<usize>) -> Actions {
        if !table.contains_key("permissions") {
            self.problem(span, "`permissions` is missing; list some of read, write, delete, list, admin");
        }
        let mut actions = Actions::default();
        for (word, span) in self.words_at(table, "permissions").unwrap_or_default() {
            match Actions::named(word) {
                Some(action) => actions = actions.with(action),
                None => {
                    let message = format!("unknown permission {word:?}; use read, write, delete, list or admin");
                    self.problem(&span, message);
                }
            }
        }
        actions
    }

    fn effect(&mut self, table: &Table<'_>) -> RuleEffect {
        match (self.text_at(table, "effect"), table.get("effect")) {
            (Some("deny"), _) => RuleEffect::Deny,
            (Some(word), Some(value)) if word != "allow" => {
                self.problem(&value.span(), format!("unknown effect {word:?}; use \"allow\" or \"deny\""));
                RuleEffect::Allow
            }
            _ => RuleEffect::Allow,
        }
    }

    fn conditions(&mut self, table: &Table<'_>, rule: &mut Rule) {
        const KEYS: [&str; 6] = ["ip_ranges", "require_mfa", "time_window", "tags", "only_fields", "without_fields"];
        self.only_keys(table, &KEYS);
        let conditions = Conditions {
            ip_ranges: self.ip_ranges(table),
            second_factor: self.second_factor(table),
            time_window: self.time_window(table),
            tags: owned(self.words_at(table, "tags").unwrap_or_default()),
        };
        rule.only_fields = self.fields(table, "only_fields", rule.effect);
        rule.without_fields = self.fields(table, "without_fields", rule.effect).unwrap_or_default();
        rule.conditions = conditions.ask_anything().then(|| Box::new(conditions));
    }

    fn ip_ranges(&mut self, table: &Table<'_>) -> Vec<IpRange> {
        let read = |reader: &mut Self, (text, span): Word<'_>| {
            let parsed = IpRange::parse(text);
            parsed.map_err(|error| reader.problem(&span, format!("`ip_ranges` {text:?}: {error}"))).ok()
        };
        let words = self.words_at(table, "ip_ranges").unwrap_or_default();
        words.into_iter().filter_map(|word| read(self, word)).collect()
    }

    fn second_factor(&mut self, table: &Table<'_>) -> Option<SecondFactor> {
        let value = table.get("require_mfa")?;
        let parsed = match value.get_ref() {
            DeValue::Boolean(required) => return required.then_some(SecondFactor::AtAnyTime),
            DeValue::String(text) => Span::parse(text),
            _ => Err("write true, false, or the greatest age such as \"15m\"".to_owned()),
        };
        let parsed = parsed.map_err(|error| self.problem(&value.span(), format!("`require_mfa`: {error}")));
        parsed.ok().map(SecondFactor::NotOlderThan)
    }

    fn time_window(&mut self, table: &Table<'_>) -> Option<TimeWindow> {
        let value = table.get("time_window")?;
        let window = self.table(value, "`time_window`")?;
        self.only_keys(window, &["days", "from", "to", "utc_offset"]);
        if !["days", "from", "to"].iter().any(|key| window.contains_key(*key)) {
            self.problem(&value.span(), "`time_window` limits nothing; give it `days`, `from` or `to`");
        }
        let days = self.words_at(window, "days");
        let days: Option<Vec<&str>> = days.map(|words| words.into_iter().map(|(word, _)| word).collect());
        let [from, to, offset] = ["from", "to", "utc_offset"].map(|key| self.text_at(window, key));
        let parsed = TimeWindow::parse(days.as_deref(), from, to, offset);
        let report = |problems: Vec<String>| {
            problems.into_iter().for_each(|problem| self.problem(&value.span(), format!("`time_window`: {problem}")));
        };
        parsed.map_err(report).ok()
    }

    fn fields(&mut self, table: &Table<'_>, key: &str, effect: RuleEffect) -> Option<Vec<String>> {
        let span = table.get(key)?.span();
        if effect == RuleEffect::Deny {
            self.problem(&span, format!("`{key}` limits what an allowed access sees; take it out of a deny rule"));
        }
        let fields = self.words_at(table, key)?;
        if fields.len() > MAX_FIELDS {
            self.problem(&span, format!("`{key}` has more than {MAX_FIELDS} fields"));
        }
        Some(owned(fields))
    }

    fn name_at<'c>(&mut self, table: &'c Table<'c>) -> Option<&'c str> {
        let name = self.text_at(table, "name")?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(plain) {
            let span = table.get("name").map(Spanned::span).unwrap_or_default();
            self.problem(&span, format!("`name` is 1 to {MAX_NAME_BYTES} letters, digits, `.`, `_` or `-`"));
            return None;
        }
        Some(name)
    }
}

fn owned(words: Vec<Word<'_>>) -> Vec<String> {
    words.into_iter().map(|(word, _)| word.to_owned()).collect()
}

fn parse_binding(text: &str) -> Option<Binding> {
    if text == "*" {
        return Some(Binding::Everyone);
    }
    let (kind, name) = text.split_once(':')?;
    // The host's grammar of subjects; what it would refuse would never match.
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@' | b'+' | b'/');
    let fits = (1..=MAX_BOUND_BYTES).contains(&name.len());
    match kind {
        "user" | "sa" if fits && name.bytes().all(plain) => Some(Binding::Subject(text.to_owned())),
        "group" if fits && !name.contains(|c: char| c == '*' || c.is_control()) => {
            Some(Binding::Group(name.to_owned()))
        }
        _ => None,
    }
}
