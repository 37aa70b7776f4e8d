//! C: the bindings are written here, clang compiles and links, and the module becomes a component here.

use std::{env, ffi::OsString, fs, io::ErrorKind, path::Path, process::Command};

use wit_bindgen_c::Opts;
use wit_bindgen_core::{Files, wit_parser::Resolve};

use super::{Folder, Scratch, finish};
use crate::policy::componentize;

/// Where the bindings are written: the header there is what a policy includes.
const BINDINGS: &str = "bindings";
/// The C library's own stack is as small as this; every instance of a policy has it in its memory.
const STACK: &str = "-Wl,-z,stack-size=65536";
const ADVICE: &str = "Install clang, its WebAssembly linker and a C library for it; on Debian: apt-get install \
                      clang-19 lld-19 wasi-libc libclang-rt-19-dev-wasm32. Another clang is named by the variable CC";

const HEADERS: &str = "If it misses headers, libraries or a linker:";
const NO_WASI: &str = "a policy has no files, no console and no clock, and this one uses a function of the C library \
                       that wants one of them; <stdio.h> as a whole does";

/// Builds the component.
pub fn build(folder: &Folder) -> Result<Vec<u8>, String> {
    let compiler = compiler()?;
    let bindings = folder.path.join(BINDINGS);
    write_bindings(&folder.path.join("wit/policy.wit"), &bindings)?;
    let module = Scratch::new(folder);
    let mut command = folder.command(compiler);
    command.args(["--target=wasm32-wasi", "-mexec-model=reactor", "-Os", "-Wall", STACK, "-Wl,--strip-debug"]);
    command.arg("-I").arg(&bindings).args(folder.sources("c"));
    command.args(["policy.c", "policy_component_type.o"].map(|file| bindings.join(file)));
    command.arg("-o").arg(&module.path);
    finish(&mut command, ADVICE).map_err(|error| format!("{error}. {HEADERS} {ADVICE}"))?;
    componentize(&module.read()?)
        .map_err(|error| if error.contains("wasi") { format!("{NO_WASI}: {error}") } else { error })
}

/// `CC`, or the first clang that there is.
fn compiler() -> Result<OsString, String> {
    if let Some(named) = env::var_os("CC") {
        return Ok(named);
    }
    let versions = (14..=19).rev().map(|version| format!("clang-{version}"));
    let found = std::iter::once("clang".to_owned()).chain(versions).find(|program| is_there(program));
    found.map(OsString::from).ok_or_else(|| format!("clang is not installed. {ADVICE}"))
}

fn is_there(program: &str) -> bool {
    let asked = Command::new(program).arg("--version").output();
    !asked.is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

fn write_bindings(contract: &Path, folder: &Path) -> Result<(), String> {
    let files = generate(contract).map_err(|error| format!("{}: {error}", contract.display()))?;
    let written = fs::create_dir_all(folder)
        .and_then(|()| files.iter().try_for_each(|(name, bytes)| fs::write(folder.join(name), bytes)));
    written.map_err(|error| format!("{}: {error}", folder.display()))
}

fn generate(contract: &Path) -> Result<Files, String> {
    let mut resolve = Resolve::default();
    let package = resolve.push_file(contract).map_err(|error| format!("{error:#}"))?;
    let world = resolve.select_world(&[package], Some("policy")).map_err(|error| format!("{error:#}"))?;
    let mut files = Files::default();
    let generated = Opts::default().build().generate(&mut resolve, world, &mut files);
    generated.map(|()| files).map_err(|error| format!("{error:#}"))
}
