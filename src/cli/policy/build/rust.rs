//! Rust: `cargo` makes a core module, which becomes a component here.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Deserialize;

use super::{Folder, not_started, shown};
use crate::policy::componentize;

const TARGET: &str = "wasm32-unknown-unknown";
const NO_CARGO: &str = "Install Rust with rustup (https://rustup.rs), then: rustup target add wasm32-unknown-unknown";
const NO_TARGET: &str = "the compiler has no standard library for WebAssembly: run \
                         `rustup target add wasm32-unknown-unknown`";
const NO_MODULE: &str = "cargo built no WebAssembly module: Cargo.toml needs [lib] crate-type = [\"cdylib\"]";

/// Builds the component.
pub fn build(folder: &Folder) -> Result<Vec<u8>, String> {
    let mut command = folder.command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--release", "--target", TARGET, "--message-format=json-render-diagnostics"]);
    let output = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| not_started(&command, &error, NO_CARGO))?;
    if !output.status.success() {
        let hint = if lacks_target() { NO_TARGET } else { "what it said is above" };
        return Err(format!("{} failed, {}: {hint}", shown(&command), output.status));
    }
    let module = module(&String::from_utf8_lossy(&output.stdout)).ok_or(NO_MODULE)?;
    let core_module = fs::read(&module).map_err(|error| format!("{}: {error}", module.display()))?;
    componentize(&core_module)
}

/// Whether the compiler has no library for the target, and is not told to build one either.
fn lacks_target() -> bool {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let asked = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    let there = asked.is_ok_and(|answer| Path::new(String::from_utf8_lossy(&answer.stdout).trim()).is_dir());
    !there && env::var_os("CARGO_UNSTABLE_BUILD_STD").is_none()
}

/// A line of cargo's report, as far as it is of interest.
#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

/// The policy's own crate is built last.
fn module(report: &str) -> Option<PathBuf> {
    let messages = report.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    messages.flat_map(|message| message.filenames).rfind(|file| file.extension() == Some(OsStr::new("wasm")))
}
