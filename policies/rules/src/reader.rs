//! Walks tables of TOML and keeps every problem with its place. Knows the shapes of values, not what they mean.

use std::{collections::BTreeSet, fmt::Display, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue, Error},
};

/// Most problems in one answer; the rest is counted.
const MAX_PROBLEMS: usize = 100;

/// A table that borrows from its text.
pub type Table<'t> = DeTable<'t>;
/// A value and where it stands.
pub type Value<'t> = Spanned<DeValue<'t>>;
/// A text in a list and where it stands.
pub type Word<'t> = (&'t str, Range<usize>);

/// Reads values. A method that returns nothing where something stands has reported why.
#[derive(Default)]
pub struct Reader {
    /// With the byte of the settings at which each begins.
    problems: Vec<(usize, String)>,
    /// Where in the settings the present piece begins; what TOML's parser counts is counted from there.
    pub base: usize,
    /// The policy that is being read, as people call it.
    pub policy: String,
    /// The number of the rule that is being read; 0 between rules.
    pub rule: usize,
    used: BTreeSet<String>,
}

impl Reader {
    /// Says that a policy begins; none where the name is empty.
    pub fn enter_policy(&mut self, policy: String) {
        self.policy = policy;
        self.rule = 0;
    }

    /// Whether the name was not asked about before.
    pub fn first_use(&mut self, name: &str) -> bool {
        self.used.insert(name.to_owned())
    }

    /// Reports every key that is not among these.
    pub fn only_keys(&mut self, table: &Table<'_>, known: &[&str]) {
        for (key, _) in table.iter().filter(|(key, _)| !known.contains(&key.get_ref().as_ref())) {
            self.problem(&key.span(), format!("unknown field {:?}; known are {}", key.get_ref(), known.join(", ")));
        }
    }

    /// The items of a list of tables; none where the key is missing.
    pub fn tables<'c>(&mut self, table: &'c Table<'c>, key: &str) -> Vec<&'c Value<'c>> {
        let Some(value) = table.get(key) else { return Vec::new() };
        match value.get_ref().as_array() {
            Some(array) if !array.is_empty() => array.iter().collect(),
            _ => {
                self.problem(&value.span(), format!("`{key}` is a list of tables, each under its own double brackets"));
                Vec::new()
            }
        }
    }

    /// The value as a table.
    pub fn table<'c>(&mut self, value: &'c Value<'c>, what: &str) -> Option<&'c Table<'c>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.problem(&value.span(), format!("{what} is a table, not {}", value.get_ref().type_str()));
        }
        table
    }

    /// A text; `None` where the key is missing.
    pub fn text_at<'c>(&mut self, table: &'c Table<'c>, key: &str) -> Option<&'c str> {
        let value = table.get(key)?;
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.problem(&value.span(), format!("`{key}` is a text in quotes, not {}", value.get_ref().type_str()));
        }
        text
    }

    /// The texts of a list; `None` where the key is missing. An empty list is refused: whether it means all or none is
    /// a guess.
    pub fn words_at<'c>(&mut self, table: &'c Table<'c>, key: &str) -> Option<Vec<Word<'c>>> {
        let value = table.get(key)?;
        let array = value.get_ref().as_array().filter(|array| !array.is_empty());
        let word = |item: &'c Value<'c>| Some((item.get_ref().as_str()?, item.span()));
        let words = array.and_then(|array| array.iter().map(word).collect());
        if words.is_none() {
            self.problem(&value.span(), format!("`{key}` is a list of texts, one at least; mend it or leave it out"));
        }
        words
    }

    /// Keeps a problem of TOML's own.
    pub fn syntax_problem(&mut self, error: &Error) {
        self.enter_policy(String::new());
        self.problem(&error.span().unwrap_or_default(), error.message().replace('\n', ", "));
    }

    /// Keeps a problem.
    pub fn problem(&mut self, span: &Range<usize>, message: impl Display) {
        let text = match (self.policy.as_str(), self.rule) {
            ("", _) => message.to_string(),
            (policy, 0) => format!("{policy}: {message}"),
            (policy, rule) => format!("{policy}, rule {rule}: {message}"),
        };
        self.problems.push((self.base + span.start, text));
    }

    /// What was read, if there was no problem.
    ///
    /// # Errors
    ///
    /// The problems in the order of the settings, each with its line.
    pub fn finish<T>(mut self, settings: &str, read: T) -> Result<T, Vec<String>> {
        if self.problems.is_empty() {
            return Ok(read);
        }
        self.problems.sort_by_key(|(start, _)| *start);
        let more = self.problems.len().saturating_sub(MAX_PROBLEMS);
        let line = |start: usize| settings.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1;
        let shown = self.problems.iter().take(MAX_PROBLEMS);
        let mut report: Vec<String> = shown.map(|(start, text)| format!("line {}: {text}", line(*start))).collect();
        if more > 0 {
            report.push(format!("and {more} more"));
        }
        Err(report)
    }
}
