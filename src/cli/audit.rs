//! `portcullis audit`: whether the log is what was recorded. For operators, on the server's machine or where a copy of
//! the database and the root key are; the server may be running.

use std::{
    fs,
    io::{Read, Write},
    path::PathBuf,
    sync::Arc,
};

use clap::{Args, Subcommand};

use super::{CommandResult, Place};
use crate::{
    audit::{CheckpointFile, Evidence, Report},
    config::Config,
    crypto::{Keyring, RootKey},
    domain::hex,
    server::{SystemEntropy, kept_audit_keys, open_to_read, verify_log},
    store::SecretStore,
};

/// What to do with the audit log.
#[derive(Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check that nothing in the log was altered, and that nothing is missing.
    Verify(VerifyArgs),
    /// Print the key that verifies receipts and checkpoints (Ed25519, hexadecimal).
    Key(Place),
}

#[derive(Args)]
struct VerifyArgs {
    #[command(flatten)]
    place: Place,
    /// A receipt that a client kept (`X-Audit-Receipt`); may be given again.
    #[arg(long = "receipt", value_name = "TEXT")]
    receipts: Vec<String>,
    /// A file of receipts, one a line; `-` reads them from standard input.
    #[arg(long, value_name = "FILE")]
    receipts_file: Option<PathBuf>,
    /// A file of checkpoints beside the configured one; may be given again.
    #[arg(long = "checkpoints", value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(args: AuditArgs) -> CommandResult {
    match args.command {
        Command::Verify(args) => verify(args).await,
        Command::Key(place) => {
            let config = place.load()?;
            let (store, keyring) = open(&config).await?;
            let keys = kept_audit_keys(&*store, &keyring).await;
            store.close().await;
            println!("{}", hex(keys?.verifying_key().as_bytes()));
            Ok(0)
        }
    }
}

async fn open(config: &Config) -> Result<(Arc<dyn SecretStore>, Keyring), Box<dyn std::error::Error>> {
    let root = RootKey::load(&config.root_key_source()?)?;
    Ok((open_to_read(config).await?, Keyring::new(root, Arc::new(SystemEntropy))))
}

async fn verify(args: VerifyArgs) -> CommandResult {
    let config = args.place.load()?;
    let (store, keyring) = open(&config).await?;
    let report = report(&args, &config, &*store, &keyring).await;
    store.close().await;
    let report = report?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        tell(&report)?;
    }
    Ok(u8::from(!(report.integrity && report.completeness)))
}

async fn report(
    args: &VerifyArgs,
    config: &Config,
    store: &dyn SecretStore,
    keyring: &Keyring,
) -> Result<Report, Box<dyn std::error::Error>> {
    let keys = Arc::new(kept_audit_keys(store, keyring).await?);
    Ok(verify_log(store, &keys, &evidence(args, config)?).await?)
}

fn evidence(args: &VerifyArgs, config: &Config) -> std::io::Result<Vec<Evidence>> {
    let mut shown = CheckpointFile::new(config.checkpoint_file()).read()?;
    for path in &args.checkpoints {
        let file = CheckpointFile::new(fs::canonicalize(path)?);
        shown.extend(file.read()?);
    }
    let mut receipts = args.receipts.clone();
    if let Some(path) = &args.receipts_file {
        let mut text = String::new();
        if path.as_os_str() == "-" {
            std::io::stdin().read_to_string(&mut text)?;
        } else {
            text = fs::read_to_string(path)?;
        }
        receipts.extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
    }
    let named = |(number, note)| Evidence { note, origin: format!("receipt {}", number + 1) };
    shown.extend(receipts.into_iter().enumerate().map(named));
    Ok(shown)
}

fn tell(report: &Report) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for chain in &report.chains {
        let proven = match chain.proven_to {
            Some(number) if number == chain.last => "all of them vouched for".to_owned(),
            Some(number) => format!("vouched for up to row {number}"),
            None => "nobody vouches for its end".to_owned(),
        };
        let (number, first, last) = (chain.chain, chain.first, chain.last);
        writeln!(out, "chain {number}: rows {first} to {last}, {} events; {proven}", chain.events)?;
    }
    for problem in &report.problems {
        writeln!(out, "PROBLEM: {problem}")?;
    }
    let word = |holds| if holds { "holds" } else { "BROKEN" };
    writeln!(out, "integrity:    {}", word(report.integrity))?;
    writeln!(out, "completeness: {}", word(report.completeness))
}
