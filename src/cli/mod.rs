//! The command line.

mod audit;
mod backup;
mod client;
mod config;
mod key_files;
mod keys;
mod output;
mod policy;
mod samples;
mod seal;
mod secret;
mod serve;
mod token;

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigError};

/// A secrets vault whose access decisions are made, path by path, by sandboxed WebAssembly policy modules.
#[derive(Parser)]
#[command(name = "portcullis", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server.
    Serve(serve::ServeArgs),
    /// Show the configuration.
    Config(config::ConfigArgs),
    /// Issue tokens that this vault accepts.
    Token(token::TokenArgs),
    /// Read and write secrets of a running server.
    Secret(secret::SecretArgs),
    /// Check the audit log.
    Audit(audit::AuditArgs),
    /// Copy the vault to a file, whether or not its server is running.
    Backup(backup::BackupArgs),
    /// Put a backup in the place of a vault that no server uses.
    Restore(backup::RestoreArgs),
    /// Turn the keys of a running server, and make key files.
    Keys(keys::KeysArgs),
    /// Make a running server forget all keys.
    Seal(seal::SealArgs),
    /// Open a sealed server, on its own machine.
    Unseal(seal::DoorArgs),
    /// Tell whether a server is sealed, on its own machine.
    SealStatus(seal::DoorArgs),
    /// Try, check and build policies.
    Policy(policy::PolicyArgs),
}

/// Where the configuration comes from.
#[derive(Args, Clone)]
struct ConfigFile {
    /// The configuration file; `portcullis config default` prints one.
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    fn load(&self) -> Result<Config, ConfigError> {
        // Variables that are no text are none of ours.
        let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        Config::load(self.config.as_deref(), std::env::vars_os().filter_map(text))
    }
}

/// Which vault, for who works on its files.
#[derive(Args)]
struct Place {
    #[command(flatten)]
    config: ConfigFile,
    /// The data directory, where the configuration names no other.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Place {
    fn load(&self) -> Result<Config, ConfigError> {
        let mut config = self.config.load()?;
        config.store.data_dir = self.data_dir.clone().unwrap_or(config.store.data_dir);
        Ok(config)
    }
}

impl Cli {
    /// Does what was asked. The number is the process's exit code.
    pub async fn run(self) -> u8 {
        match self.command {
            Command::Serve(args) => report(serve::run(args).await),
            Command::Config(args) => report(config::run(&args)),
            Command::Token(args) => report(token::run(args)),
            Command::Secret(args) => secret::run(args).await,
            Command::Audit(args) => report(audit::run(args).await),
            Command::Backup(args) => report(backup::back_up(args).await),
            Command::Restore(args) => report(backup::restore(args).await),
            Command::Keys(args) => keys::run(args).await,
            Command::Seal(args) => seal::seal(args).await,
            Command::Unseal(args) => report(seal::unseal(args).await),
            Command::SealStatus(args) => report(seal::status(args).await),
            Command::Policy(args) => report(policy::run(args)),
        }
    }
}

/// What a command ends with: an exit code, or an error in words.
type CommandResult = Result<u8, Box<dyn std::error::Error>>;

fn report(result: CommandResult) -> u8 {
    result.unwrap_or_else(|error| {
        eprintln!("portcullis: {error}");
        1
    })
}
