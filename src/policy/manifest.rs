//! `policies.toml`: which modules are in force, in order.

use std::time::Duration;

use serde::Deserialize;

use super::limits::MOST_MEMORY;
use crate::domain::{Action, PathPattern, SecretPath, Span};

/// The manifest's name in the policy directory.
pub const FILE: &str = "policies.toml";
const DEADLINE: Duration = Duration::from_millis(20);
const LONGEST_DEADLINE: Duration = Duration::from_secs(10);
const MEMORY: usize = 16 * 1024 * 1024;
const CONFIGURE_DEADLINE: Duration = Duration::from_secs(20);
const LONGEST_CONFIGURE_DEADLINE: Duration = Duration::from_mins(5);
/// Most modules of a manifest.
pub const MODULES: usize = 64;

/// The pattern of all paths, which is the usual one: matching it would cost a tenth of a decision.
const EVERYWHERE: &str = "**";
/// An empty list would switch a policy off without saying so.
const NOWHERE: &str = "an empty list applies nowhere: leave it out, or say mode = \"off\"";

/// Whether a module's answers count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Its answers decide.
    Enforce,
    /// It is asked, its disagreements are counted, and nothing follows from them.
    Shadow,
    /// It is not loaded.
    Off,
}

impl Mode {
    /// The manifest's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Shadow => "shadow",
            Self::Off => "off",
        }
    }
}

/// One module as the manifest names it, checked.
#[derive(Debug, Clone)]
pub struct Entry {
    /// `[a-z0-9][a-z0-9_-]*`, unique in the manifest.
    pub name: String,
    /// The module's file beside the manifest.
    pub module: String,
    /// The digest that the file must have, in hexadecimal.
    pub sha256: Option<String>,
    /// The settings' file beside the manifest.
    pub settings: Option<String>,
    /// The digest that the settings must have, in hexadecimal.
    pub settings_sha256: Option<String>,
    /// The file of test vectors beside the manifest; where none is named, that of [`Entry::usual_vectors`] if it is there.
    pub vectors: Option<String>,
    /// Whether its answers count.
    pub mode: Mode,
    /// The actions that it is asked about; all where none.
    pub actions: Option<Vec<Action>>,
    /// The paths that it is asked about.
    pub paths: Vec<PathPattern>,
    /// Wall-clock time of one call.
    pub deadline: Duration,
    /// Wall-clock time of reading the settings, once, at load.
    pub configure_deadline: Duration,
    /// Linear memory, in bytes.
    pub memory: usize,
}

