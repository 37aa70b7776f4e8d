//! `portcullis keys`: turns the keys of a running server.
//!
//! Builds requests and shows answers. A root key never goes over the wire: the server reads it where its configuration
//! says.

use std::{fmt::Write as _, time::Duration};

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    client::{Answer, Client, ConnectionArgs, Exit, Failure},
    key_files::{SealFileArgs, SplitArgs},
    output::columns,
};

/// How often the progress of a re-wrapping is asked for.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Turn the keys of a running server
///
/// The token needs the scope `admin`. It is read from `PORTCULLIS_TOKEN` or from the file of --token-file.
#[derive(clap::Args)]
pub struct KeysArgs {
    #[command(flatten)]
    connection: ConnectionArgs,
    /// Print the server's JSON instead of columns
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show which generations of keys there are, and what needs them
    Status,
    /// Make a new generation of a tenant's keys, for new values
    Rotate(WhoseArgs),
    /// Move the data keys of old values under the newest generation, while the server serves
    Rewrap(RewrapArgs),
    /// Wrap all keys under the root key that the server finds at the place of [`root_key.next`]
    RotateRoot,
    /// Write the root key to a new file that a passphrase opens; no server is asked
    SealFile(SealFileArgs),
    /// Print the root key as shares, of which some make it; no server is asked
    Split(SplitArgs),
}

#[derive(clap::Args)]
struct WhoseArgs {
    /// This tenant's keys; the token's tenant's where neither is given
    #[arg(long, conflicts_with = "all")]
    tenant: Option<String>,
    /// Every tenant's keys
    #[arg(long)]
    all: bool,
}

#[derive(clap::Args)]
struct RewrapArgs {
    #[command(flatten)]
    whose: WhoseArgs,
    /// Remove the generations that nothing needs any more
    #[arg(long)]
    drop_unused: bool,
}

#[derive(Deserialize)]
struct Keys {
    root_key: Option<RootKey>,
    tenants: Vec<TenantKeys>,
    rewrap: Option<Rewrap>,
}

#[derive(Deserialize)]
struct RootKey {
    fingerprint: String,
    source: String,
    current: bool,
}

#[derive(Deserialize)]
struct TenantKeys {
    tenant: String,
    newest: u32,
    #[serde(default)]
    generations: Vec<Generation>,
}

#[derive(Deserialize)]
struct Generation {
    generation: u32,
    records: u64,
}

#[derive(Deserialize)]
struct Rewrap {
    state: String,
    total: u64,
    moved: u64,
    unreadable: u64,
    dropped: u64,
}

#[derive(Deserialize)]
struct Rotated {
    tenants: Vec<TenantKeys>,
}

#[derive(Deserialize)]
struct RotatedRoot {
    fingerprint: String,
    next_step: String,
}

/// Runs one command: its result goes to standard output, a failure to standard error as one line.
pub async fn run(args: KeysArgs) -> u8 {
    match args.command {
        Command::SealFile(args) => return super::report(args.run()),
        Command::Split(args) => return super::report(args.run()),
        _ => (),
    }
    match execute(args).await {
        Ok(text) => {
            print!("{}", *text);
            Exit::Success as u8
        }
        Err(failure) => {
            eprintln!("portcullis: {failure}");
            failure.exit() as u8
        }
    }
}

async fn execute(args: KeysArgs) -> Result<Zeroizing<String>, Failure> {
    let client = Client::new(&args.connection)?;
    let answer = match &args.command {
        Command::Status => client.send(Method::GET, "/v1/keys", None).await?,
        Command::Rotate(whose) => client.send(Method::POST, "/v1/keys/rotate", Some(whose.body(None))).await?,
        Command::Rewrap(rewrap) => {
            let body = rewrap.whose.body(Some(rewrap.drop_unused));
            client.send(Method::POST, "/v1/keys/rewrap", Some(body)).await?;
            watch(&client).await?
        }
        _ => client.send(Method::POST, "/v1/keys/rotate-root", None).await?,
    };
    if args.json {
        return Ok(Zeroizing::new(format!("{}\n", *answer.body)));
    }
    match args.command {
        Command::Status => Ok(status(&answer.parse()?)),
        Command::Rotate(_) => Ok(rotated(&answer.parse()?)),
        Command::Rewrap(_) => rewrapped(&answer.parse()?),
        _ => {
            let RotatedRoot { fingerprint, next_step } = answer.parse()?;
            Ok(Zeroizing::new(format!("the root key is now {fingerprint}\nnext: {next_step}\n")))
        }
    }
}

impl WhoseArgs {
    fn body(&self, drop_unused: Option<bool>) -> Zeroizing<String> {
        let tenant = self.tenant.as_ref().map(|tenant| ("tenant", json!(tenant)));
        let all = self.all.then_some(("all", json!(true)));
        let drop_unused = drop_unused.map(|drop_unused| ("drop_unused", json!(drop_unused)));
        let body: serde_json::Map<_, _> =
            [tenant, all, drop_unused].into_iter().flatten().map(|(name, value)| (name.to_owned(), value)).collect();
        Zeroizing::new(serde_json::Value::Object(body).to_string())
    }
}

/// Shows how far the re-wrapping is, until it has ended; answers the last status.
async fn watch(client: &Client) -> Result<Answer, Failure> {
    loop {
        let answer = client.send(Method::GET, "/v1/keys", None).await?;
        let keys: Keys = answer.parse()?;
        match keys.rewrap {
            Some(rewrap) if rewrap.state == "running" => {
                eprintln!("{} of {} data keys moved", rewrap.moved, rewrap.total);
            }
            _ => return Ok(answer),
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn status(keys: &Keys) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    if let Some(RootKey { fingerprint, source, current }) = &keys.root_key {
        let stale = if *current { "" } else { " (replaced through another server: start this one anew)" };
        // Writing to a string cannot fail.
        writeln!(text, "root key {fingerprint} from {source}{stale}\n").ok();
    }
    let mut rows = vec![["tenant", "generation", "records", ""].map(str::to_owned).to_vec()];
    for of in &keys.tenants {
        for Generation { generation, records } in &of.generations {
            let mark = if *generation == of.newest { "newest" } else { "" };
            rows.push(vec![of.tenant.clone(), generation.to_string(), records.to_string(), mark.to_owned()]);
        }
    }
    columns(&mut text, &rows);
    if let Some(rewrap) = &keys.rewrap {
        writeln!(text, "\n{}", rewrap.sentence()).ok();
    }
    text
}

fn rotated(rotated: &Rotated) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    for TenantKeys { tenant, newest, .. } in &rotated.tenants {
        writeln!(text, "{tenant}: new values are sealed under generation {newest}").ok();
    }
    text
}

fn rewrapped(keys: &Keys) -> Result<Zeroizing<String>, Failure> {
    let again = "see the server's log, then run it again: it goes on from there";
    let Some(rewrap) = &keys.rewrap else {
        return Err(Failure::local(Exit::Other, "the server was started anew meanwhile", again));
    };
    if rewrap.state == "done" && rewrap.unreadable == 0 {
        return Ok(Zeroizing::new(rewrap.sentence() + "\n"));
    }
    Err(Failure::local(Exit::Other, rewrap.sentence(), again))
}

impl Rewrap {
    fn sentence(&self) -> String {
        let Self { state, total, moved, unreadable, dropped } = self;
        format!(
            "re-wrapping {state}: {moved} of {total} data keys moved, {unreadable} unreadable, {dropped} generations \
             removed"
        )
    }
}
