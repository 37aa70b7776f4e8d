//! Modules on their author's table: their test vectors without a server, and without a manifest where there is none yet.

use std::path::Path;

use serde::Serialize;

use super::{
    bundle::{self, Bundle},
    cache::Loader,
    compiler::Compiler,
    guest::Unfit,
    limits::{MOST_MEMORY, engine},
    manifest::Entry,
    set::{Module, for_each, suite},
};

/// What came of a module's vectors.
#[derive(Debug, Serialize)]
pub struct Trial {
    /// The module: its name in the manifest, or its file.
    pub module: String,
    /// The file of vectors.
    pub file: String,
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
    try_bundle(&Bundle::read(directory)?)
}

/// Asks one module its vectors: those beside it, or others. It may use as much as a manifest can grant: only its answers
/// are tried.
///
/// # Errors
///
/// Everything that keeps module, settings and vectors from being read.
pub fn try_module(module: &Path, vectors: Option<&Path>, settings: Option<&Path>) -> Result<Vec<Trial>, Vec<String>> {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut entry = toml::Table::from_iter([
        ("name".to_owned(), "module".into()),
        ("module".to_owned(), name(module).into()),
        ("deadline".to_owned(), "1s".into()),
        ("memory".to_owned(), format!("{}MiB", MOST_MEMORY / 1024 / 1024).into()),
    ]);
    for (key, file) in [("vectors", vectors), ("settings", settings)] {
        entry.extend(file.map(|file| (key.to_owned(), name(file).into())));
    }
    let manifest = toml::Table::from_iter([("policy".to_owned(), toml::Value::from(vec![entry]))]);
    let bundle = Bundle::gather(Some(manifest.to_string()), |file, most| {
        let named = [Some(module), vectors, settings].into_iter().flatten().find(|path| name(path) == file);
        let path = named.map_or_else(|| module.with_file_name(file), Path::to_owned);
        bundle::read(&path, most)
    });
    let mut trials = try_bundle(&bundle?)?;
    for trial in &mut trials {
        trial.module = module.display().to_string();
    }
    Ok(trials)
}

fn try_bundle(bundle: &Bundle) -> Result<Vec<Trial>, Vec<String>> {
    let engine = engine().map_err(|error| vec![format!("the WebAssembly engine cannot start: {error:#}")])?;
    let loader = Loader::new(engine, Compiler::Here, None);
    for_each(&bundle.entries, |entry| trial(&loader, bundle, entry))
}

fn trial(loader: &Loader, bundle: &Bundle, entry: &Entry) -> Result<Trial, Unfit> {
    let module = entry.name.clone();
    let Some((file, suite)) = suite(bundle, entry)? else {
        return Ok(Trial { module, file: entry.usual_vectors(), vectors: None, failures: Vec::new() });
    };
    let failures = suite.run(&Module::prepare(loader, bundle, entry)?.template);
    Ok(Trial { module, file, vectors: Some(suite.count()), failures })
}
