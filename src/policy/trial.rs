//! Modules on their author's table: their test vectors without a server, and without a manifest where there is none yet.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;
use wasmtime::Engine;

use super::{
    guest::{MAX_MODULE_BYTES, Template, Unfit},
    limits::{GuestLimits, MOST_MEMORY, engine},
    manifest::{self, Mode},
    set::{self, MAX_SETTINGS_BYTES},
    vectors::{self, MOST_BYTES, Suite},
};

/// What a module without a manifest may use: enough for any, since only its answers are tried.
const LIMITS: GuestLimits = GuestLimits {
    deadline: Duration::from_secs(1),
    configure_deadline: Duration::from_secs(20),
    memory: MOST_MEMORY,
    exhausted: false,
};

/// What came of a module's vectors.
#[derive(Debug, Serialize)]
pub struct Trial {
    /// The module: its name in the manifest, or its file.
    pub module: String,
    /// The file of vectors.
    pub file: PathBuf,
    /// How many there are; none where there is no such file.
    pub vectors: Option<usize>,
    /// What is not as expected, in words.
    pub failures: Vec<String>,
}

/// Asks each module of a policy directory its vectors. Modules that are `off` are left out.
///
/// # Errors
///
/// Everything that keeps modules and vectors from being read.
pub fn try_directory(directory: &Path) -> Result<Vec<Trial>, Vec<String>> {
    let engine = start()?;
    let (mut trials, mut problems) = (Vec::new(), Vec::new());
    for entry in manifest::read(directory)?.into_iter().filter(|entry| entry.mode != Mode::Off) {
        let limits = GuestLimits {
            deadline: entry.deadline,
            configure_deadline: entry.configure_deadline,
            memory: entry.memory,
            exhausted: false,
        };
        let file = directory.join(vectors::file_of(&entry.module));
        let template = || template(&engine, directory, &entry.module, entry.settings.as_deref(), limits);
        match trial(&entry.name, file, template) {
            Ok(trial) => trials.push(trial),
            Err(Unfit(found)) => {
                problems.extend(found.into_iter().map(|problem| format!("policy `{}`: {problem}", entry.name)));
            }
        }
    }
    if problems.is_empty() { Ok(trials) } else { Err(problems) }
}

/// Asks one module its vectors: those beside it, or others.
///
/// # Errors
///
/// Everything that keeps module, settings and vectors from being read.
pub fn try_module(module: &Path, vectors: Option<&Path>, settings: Option<&Path>) -> Result<Trial, Vec<String>> {
    let engine = start()?;
    let text = |path: &Path| {
        let text = path.to_str().map(str::to_owned);
        text.ok_or_else(|| vec![format!("{}: a path in UTF-8 is wanted", path.display())])
    };
    let (module, settings) = (text(module)?, settings.map(text).transpose()?);
    let file = vectors.map_or_else(|| PathBuf::from(vectors::file_of(&module)), Path::to_owned);
    let template = || template(&engine, Path::new(""), &module, settings.as_deref(), LIMITS);
    trial(&module, file, template).map_err(|Unfit(problems)| problems)
}

fn start() -> Result<Engine, Vec<String>> {
    engine().map_err(|error| vec![format!("the WebAssembly engine cannot start: {error:#}")])
}

fn trial(module: &str, file: PathBuf, template: impl FnOnce() -> Result<Template, Unfit>) -> Result<Trial, Unfit> {
    if !fs::exists(&file).is_ok_and(|there| there) {
        return Ok(Trial { module: module.to_owned(), file, vectors: None, failures: Vec::new() });
    }
    let text = text(set::read(Path::new(""), &file.to_string_lossy(), MOST_BYTES)?, &file.to_string_lossy())?;
    let blame = |problem| format!("{}: {problem}", file.display());
    let suite = Suite::parse(&text).map_err(|problems| Unfit(problems.into_iter().map(blame).collect()))?;
    let failures = suite.run(&template()?);
    Ok(Trial { module: module.to_owned(), file, vectors: Some(suite.count()), failures })
}

fn template(
    engine: &Engine,
    directory: &Path,
    module: &str,
    settings: Option<&str>,
    limits: GuestLimits,
) -> Result<Template, Unfit> {
    let bytes = set::read(directory, module, u64::try_from(MAX_MODULE_BYTES).unwrap_or(u64::MAX))?;
    let settings = match settings {
        Some(file) => text(set::read(directory, file, MAX_SETTINGS_BYTES)?, file)?,
        None => String::new(),
    };
    Template::prepare(engine, &bytes, &settings, limits)
        .map_err(|Unfit(problems)| Unfit(problems.iter().map(|problem| format!("{module}: {problem}")).collect()))
}

fn text(bytes: Vec<u8>, file: &str) -> Result<String, Unfit> {
    String::from_utf8(bytes).map_err(|_| Unfit::from(format!("{file}: it is not UTF-8")))
}
