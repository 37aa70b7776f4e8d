//! Python: componentize-py puts the source and an interpreter into one component.

use std::path::PathBuf;

use super::{Folder, Scratch, finish};

const ADVICE: &str = "In the policy's folder run: python3 -m venv .venv && .venv/bin/pip install -r requirements.txt";

/// Builds the component.
pub fn build(folder: &Folder) -> Result<Vec<u8>, String> {
    let component = Scratch::new(folder);
    let mut command = folder.command(tool(folder));
    // Without WASI there is no clock, no randomness, no network and no files: what a policy is not offered either.
    command.args(["--quiet", "--wit-path", "wit", "--world", "policy", "componentize", "--stub-wasi", "app"]);
    finish(command.arg("--output").arg(&component.path), ADVICE)?;
    component.read()
}

/// The folder's own, or whatever the PATH has.
fn tool(folder: &Folder) -> PathBuf {
    let own = folder.path.join(".venv/bin/componentize-py");
    if own.exists() { own } else { PathBuf::from("componentize-py") }
}
