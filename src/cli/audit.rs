//! `portcullis audit`: whether the log is what was recorded. For operators, on the server's machine or where a copy of
//! the database and the root key are; the server may be running.

use std::{
    fs,
    io::{Read, Write},
    path::PathBuf,
    sync::Arc,
};

use clap::{Args, Subcommand};

use super::{CommandResult, ConfigFile};
use crate::{
    audit::{CheckpointFile, Evidence, Report, Verifier},
    config::Config,
    crypto::{Keyring, RootKey},
    domain::{AuditPlace, hex},
    server::{SystemEntropy, kept_audit_keys, open_to_read},
    store::{SecretStore, StoreResult},
};

/// How many rows are read at a time.
const CHUNK: u32 = 4_096;

/// How often chains that others know more of are read on.
const CATCH_UP: usize = 10;

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
struct Place {
    #[command(flatten)]
    config: ConfigFile,
    /// The data directory, where the configuration names no other.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
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
            let keys = kept_audit_keys(&*store, &keyring).await?;
            println!("{}", hex(keys.verifying_key().as_bytes()));
            Ok(0)
        }
    }
}

impl Place {
    fn load(&self) -> Result<Config, Box<dyn std::error::Error>> {
        let mut config = self.config.load()?;
        config.store.data_dir = self.data_dir.clone().unwrap_or(config.store.data_dir);
        Ok(config)
    }
}

async fn open(config: &Config) -> Result<(Arc<dyn SecretStore>, Keyring), Box<dyn std::error::Error>> {
    let root = RootKey::load(&config.root_key_source()?)?;
    Ok((open_to_read(config).await?, Keyring::new(root, Arc::new(SystemEntropy))))
}

async fn verify(args: VerifyArgs) -> CommandResult {
    let config = args.place.load()?;
    let (store, keyring) = open(&config).await?;
    let keys = Arc::new(kept_audit_keys(&*store, &keyring).await?);
    let evidence = evidence(&args, &config)?;
    let report = loop {
        let tombstones = store.tombstones().await?;
        let report = read_all(&*store, Verifier::new(Arc::clone(&keys), &tombstones, &evidence)).await?;
        // Old rows that were removed while the log was read are no gap: it is read again.
        if store.tombstones().await? == tombstones {
            break report;
        }
    };
    store.close().await;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        tell(&report)?;
    }
    Ok(u8::from(!(report.integrity && report.completeness)))
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

async fn read_all(store: &dyn SecretStore, mut verifier: Verifier) -> StoreResult<Report> {
    read_on(store, &mut verifier, AuditPlace { chain: 0, number: 0 }, None).await?;
    // Where several servers are at work, a chain that was read last knows more of one that was read first.
    for _ in 0..CATCH_UP {
        for place in verifier.behind() {
            read_on(store, &mut verifier, place, Some(place.chain)).await?;
        }
    }
    verifier.misplaced(store.misplaced_audit_rows().await?);
    Ok(verifier.finish())
}

/// Reads from behind a place to the end; of one chain, or of all.
async fn read_on(
    store: &dyn SecretStore,
    verifier: &mut Verifier,
    mut after: AuditPlace,
    chain: Option<u32>,
) -> StoreResult<()> {
    loop {
        let rows = store.audit_chain(after, CHUNK).await?;
        if rows.is_empty() {
            return Ok(());
        }
        for row in rows {
            let place = row.as_ref().map_or_else(|damaged| damaged.place, |row| row.place);
            if chain.is_some_and(|chain| chain != place.chain) {
                return Ok(());
            }
            match row {
                Ok(row) => verifier.row(&row),
                Err(damaged) => verifier.damaged_row(damaged.place),
            }
            after = place;
        }
    }
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
