//! A generation: the immutable whole of manifest, modules, settings and compiled code.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{
    bundle::Bundle,
    cache::Loader,
    compiler::Order,
    guest::{Template, Unfit},
    host::{Inquiry, Subject},
    inspection::inspect,
    limits::GuestLimits,
    manifest::{Entry, Mode},
    session::Session,
    stats::Stats,
    vectors::Suite,
};
use crate::domain::{Action, ModuleRef, Timestamp, hex};

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
    /// 1, 2, … with each change, also over restarts.
    pub generation: u64,
    /// When it was loaded.
    pub loaded_at: Timestamp,
    /// The modules.
    pub modules: Vec<Module>,
    /// SHA-256 of all that it was made of, manifest and files, in hexadecimal.
    pub digest: String,
}

impl PolicySet {
    /// Makes a generation of a bundle: checks pins, inspects, configures, compiles, tests.
    ///
    /// # Errors
    ///
    /// All problems of all modules.
    pub fn assemble(loader: &Loader, bundle: &Bundle, generation: u64, now: Timestamp) -> Result<Self, Vec<String>> {
        let modules = for_each(&bundle.entries, |entry| Module::load(loader, bundle, entry))?;
        Ok(Self { generation, loaded_at: now, modules, digest: bundle.digest.clone() })
    }

    /// Begins the questions of one request.
    #[must_use]
    pub fn session(&self, inquiry: Inquiry) -> Session<&Self> {
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
    fn load(loader: &Loader, bundle: &Bundle, entry: &Entry) -> Result<Self, Unfit> {
        let module = Self::prepare(loader, bundle, entry)?;
        match suite(bundle, entry)?.map(|(file, suite)| (file, suite.run(&module.template))) {
            Some((file, failures)) if !failures.is_empty() => {
                let lines = failures.iter().map(|failure| format!("{file}: {failure}"));
                let advice = format!("{file}: it says what must stay so; change it too, where the change is meant");
                Err(Unfit(lines.chain([advice]).collect()))
            }
            _ => Ok(module),
        }
    }

    /// Everything that a load does, but for the module's own vectors.
    pub(super) fn prepare(loader: &Loader, bundle: &Bundle, entry: &Entry) -> Result<Self, Unfit> {
        let module = bundle.file(&entry.module).map_err(Unfit::from)?;
        let digest = pinned(&entry.module, &module, entry.sha256.as_ref())?;
        let settings = match &entry.settings {
            Some(file) => bundle.file(file).map_err(Unfit::from)?,
            None => Arc::default(),
        };
        let settings_file = entry.settings.as_deref().unwrap_or_default();
        let settings_digest = pinned(settings_file, &settings, entry.settings_sha256.as_ref())?;
        let settings =
            std::str::from_utf8(&settings).map_err(|_| Unfit::from("its settings are not UTF-8".to_owned()))?;
        let named = |Unfit(problems)| {
            Unfit(problems.iter().map(|problem: &String| format!("{}: {problem}", entry.module)).collect())
        };
        let limits = GuestLimits::new(entry.deadline, entry.configure_deadline, entry.memory);
        let imports = inspect(&module).map_err(named)?;
        let order = Order { module: &module, settings, limits: limits.clone() };
        let component = loader.component(&order).map_err(named)?;
        let template = Template::new(&loader.engine, &component, imports, limits).map_err(named)?;
        Ok(Self {
            reference: Arc::new(ModuleRef { name: entry.name.clone(), digest }),
            mode: entry.mode,
            settings_digest,
            template,
            stats: Stats::default(),
            entry: entry.clone(),
        })
    }
}

/// Does the same with all modules: for each its result, or all problems of all.
pub(super) fn for_each<T>(entries: &[Entry], work: impl Fn(&Entry) -> Result<T, Unfit>) -> Result<Vec<T>, Vec<String>> {
    let (mut done, mut problems) = (Vec::new(), Vec::new());
    for entry in entries {
        match work(entry) {
            Ok(one) => done.push(one),
            Err(Unfit(found)) => {
                problems.extend(found.into_iter().map(|problem| format!("policy `{}`: {problem}", entry.name)));
            }
        }
    }
    // INVARIANT: a module is never left out, not even if it is refused without a word.
    if problems.is_empty() && done.len() == entries.len() { Ok(done) } else { Err(problems) }
}

/// A module's test vectors with the name of their file, where it has any.
pub(super) fn suite(bundle: &Bundle, entry: &Entry) -> Result<Option<(String, Suite)>, Unfit> {
    let Some((name, file)) = bundle.vectors(entry) else { return Ok(None) };
    let blame = |problem: String| format!("{name}: {problem}");
    let file = file.map_err(Unfit::from)?;
    let text = std::str::from_utf8(&file).map_err(|_| Unfit::from(blame("it is not UTF-8".to_owned())))?;
    let suite = Suite::parse(text).map_err(|problems| Unfit(problems.into_iter().map(blame).collect()))?;
    Ok(Some((name, suite)))
}

/// The digest of a file, once it is known to be the one that the manifest pins.
fn pinned(name: &str, bytes: &[u8], pin: Option<&String>) -> Result<String, Unfit> {
    let digest = hex(&Sha256::digest(bytes));
    match pin.filter(|pin| **pin != digest) {
        Some(pin) => Err(Unfit::from(format!("{name} has SHA-256 {digest}, the manifest pins {pin}"))),
        None => Ok(digest),
    }
}
