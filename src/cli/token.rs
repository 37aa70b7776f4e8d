//! `portcullis token`: tokens signed with a key that derives from the root key. For operators, on the server's machine.

use clap::{Args, Subcommand};

use super::{CommandResult, ConfigFile};
use crate::{
    auth::TokenRequest,
    crypto::RootKey,
    domain::{Clock, Entropy, Scope, Span, TenantId, hex},
    server::{SystemClock, SystemEntropy, token_issuer},
};

/// What to do with tokens.
#[derive(Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sign a token and print it.
    Issue(IssueArgs),
}

#[derive(Args)]
struct IssueArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// The data directory whose `root.key` signs, where the configuration names no other key.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<std::path::PathBuf>,
    /// Whom the token is for: `user:NAME` or `sa:NAME`.
    #[arg(long)]
    subject: String,
    /// What it allows, such as `secrets:read`; may be given again.
    #[arg(long = "scope", required = true)]
    scopes: Vec<String>,
    /// A group of the bearer; may be given again.
    #[arg(long = "group")]
    groups: Vec<String>,
    /// The tenant.
    #[arg(long, default_value = "default")]
    tenant: String,
    /// How long it lives, such as `15m`, `12h`, `30d`.
    #[arg(long, default_value = "12h")]
    ttl: String,
    /// Say that a second factor was verified just now.
    #[arg(long)]
    mfa: bool,
}

/// Runs the command.
pub fn run(args: TokenArgs) -> CommandResult {
    let Command::Issue(args) = args.command;
    let mut config = args.config.load()?;
    if let Some(directory) = args.data_dir {
        config.store.data_dir = directory;
    }
    let root = RootKey::load(&config.root_key_source()?)?;
    let issuer = token_issuer(&config, &root)?;
    let known = |word: &String| Scope::parse(word).ok_or_else(|| format!("`{word}` is no scope: {}", scope_words()));
    let request = TokenRequest {
        subject: args.subject,
        tenant: TenantId::parse(&args.tenant).ok_or("a tenant is [a-z0-9][a-z0-9_-]*, 63 bytes at most")?,
        scopes: args.scopes.iter().map(known).collect::<Result<_, _>>()?,
        groups: args.groups,
        mfa: args.mfa,
        lifetime: args.ttl.parse::<Span>()?.0,
    };
    println!("{}", issuer.issue(&request, SystemClock.now(), &token_id(&SystemEntropy))?);
    Ok(0)
}

/// A fresh token id.
pub fn token_id(entropy: &dyn Entropy) -> String {
    let mut random = [0; 16];
    entropy.fill(&mut random);
    hex(&random)
}

fn scope_words() -> String {
    Scope::ALL.map(|(_, word)| word).join(", ")
}
