//! `portcullis policy`: the server's own evaluator, without a server.

mod build;
mod eval;
mod inspect;
mod new;

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand, ValueEnum};

use super::CommandResult;
use crate::{
    domain::Clock,
    policy::{Policies, componentize, work},
    server::SystemClock,
};

/// The exit code of a denial.
const DENIED: u8 = 3;

/// What to do with policies.
#[derive(Args)]
pub struct PolicyArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Decide about one access, and say why. Exit code 0: allowed, 3: denied.
    Eval(Box<eval::EvalArgs>),
    /// Check all that a server would check when it loads a policy directory.
    Check {
        /// The policy directory.
        #[arg(default_value = "policies")]
        directory: PathBuf,
    },
    /// Start a policy of your own: a folder that builds and has tests.
    New(new::NewArgs),
    /// Build the component of a policy's folder.
    Build(build::BuildArgs),
    /// Show what a module is, what it can see, and whether a server would take it. Exit code 1: it would not.
    Inspect(inspect::InspectArgs),
    /// Compile one module for a server that asks for it; not for people.
    #[command(hide = true)]
    CompileWorker,
    /// Make a component of a core module, as a Rust or C guest's build leaves it.
    Componentize {
        /// The core module.
        module: PathBuf,
        /// Where to write the component.
        #[arg(long, short)]
        output: PathBuf,
    },
}

/// What a policy can be written in here. Anything else that makes components does as well, with its own tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Language {
    Rust,
    Js,
    Python,
    C,
}

/// Runs the command.
pub fn run(args: PolicyArgs) -> CommandResult {
    match args.command {
        Command::Eval(args) => eval::run(&args),
        Command::Check { directory } => check(&directory),
        Command::New(args) => new::run(&args),
        Command::Build(args) => build::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::CompileWorker => {
            work()?;
            Ok(0)
        }
        Command::Componentize { module, output } => {
            fs::write(output, componentize(&fs::read(module)?)?)?;
            Ok(0)
        }
    }
}

fn check(directory: &Path) -> CommandResult {
    let policies = Policies::load(directory.to_owned(), SystemClock.now())?;
    for module in &policies.current().modules {
        let inputs = module.template.imports.join(", ");
        println!("{}: {} sees {inputs}", module.reference.name, module.reference.digest);
    }
    Ok(0)
}
