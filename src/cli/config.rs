//! `portcullis config`.

use clap::{Args, Subcommand};

use super::{CommandResult, ConfigFile};
use crate::config::DEFAULT;

/// What to show.
#[derive(Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the commented default configuration.
    Default,
    /// Check a configuration (and the environment) and say what it amounts to.
    Check(ConfigFile),
}

/// Runs the command.
pub fn run(args: &ConfigArgs) -> CommandResult {
    match &args.command {
        Command::Default => print!("{DEFAULT}"),
        Command::Check(file) => println!("{:#?}", file.load()?),
    }
    Ok(0)
}
