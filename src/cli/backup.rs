//! `portcullis backup` and `portcullis restore`: a vault in SQLite as one file. For operators, on the server's machine.

use std::path::PathBuf;

use clap::Args;

use super::{CommandResult, Place};
use crate::{
    audit::checkpoint_note,
    crypto::RootKey,
    server::{back_up as copy_vault, restore as put_back},
    store::Holdings,
};

/// Where to copy the vault.
#[derive(Args)]
pub struct BackupArgs {
    #[command(flatten)]
    place: Place,
    /// The file to make (mode 0600); it must not be there yet.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

/// What to put back.
#[derive(Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    place: Place,
    /// The backup.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Put the database aside that is in the data directory now. It is kept, under another name.
    #[arg(long)]
    replace: bool,
}

/// Makes a backup.
pub async fn back_up(args: BackupArgs) -> CommandResult {
    let holdings = copy_vault(&args.place.load()?, &args.to).await?;
    println!("backed up to {}", args.to.display());
    tell(&holdings);
    println!("The root key is NOT in it, and without the root key nothing in it opens: keep a copy of that elsewhere.");
    println!("Keep the note apart from the backup. Later, `portcullis audit verify --receipt NOTE` tells whether the");
    println!("audit log of the vault, or of this backup once it is restored, was cut off before that row.");
    Ok(0)
}

/// Puts a backup back.
pub async fn restore(args: RestoreArgs) -> CommandResult {
    let config = args.place.load()?;
    let root = RootKey::load_or_ask(&config.root_key_source()?)?;
    let restored = put_back(&config, root, &args.from, args.replace).await?;
    println!("restored {} to {}", args.from.display(), config.store.data_dir.display());
    tell(&restored.holdings);
    if let Some(aside) = &restored.aside {
        println!("The database that was there is {} now.", aside.display());
    }
    for problem in &restored.lost {
        println!("NEWER THAN THE BACKUP: {problem}");
    }
    println!("A server whose checkpoint file goes further than this audit log refuses to start, until somebody says");
    println!("`portcullis serve --accept-rollback` once; that is put on record.");
    Ok(0)
}

fn tell(holdings: &Holdings) {
    println!("secrets:   {}", holdings.secrets);
    println!("audit log: up to row {}", holdings.head.place.number);
    let note = holdings.checkpoint.as_deref().and_then(checkpoint_note);
    println!("note:      {}", note.as_deref().unwrap_or("none: the audit log has no checkpoint yet"));
}
