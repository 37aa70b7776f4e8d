//! `portcullis policy`: the server's own evaluator, without a server.

mod bench;
mod build;
mod eval;
mod inspect;
mod new;
mod replay;
mod test;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};

use super::{CommandResult, output::printable};
use crate::{
    domain::Clock,
    policy::{Bounds, Compiler, Policies, Sources, THIS_PROGRAM, componentize, work},
    server::SystemClock,
};

/// What the compilation of a module may take, as by the default configuration.
const CHECK_TIME: Duration = Duration::from_mins(2);
const CHECK_MEMORY: u64 = 4096 * 1024 * 1024;
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
    /// Time decisions: a fresh instance, its first call, further calls, batches.
    Bench(bench::BenchArgs),
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
        Command::Bench(args) => bench::run(&args),
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
    let bounds = Bounds { program: THIS_PROGRAM.into(), time: CHECK_TIME, memory: CHECK_MEMORY };
    let sources = Sources { directory: directory.to_owned(), compiler: Compiler::Process(bounds), memory: None };
    let set = Policies::open(sources, SystemClock.now())?.current();
    if set.modules.is_empty() {
        return Err(nothing_in_force(directory).into());
    }
    for module in &set.modules {
        let inputs = module.template.imports.join(", ");
        println!("{}: {} sees {inputs}", module.reference.name, module.reference.digest);
    }
    println!("{} in force, {}: fine", set.modules.len(), set.digest);
    Ok(0)
}

/// What is said of a directory that would deny everything.
fn nothing_in_force(directory: &Path) -> String {
    format!("{} has no policies.toml with a module in force: everything would be denied", directory.display())
}

/// Problems as the lines of one error.
fn in_lines<T: std::fmt::Display>(problems: &[T]) -> String {
    problems.iter().map(T::to_string).collect::<Vec<_>>().join("\n")
}

/// A text, much of it written by guests, as one line that steers no terminal.
fn one_line(text: &str) -> String {
    printable(&text.replace('\n', "\\n")).to_string()
}