impl Entry {
    /// Whether the module is asked about this action on that path.
    #[must_use]
    pub fn applies(&self, action: Action, path: &SecretPath) -> bool {
        self.actions.as_ref().is_none_or(|actions| actions.contains(&action))
            && self.paths.iter().any(|pattern| pattern.as_str() == EVERYWHERE || pattern.matches(path.as_str()))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    policy: Vec<WrittenEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenEntry {
    name: String,
    module: String,
    sha256: Option<String>,
    settings: Option<String>,
    settings_sha256: Option<String>,
    vectors: Option<String>,
    mode: Option<Mode>,
    actions: Option<Vec<String>>,
    paths: Option<Vec<String>>,
    deadline: Option<String>,
    configure_deadline: Option<String>,
    memory: Option<String>,
}

impl Entry {
    /// Where a module's test vectors are, unless the manifest names another file: `rules.wasm` has `rules.vectors.toml`.
    #[must_use]
    pub fn usual_vectors(&self) -> String {
        format!("{}.vectors.toml", self.module.strip_suffix(".wasm").unwrap_or(&self.module))
    }
}

/// Reads a manifest.
///
/// # Errors
///
/// Every problem found, in words for the person who wrote the file.
pub fn parse(text: &str) -> Result<Vec<Entry>, Vec<String>> {
    let written: Written = toml::from_str(text).map_err(|error| vec![format!("{FILE}: {error}")])?;
    let mut problems = Vec::new();
    if written.policy.len() > MODULES {
        problems.push(format!("{FILE}: {MODULES} modules are the most"));
    }
    let mut entries: Vec<Entry> = Vec::new();
    for (index, entry) in written.policy.into_iter().enumerate() {
        let place = format!("{FILE}: policy {} (`{}`)", index + 1, entry.name.escape_default());
        if entries.iter().any(|before| before.name == entry.name) {
            problems.push(format!("{place}: another policy has this name"));
        }
        match entry.check() {
            Ok(entry) => entries.push(entry),
            Err(found) => problems.extend(found.into_iter().map(|problem| format!("{place}: {problem}"))),
        }
    }
    if problems.is_empty() { Ok(entries) } else { Err(problems) }
}

impl WrittenEntry {
    fn check(self) -> Result<Entry, Vec<String>> {
        let mut problems = Vec::new();
        if !is_name(&self.name) {
            problems.push("name: lower-case letters, digits, `-` and `_`, 64 at most, are wanted".to_owned());
        }
        let (settings, vectors) = (self.settings.as_ref(), self.vectors.as_ref());
        for (field, file) in [("module", Some(&self.module)), ("settings", settings), ("vectors", vectors)] {
            if file.is_some_and(|file| !is_beside(file)) {
                problems.push(format!("{field}: the name of a file beside the manifest is wanted"));
            }
        }
        for (field, pin) in [("sha256", &self.sha256), ("settings_sha256", &self.settings_sha256)] {
            if pin.as_ref().is_some_and(|pin| pin.len() != 64 || !pin.bytes().all(|b| b.is_ascii_hexdigit())) {
                problems.push(format!("{field}: 64 hexadecimal digits are wanted"));
            }
        }
        if settings.is_none() && self.settings_sha256.is_some() {
            problems.push("settings_sha256: there are no settings to pin".to_owned());
        }
        let mut keep = |field: &str, problem: String| problems.push(format!("{field}: {problem}"));
        let actions = actions(self.actions).map_err(|problem| keep("actions", problem)).unwrap_or_default();
        let paths = paths(self.paths).map_err(|problem| keep("paths", problem)).unwrap_or_default();
        let deadline = within(self.deadline, DEADLINE, LONGEST_DEADLINE);
        let deadline = deadline.map_err(|problem| keep("deadline", problem)).unwrap_or_default();
        let configuring = within(self.configure_deadline, CONFIGURE_DEADLINE, LONGEST_CONFIGURE_DEADLINE);
        let configure_deadline = configuring.map_err(|problem| keep("configure_deadline", problem)).unwrap_or_default();
        let memory = memory(self.memory).map_err(|problem| keep("memory", problem)).unwrap_or_default();
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Entry {
            name: self.name,
            module: self.module,
            sha256: self.sha256.map(|pin| pin.to_ascii_lowercase()),
            settings: self.settings,
            settings_sha256: self.settings_sha256.map(|pin| pin.to_ascii_lowercase()),
            vectors: self.vectors,
            mode: self.mode.unwrap_or(Mode::Enforce),
            actions,
            paths,
            deadline,
            configure_deadline,
            memory,
        })
    }
}

/// Whether this can be a policy's name: `[a-z0-9][a-z0-9_-]*`, 64 bytes at most.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    (1..=64).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with(['-', '_'])
}

/// Whether this names a file in the manifest's own directory, spelled in the one way there is: `a.wasm/` and `a.wasm/.`
/// would lead there too.
fn is_beside(file: &str) -> bool {
    !file.is_empty() && !file.starts_with('.') && !file.contains(['/', '\0'])
}

fn actions(words: Option<Vec<String>>) -> Result<Option<Vec<Action>>, String> {
    let Some(words) = words else { return Ok(None) };
    if words.is_empty() {
        return Err(NOWHERE.to_owned());
    }
    if words.iter().any(|word| word == "*") {
        return Ok(None);
    }
    let parse = |word: &String| {
        Action::parse(word)
            .ok_or_else(|| format!("`{}` is none of read, write, delete, list, admin, *", word.escape_default()))
    };
    words.iter().map(parse).collect::<Result<_, _>>().map(Some)
}

