//! `portcullis policy build`: from a policy's sources to a component that a server would take. Each language brings its
//! own tool; this finds it, runs it, and says what is missing.

mod c;
mod javascript;
mod python;
mod rust;

use std::{
    ffi::OsStr,
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::Args;

use super::{Language, inspect::Inspected};
use crate::cli::CommandResult;

#[derive(Args)]
pub struct BuildArgs {
    /// The policy's folder.
    #[arg(default_value = ".")]
    directory: PathBuf,
    /// Where to write the component. Without it: beside the sources, under the name that policies.toml there gives the
    /// module, or else the folder's.
    #[arg(long, short)]
    output: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &BuildArgs) -> CommandResult {
    let folder = Folder::open(&args.directory)?;
    let language = folder.language()?;
    let component = match language {
        Language::Rust => rust::build(&folder),
        Language::Js => javascript::build(&folder),
        Language::Python => python::build(&folder),
        Language::C => c::build(&folder),
    }?;
    let inspected = Inspected::of(&component);
    if !inspected.problems().is_empty() {
        let problems = inspected.problems().join("\n  - ");
        return Err(format!("it was built, but no server would take it:\n  - {problems}").into());
    }
    let output = args.output.clone().unwrap_or_else(|| args.directory.join(folder.module_name()));
    replace(&output, &component)?;
    print!("{}", *inspected.in_words());
    println!("{} is built. Next: {}", output.display(), next_step(&output));
    Ok(0)
}

/// A server may watch the folder: it must see the old file or the new one, never half of one.
fn replace(output: &Path, component: &[u8]) -> Result<(), String> {
    let name = output.file_name().and_then(OsStr::to_str).ok_or("the output must be a file's name")?;
    let unfinished = output.with_file_name(format!(".{name}.unfinished"));
    let written = fs::write(&unfinished, component).and_then(|()| fs::rename(&unfinished, output));
    written.map_err(|error| format!("{}: {error}", output.display()))
}

fn next_step(output: &Path) -> String {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if folder.join("policies.toml").exists() {
        format!("portcullis policy test {}", folder.display())
    } else {
        format!("portcullis policy inspect {}", output.display())
    }
}

/// The folder of one policy's sources.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn open(directory: &Path) -> Result<Self, String> {
        let path = directory.canonicalize().map_err(|error| format!("{}: {error}", directory.display()))?;
        let folder = Self { path };
        if folder.has("wit/policy.wit") {
            return Ok(folder);
        }
        let wanted = "the contract, wit/policy.wit, is not there; `portcullis policy new` makes a folder that has it";
        Err(format!("{}: {wanted}", directory.display()))
    }

    fn has(&self, file: &str) -> bool {
        self.path.join(file).exists()
    }

    /// What the sources are written in, by the files that only this language has.
    fn language(&self) -> Result<Language, String> {
        let found: Vec<_> = [
            (Language::Rust, self.has("Cargo.toml")),
            (Language::Js, self.has("package.json")),
            (Language::Python, self.has("app.py")),
            (Language::C, !self.sources("c").is_empty()),
        ]
        .into_iter()
        .filter_map(|(language, there)| there.then_some(language))
        .collect();
        match &found[..] {
            [language] => Ok(*language),
            [] => {
                Err("no sources: Cargo.toml (Rust), package.json (JavaScript), app.py (Python) or *.c (C) is looked \
                       for"
                .to_owned())
            }
            _ => Err("the sources of more than one language: give each a folder of its own".to_owned()),
        }
    }

    /// The files with an ending, in the order of their names.
    fn sources(&self, extension: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut files: Vec<_> = entries.filter(|path| path.extension() == Some(OsStr::new(extension))).collect();
        files.sort();
        files
    }

    /// The file that policies.toml names, if it names one alone; else the folder's own name.
    fn module_name(&self) -> String {
        let manifest = fs::read_to_string(self.path.join("policies.toml")).unwrap_or_default();
        let manifest: toml::Table = manifest.parse().unwrap_or_default();
        let named = manifest.get("policy").and_then(|policies| match policies.as_array().map(Vec::as_slice) {
            Some([policy]) => policy.get("module")?.as_str(),
            _ => None,
        });
        let folder = self.path.file_name().unwrap_or(OsStr::new("policy")).to_string_lossy();
        named
            .and_then(|file| Path::new(file).file_name()?.to_str())
            .map_or_else(|| format!("{folder}.wasm"), str::to_owned)
    }

    /// A command that works in the folder. What it prints is for people: it goes where errors go.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.path).stdin(Stdio::null()).stdout(io::stderr());
        command
    }
}

/// Runs a tool to its end.
fn finish(command: &mut Command, advice: &str) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{} failed, {status}: what it said is above", shown(command))),
        Err(error) => Err(not_started(command, &error, advice)),
    }
}

fn not_started(command: &Command, error: &io::Error, advice: &str) -> String {
    match error.kind() {
        ErrorKind::NotFound => format!("{} is not installed. {advice}", shown(command)),
        _ => format!("{} cannot be started: {error}", shown(command)),
    }
}

fn shown(command: &Command) -> String {
    format!("`{}`", command.get_program().to_string_lossy())
}

/// A file for a tool to write to, gone at the end.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(folder: &Folder) -> Self {
        Self { path: folder.path.join(format!(".policy-build-{}.wasm", std::process::id())) }
    }

    fn read(&self) -> Result<Vec<u8>, String> {
        fs::read(&self.path).map_err(|error| format!("the tool left no module: {error}"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Where the tool failed there is none.
        fs::remove_file(&self.path).ok();
    }
}
