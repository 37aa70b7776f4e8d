//! `portcullis policy inspect`: what a module is and can see, without running it.

use std::{fs, path::PathBuf};

use clap::Args;
use serde::Serialize;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{
    cli::{CommandResult, output::columns},
    domain::hex,
    policy::{Description, ModuleKind, describe},
};

#[derive(Args)]
pub struct InspectArgs {
    /// The module.
    module: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A module's description with what the file's bytes say.
#[derive(Serialize)]
pub struct Inspected {
    fits: bool,
    size: usize,
    sha256: String,
    #[serde(flatten)]
    about: Description,
}

/// Runs the command.
pub fn run(args: &InspectArgs) -> CommandResult {
    let bytes = fs::read(&args.module).map_err(|error| format!("{}: {error}", args.module.display()))?;
    let inspected = Inspected::of(&bytes);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&inspected)?);
    } else {
        print!("{}", *inspected.in_words());
    }
    Ok(u8::from(!inspected.fits))
}

impl Inspected {
    /// Looks at a module.
    pub fn of(bytes: &[u8]) -> Self {
        let about = describe(bytes);
        let fits = about.problems.is_empty();
        Self { fits, size: bytes.len(), sha256: hex(&Sha256::digest(bytes)), about }
    }

    /// Why no server would take it; none where one would.
    pub fn problems(&self) -> &[String] {
        &self.about.problems
    }

    /// The description as aligned lines.
    pub fn in_words(&self) -> Zeroizing<String> {
        let about = &self.about;
        let world = if self.fits { "policy (portcullis:policy@0.1)".to_owned() } else { about.problems.join("\n") };
        let mut rows = vec![
            ("kind", about.kind.as_str().to_owned()),
            (if self.fits { "world" } else { "unfit" }, world),
            ("size", format!("{} bytes", self.size)),
            ("sha256", self.sha256.clone()),
        ];
        if self.fits {
            rows.insert(2, ("sees", listed(&about.inputs)));
        } else if about.kind != ModuleKind::NotWebAssembly {
            rows.insert(2, ("imports", listed(&about.imports)));
        }
        if about.kind != ModuleKind::NotWebAssembly {
            rows.insert(3, ("exports", listed(&about.exports)));
            rows.push(("made by", listed(&about.producers)));
        }
        let mut text = Zeroizing::default();
        columns(&mut text, &rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect::<Vec<_>>());
        text
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}
