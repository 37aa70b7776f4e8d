//! JavaScript: the folder's own componentize-js puts the source and an engine into one component.

use std::fs;

use super::{Folder, Scratch, finish};

const SCRIPT: &str = include_str!("componentize.mjs");
const TOOL: &str = "node_modules/@bytecodealliance/componentize-js";
const ADVICE: &str = "Install Node.js 18 or newer with npm: https://nodejs.org, or on Debian: apt-get install nodejs \
                      npm";

/// Builds the component.
pub fn build(folder: &Folder) -> Result<Vec<u8>, String> {
    let source = source(folder)?;
    if !folder.has(TOOL) {
        let mut install = folder.command("npm");
        install.args(["install", "--no-audit", "--no-fund"]);
        // Not `npm ci`: a lock file may lack the optional packages of other platforms, and it gives up on those.
        install.args(folder.has("package-lock.json").then_some("--no-save"));
        finish(&mut install, ADVICE)?;
    }
    if !folder.has(TOOL) {
        let wanted = "npm install --save-dev --save-exact @bytecodealliance/componentize-js";
        return Err(format!("package.json does not ask for componentize-js: run `{wanted}`"));
    }
    let component = Scratch::new(folder);
    let mut command = folder.command("node");
    command.args(["--input-type=module", "--eval", SCRIPT, &source, "wit"]).arg(&component.path);
    finish(&mut command, ADVICE)?;
    component.read()
}

/// The file that package.json names as `main`.
fn source(folder: &Folder) -> Result<String, String> {
    let text =
        fs::read_to_string(folder.path.join("package.json")).map_err(|error| format!("package.json: {error}"))?;
    let package: serde_json::Value = serde_json::from_str(&text).map_err(|error| format!("package.json: {error}"))?;
    let main = package.get("main").and_then(serde_json::Value::as_str).unwrap_or("index.js");
    if folder.has(main) {
        Ok(main.to_owned())
    } else {
        Err(format!("{main}, the main file of package.json, is not there"))
    }
}
