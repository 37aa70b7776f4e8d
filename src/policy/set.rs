//! A generation: the immutable whole of manifest, modules, settings and compiled code.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest, Sha256};
use wasmtime::Engine;

use super::{
    guest::{MAX_MODULE_BYTES, Template, Unfit},
    host::{Inquiry, Subject},
    limits::GuestLimits,
    manifest::{self, Entry, Mode},
    session::Session,
    stats::Stats,
};
use crate::domain::{Action, ModuleRef, Timestamp, hex};

/// Largest settings file, in bytes.
const MAX_SETTINGS_BYTES: u64 = 16 * 1024 * 1024;

/// A module in force.
pub struct Module {
    /// Its name and digest.
    pub reference: Arc<ModuleRef>,
    /// Whether its answers count.
    pub mode: Mode,
    /// SHA-256 of its settings, in hexadecimal.
    pub settings_digest: String,
    /// Where it applies.
    pub entry: Entry,
    /// Its compiled, configured code.
    pub template: Template,
    /// What it has done.
    pub stats: Stats,
}

/// All modules in force, in the manifest's order. A request takes one such set and keeps to it.
pub struct PolicySet {
    /// 1, 2, … with each load.
    pub generation: u64,
    /// When it was loaded.
    pub loaded_at: Timestamp,
    /// The modules.
    pub modules: Vec<Module>,
}

/// A policy directory that cannot be taken; every problem that was found, in words for people.
#[derive(Debug, thiserror::Error)]
#[error("the policies in {} cannot be loaded:{}", .directory.display(), bullets(.problems))]
pub struct Rejected {
    /// The directory.
    pub directory: PathBuf,
    /// What is wrong with it.
    pub problems: Vec<String>,
}

fn bullets(lines: &[String]) -> String {
    lines.iter().fold(String::new(), |text, line| text + "\n  - " + line)
}

impl PolicySet {
    /// Loads a directory: manifest, modules, pins, settings; inspects, configures and compiles.
    ///
    /// # Errors
    ///
    /// [`Rejected`] with all problems of all modules. A directory without manifest is no error: it permits nothing.
    pub fn load(engine: &Engine, directory: &Path, generation: u64, now: Timestamp) -> Result<Self, Rejected> {
        let rejected = |problems| Rejected { directory: directory.to_owned(), problems };
        let entries = manifest::read(directory).map_err(rejected)?;
        let mut problems = Vec::new();
        let mut modules = Vec::new();
        for entry in entries.into_iter().filter(|entry| entry.mode != Mode::Off) {
            let name = entry.name.clone();
            match Module::load(engine, directory, entry) {
                Ok(module) => modules.push(module),
                Err(Unfit(found)) => {
                    problems.extend(found.into_iter().map(|problem| format!("policy `{name}`: {problem}")));
                }
            }
        }
        if problems.is_empty() { Ok(Self { generation, loaded_at: now, modules }) } else { Err(rejected(problems)) }
    }

    /// Begins the questions of one request.
    #[must_use]
    pub fn session(&self, inquiry: Inquiry) -> Session<'_> {
        Session::new(self, inquiry)
    }

    /// Whether a module that was slow of late would be asked.
    pub(super) fn is_slow_for(&self, action: Action, subjects: &[Subject]) -> bool {
        let asked = |module: &Module| subjects.iter().any(|subject| module.entry.applies(action, &subject.path));
        self.modules.iter().any(|module| module.stats.pace.is_slow() && asked(module))
    }

    /// Whether a module asks about the secrets themselves, so that they must be looked up before the decision.
    #[must_use]
    pub fn sees_secrets(&self) -> bool {
        self.modules.iter().any(|module| module.template.imports.iter().any(|import| import == "secret"))
    }
}

impl Module {
    fn load(engine: &Engine, directory: &Path, entry: Entry) -> Result<Self, Unfit> {
        let bytes = read(directory, &entry.module, u64::try_from(MAX_MODULE_BYTES).unwrap_or(u64::MAX))?;
        let digest = hex(&Sha256::digest(&bytes));
        if let Some(pin) = entry.sha256.as_ref().filter(|pin| **pin != digest) {
            return Err(Unfit::from(format!("{} has SHA-256 {digest}, the manifest pins {pin}", entry.module)));
        }
        let settings = match &entry.settings {
            Some(file) => read(directory, file, MAX_SETTINGS_BYTES)?,
            None => Vec::new(),
        };
        let settings_digest = hex(&Sha256::digest(&settings));
        let settings = String::from_utf8(settings).map_err(|_| Unfit::from("its settings are not UTF-8".to_owned()))?;
        let limits = GuestLimits {
            deadline: entry.deadline,
            configure_deadline: entry.configure_deadline,
            memory: entry.memory,
            exhausted: false,
        };
        let template = Template::prepare(engine, &bytes, &settings, limits).map_err(|Unfit(problems)| {
            Unfit(problems.iter().map(|problem| format!("{}: {problem}", entry.module)).collect())
        })?;
        Ok(Self {
            reference: Arc::new(ModuleRef { name: entry.name.clone(), digest }),
            mode: entry.mode,
            settings_digest,
            template,
            stats: Stats::default(),
            entry,
        })
    }
}

fn read(directory: &Path, file: &str, most: u64) -> Result<Vec<u8>, Unfit> {
    let path = directory.join(file);
    let unreadable = |error: std::io::Error| Unfit::from(format!("{file}: {error}"));
    let length = fs::metadata(&path).map_err(unreadable)?.len();
    if length > most {
        return Err(Unfit::from(format!("{file} has {length} bytes, {most} are the most")));
    }
    fs::read(&path).map_err(unreadable)
}
