//! `portcullis policy`: the server's own evaluator, without a server.

mod build;
mod eval;
mod inspect;
mod new;
mod replay;
mod test;

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand, ValueEnum};

use super::{CommandResult, output::printable};
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
    /// Ask modules their test vectors: in order, shuffled and one by one. Exit code 0: all as expected.
    Test(test::TestArgs),
    /// Decide yesterday's accesses with other policies. Exit code 0: nothing changes, 3: some decisions would.
    Replay(replay::ReplayArgs),
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
        Command::Test(args) => test::run(&args),
        Command::Replay(args) => replay::run(&args),
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

/// Problems as the lines of one error.
fn in_lines<T: std::fmt::Display>(problems: &[T]) -> String {
    problems.iter().map(T::to_string).collect::<Vec<_>>().join("\n")
}

/// A text, much of it written by guests, as one line that steers no terminal.
fn one_line(text: &str) -> String {
    printable(&text.replace('\n', "\\n")).to_string()
}
