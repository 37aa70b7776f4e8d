//! The root key on its way to another form: a file that a passphrase opens, or shares. For operators, on the server's
//! machine.

use std::{io, path::PathBuf};

use clap::Args;
use zeroize::Zeroizing;

use super::{CommandResult, ConfigFile};
use crate::{
    crypto::{PassphraseSource, RootKey, ask, seal_file},
    server::SystemEntropy,
};

/// Which root key.
#[derive(Args)]
struct KeyArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// The data directory whose `root.key` is meant, where the configuration names no other key.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl KeyArgs {
    fn load(&self) -> Result<RootKey, Box<dyn std::error::Error>> {
        let mut config = self.config.load()?;
        if let Some(directory) = &self.data_dir {
            config.store.data_dir.clone_from(directory);
        }
        Ok(RootKey::load_or_ask(&config.root_key_source()?)?)
    }
}

/// Write the root key to a file that a passphrase opens.
#[derive(Args)]
pub struct SealFileArgs {
    #[command(flatten)]
    key: KeyArgs,
    /// The file to make.
    file: PathBuf,
    /// A fresh key instead of the present one, such as for `[root_key.next]`.
    #[arg(long)]
    fresh: bool,
    /// The environment variable that holds the passphrase; else it is asked for.
    #[arg(long, value_name = "NAME", conflicts_with = "passphrase_file")]
    passphrase_environment: Option<String>,
    /// The file (mode 0600) that holds the passphrase.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl SealFileArgs {
    /// Runs the command.
    pub fn run(self) -> CommandResult {
        let root = if self.fresh { RootKey::fresh(&SystemEntropy) } else { self.key.load()? };
        let passphrase = match (self.passphrase_environment, self.passphrase_file) {
            (Some(name), _) => PassphraseSource::Environment(name).passphrase()?,
            (None, Some(file)) => PassphraseSource::File(file).passphrase()?,
            (None, None) => ask_twice()?,
        };
        seal_file(&self.file, &root, &passphrase, &SystemEntropy)?;
        eprintln!("made {}: without the passphrase nothing opens it", self.file.display());
        Ok(0)
    }
}

fn ask_twice() -> io::Result<Zeroizing<Vec<u8>>> {
    let passphrase = ask("New passphrase: ")?;
    if *ask("Once more: ")? == *passphrase { Ok(passphrase) } else { Err(io::Error::other("the two are not the same")) }
}

/// Print the root key as shares.
#[derive(Args)]
pub struct SplitArgs {
    #[command(flatten)]
    key: KeyArgs,
    /// How many shares to make.
    #[arg(long, value_name = "N")]
    shares: u8,
    /// How many of them make the key.
    #[arg(long, value_name = "N")]
    threshold: u8,
}

impl SplitArgs {
    /// Runs the command.
    pub fn run(self) -> CommandResult {
        let made = self.key.load()?.split(self.threshold, self.shares, &SystemEntropy);
        let shares = made.map_err(|_| "at least 2 shares make the key, and no more than are made")?;
        eprintln!(
            "any {} of these {} shares make the root key: give each to another keeper",
            self.threshold, self.shares
        );
        for share in &shares {
            println!("{}", *share.text());
        }
        Ok(0)
    }
}
