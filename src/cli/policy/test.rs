//! `portcullis policy test`: a module's vectors.

use std::path::PathBuf;

use clap::Args;

use super::{in_lines, nothing_in_force, one_line};
use crate::{
    cli::CommandResult,
    policy::{Trial, try_directory, try_module},
};

/// What a file of vectors looks like.
const EXAMPLE: [&str; 6] = [
    "  [[vector]]",
    "  name = \"a stranger reads nothing\"",
    "  path = \"app/db\"",
    "  principal = { id = \"user:stranger\" }",
    "  [vector.expect]",
    "  effect = \"abstain\"",
];

#[derive(Args)]
pub struct TestArgs {
    /// A policy directory, or one module.
    #[arg(default_value = "policies")]
    target: PathBuf,
    /// The vectors of the one module; `NAME.vectors.toml` beside `NAME.wasm` where absent.
    #[arg(long, value_name = "FILE")]
    vectors: Option<PathBuf>,
    /// The settings of the one module; none where absent.
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &TestArgs) -> CommandResult {
    let trials = if !args.target.is_dir() {
        try_module(&args.target, args.vectors.as_deref(), args.settings.as_deref()).map_err(|e| in_lines(&e))?
    } else if args.vectors.is_none() && args.settings.is_none() {
        try_directory(&args.target).map_err(|problems| in_lines(&problems))?
    } else {
        return Err("--vectors and --settings go with one module: the manifest of a directory names its own".into());
    };
    if trials.is_empty() {
        return Err(nothing_in_force(&args.target).into());
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&trials)?);
    } else {
        trials.iter().flat_map(in_words).for_each(|line| println!("{}", one_line(&line)));
    }
    let tested = trials.iter().any(|trial| trial.vectors.is_some());
    let as_expected = trials.iter().all(|trial| trial.failures.is_empty());
    Ok(u8::from(!(tested && as_expected)))
}

fn in_words(trial: &Trial) -> Vec<String> {
    let Some(vectors) = trial.vectors else {
        let what = "with one [[vector]] for each answer that must stay as it is, such as";
        let told = format!("{}: no vectors: write {} {what}", trial.module, trial.file);
        return [told].into_iter().chain(EXAMPLE.map(str::to_owned)).collect();
    };
    let plural = if vectors == 1 { "" } else { "s" };
    let outcome = if trial.failures.is_empty() { "all as expected" } else { "NOT as expected" };
    let mut lines: Vec<_> = trial.failures.iter().map(|failure| format!("{}: {failure}", trial.module)).collect();
    let ways = "in order, shuffled and one by one";
    lines.push(format!("{}: {vectors} vector{plural}, {ways}: {outcome}", trial.module));
    lines
}