fn paths(patterns: Option<Vec<String>>) -> Result<Vec<PathPattern>, String> {
    let patterns = patterns.unwrap_or_else(|| vec![EVERYWHERE.to_owned()]);
    if patterns.is_empty() {
        return Err(NOWHERE.to_owned());
    }
    let parse =
        |text: &String| PathPattern::parse(text).map_err(|error| format!("`{}`: {error}", text.escape_default()));
    patterns.iter().map(parse).collect()
}

fn within(text: Option<String>, default: Duration, longest: Duration) -> Result<Duration, String> {
    let Some(text) = text else { return Ok(default) };
    match text.parse::<Span>() {
        Ok(Span(deadline)) if deadline <= longest => Ok(deadline),
        _ => Err(format!("1ms to {}s are wanted, such as {}ms", longest.as_secs(), default.as_millis())),
    }
}

fn memory(text: Option<String>) -> Result<usize, String> {
    let Some(text) = text else { return Ok(MEMORY) };
    let mebibytes = text.strip_suffix("MiB").and_then(|number| number.parse::<usize>().ok());
    match mebibytes.and_then(|number| number.checked_mul(1024 * 1024)) {
        Some(bytes) if (1..=MOST_MEMORY).contains(&bytes) => Ok(bytes),
        _ => Err(format!("1MiB to {}MiB are wanted, such as 16MiB", MOST_MEMORY / 1024 / 1024)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_entry() {
        let entries = parse(
            r#"
            [[policy]]
            name = "rules"
            module = "rules.wasm"
            settings = "rules.toml"
            mode = "shadow"
            actions = ["read", "list"]
            paths = ["app/**"]
            deadline = "50ms"
            memory = "64MiB"
            "#,
        )
        .unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].mode, Mode::Shadow);
        assert_eq!(entries[0].actions.as_deref(), Some(&[Action::Read, Action::List][..]));
        assert_eq!((entries[0].deadline, entries[0].memory), (Duration::from_millis(50), 64 << 20));
    }

    #[test]
    fn every_problem_is_named() {
        let problems = parse(
            r#"
            [[policy]]
            name = "Bad Name"
            module = "../escape.wasm"
            sha256 = "abc"
            actions = ["fly"]
            paths = ["a//b"]
            deadline = "11s"
            configure_deadline = "301s"
            memory = "1GiB"
            "#,
        )
        .unwrap_err();
        for field in ["name", "module", "sha256", "actions", "paths", "deadline", "configure_deadline", "memory"] {
            assert!(problems.iter().any(|p| p.contains(&format!(": {field}:"))), "{field}: {problems:#?}");
        }
    }

    #[test]
    fn a_file_is_named_and_not_a_way_to_it() {
        for file in
            ["", ".", "..", ".a.wasm", "./a.wasm", "a.wasm/", "a.wasm/.", "a//", "b/a.wasm", "/a.wasm", "a\\u0000"]
        {
            for key in ["module", "settings", "vectors"] {
                let module = if key == "module" { "" } else { "module = \"a.wasm\"\n" };
                let problems = parse(&format!("[[policy]]\nname = \"a\"\n{module}{key} = \"{file}\"\n")).unwrap_err();
                assert!(problems[0].contains("beside the manifest"), "{key} = {file:?}: {problems:?}");
            }
        }
    }

    #[test]
    fn an_empty_list_switches_nothing_off() {
        for list in ["actions = []", "paths = []"] {
            let entry = format!("[[policy]]\nname = \"a\"\nmodule = \"a.wasm\"\n{list}\n");
            assert!(parse(&entry).unwrap_err()[0].contains("applies nowhere"), "{list}");
        }
    }

    #[test]
    fn an_unknown_key_is_named() {
        let problems = parse("[[policy]]\nname = \"a\"\nmodule = \"a.wasm\"\nfail_open = true\n").unwrap_err();
        assert!(problems[0].contains("fail_open"), "{problems:?}");
    }

    #[test]
    fn two_of_one_name() {
        let twice = "[[policy]]\nname = \"a\"\nmodule = \"a.wasm\"\n".repeat(2);
        assert!(parse(&twice).unwrap_err()[0].contains("another policy has this name"));
    }
}
