//! Policy modules written by hand: the text files of `guests/`, assembled, in policy directories of a test's own.

use std::{fs, path::PathBuf};

use tempfile::TempDir;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::support::{Options, TestServer};

/// A policy directory for one test.
pub struct Directory {
    directory: TempDir,
    manifest: String,
}

impl Directory {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), manifest: String::new() }
    }

    /// Adds a guest under its own name, with further lines of the manifest.
    pub fn with(self, guest: &str, lines: &str) -> Self {
        self.named(guest, guest, lines)
    }

    /// Adds a guest under another name.
    pub fn named(self, name: &str, guest: &str, lines: &str) -> Self {
        self.with_bytes(name, &assemble(guest), lines)
    }

    /// Adds a module that is whatever these bytes are.
    pub fn with_bytes(mut self, name: &str, bytes: &[u8], lines: &str) -> Self {
        fs::write(self.path().join(format!("{name}.wasm")), bytes).unwrap();
        let entry = format!("[[policy]]\nname = {name:?}\nmodule = \"{name}.wasm\"\n{lines}\n");
        self.manifest.push_str(&entry);
        fs::write(self.path().join("policies.toml"), &self.manifest).unwrap();
        self
    }

    /// Adds a file beside the modules.
    pub fn with_file(self, name: &str, text: &str) -> Self {
        fs::write(self.path().join(name), text).unwrap();
        self
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// A server with these policies.
    pub async fn server(&self) -> TestServer {
        TestServer::start(self.options()).await
    }

    /// A server with these policies on another's data.
    pub async fn server_on(&self, data_dir: PathBuf) -> TestServer {
        TestServer::start(Options { data_dir: Some(data_dir), ..self.options() }).await
    }

    /// What a server that must not start with these policies says.
    pub async fn refusal(&self) -> String {
        match TestServer::try_start(self.options()).await {
            Ok(_) => panic!("a server starts with {}", self.manifest),
            Err(error) => error.to_string(),
        }
    }

    fn options(&self) -> Options {
        Options { policies: Some(self.path()), ..Options::default() }
    }
}

/// How many modules are loaded at a time; a manifest has 64 at most.
pub const MODULES: usize = 50;

/// Guests by label, each below its own name, and with a deadline that those alone miss which shall.
pub fn below_their_names(guests: &[(String, String)]) -> Directory {
    guests.iter().fold(Directory::new(), |directory, (guest, outcome)| {
        let deadline = if outcome.starts_with("deadline") { "100ms" } else { "5s" };
        directory.with(guest, &format!("paths = [\"{guest}/**\"]\ndeadline = \"{deadline}\""))
    })
}

/// The text of a guest. Lines between `;;repeat N` and `;;end` stand there N times, each `#` in them for the number.
pub fn source(guest: &str) -> String {
    let written = fs::read_to_string(sources().join(format!("{guest}.wat"))).unwrap();
    let mut text = String::new();
    let mut repeats = written.split(";;repeat ");
    text += repeats.next().unwrap();
    for repeat in repeats {
        let (times, rest) = repeat.split_once('\n').unwrap();
        let (repeated, rest) = rest.split_once(";;end\n").unwrap();
        for number in 0..times.parse::<usize>().unwrap() {
            text += &repeated.replace('#', &number.to_string());
        }
        text += rest;
    }
    text
}

/// The guests whose text begins with `;; LABEL:`, each with what follows it on that line.
pub fn labelled(label: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for file in fs::read_dir(sources()).unwrap() {
        let file = file.unwrap().file_name().into_string().unwrap();
        let Some(name) = file.strip_suffix(".wat").map(str::to_owned) else { continue };
        let text = fs::read_to_string(sources().join(format!("{name}.wat"))).unwrap();
        let first = text.lines().next().unwrap_or_default();
        if let Some(rest) = first.strip_prefix(&format!(";; {label}: ")) {
            found.push((name, rest.to_owned()));
        }
    }
    found.sort();
    found
}

fn sources() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/guests")
}

/// The component of a guest, which is written as one, or is a core module.
pub fn assemble(guest: &str) -> Vec<u8> {
    let text = source(guest);
    if text.contains("\n(component\n") {
        return wat::parse_str(&text).unwrap_or_else(|error| panic!("{guest}: {error}"));
    }
    componentize(core_module(guest), "policy")
}

/// The core module of a guest: its own text, and each part of the prelude that it does not define itself.
pub fn core_module(guest: &str) -> Vec<u8> {
    core_module_of(&source(guest))
}

/// The core module of a guest that is not in a file.
pub fn core_module_of(own: &str) -> Vec<u8> {
    let prelude = source("prelude");
    let mut text = format!("(module\n{own}");
    for part in prelude.split(";;part ").skip(1) {
        let (name, body) = part.split_once('\n').unwrap();
        let defined = match name.trim_matches('"') {
            "always" => false,
            local if local.starts_with('$') => own.contains(&format!("(func {local} ")),
            export => own.contains(&format!("(export \"{export}\")")),
        };
        if !defined {
            text += body;
        }
    }
    text += ")";
    wat::parse_str(&text).unwrap_or_else(|error| panic!("{own}: {error}"))
}

/// A component of a world of `wit/policy.wit`, or of the other worlds in `guests/other.wit`.
pub fn componentize(mut module: Vec<u8>, world: &str) -> Vec<u8> {
    let mut resolve = Resolve::default();
    let contract = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("wit/policy.wit");
    let mut package = resolve.push_file(contract).unwrap();
    if world != "policy" {
        package = resolve.push_file(sources().join("other.wit")).unwrap();
    }
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().validate(false).module(&module).unwrap().encode().unwrap()
}
