//! `portcullis secret`: secrets of a running server, for people and scripts.
//!
//! Builds requests and shows answers. Never holds a rule of the vault's own, the grammar of paths aside.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, IsTerminal as _, Read as _, Write as _},
    path::{Path, PathBuf},
};

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::{
    client::{Answer, Client, ConnectionArgs, ErrorBody, Exit, Failure},
    output::{Metadata, Released, columns, plain, printable, show},
};
use crate::domain::SecretPath;

/// Read and write secrets of a running server
///
/// The token is read from `PORTCULLIS_TOKEN` or from the file of --token-file, never from the command line.
///
/// Ends with 0 done, 1 other failure, 2 not authenticated, 3 denied, 4 absent, 5 invalid. A batch in which a path
/// failed ends with that path's number, the first one's.
#[derive(clap::Args)]
pub struct SecretArgs {
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
    /// Show one secret
    Get(GetArgs),
    /// Write a new version of a secret
    Put(Box<PutArgs>),
    /// List secrets, of one prefix or all
    List(ListArgs),
    /// Delete a secret; it can be restored for a while
    Delete(DeleteArgs),
    /// List the versions of a secret
    Versions(PathArgs),
    /// Show several secrets at one moment
    Batch(BatchArgs),
}

#[derive(clap::Args)]
struct PathArgs {
    /// The secret's path, such as integrations/salesforce/oauth
    path: String,
}

#[derive(clap::Args)]
struct GetArgs {
    /// The secret's path, such as integrations/salesforce/oauth
    path: String,
    /// This version instead of the latest
    #[arg(id = "secret_version", long = "version", value_name = "N")]
    version: Option<u64>,
    /// Print the value of this field alone, as it is
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
}

#[derive(clap::Args)]
struct PutArgs {
    /// The secret's path, such as integrations/salesforce/oauth
    path: String,
    /// Fields with text values. Other users of this machine can see a command line: better use --file
    #[arg(value_name = "KEY=VALUE", conflicts_with_all = ["data", "file"])]
    #[arg(required_unless_present_any = ["data", "file"])]
    pairs: Vec<String>,
    /// The fields as a JSON object. Visible to other users of this machine, like KEY=VALUE
    #[arg(long, value_name = "JSON", conflicts_with = "file")]
    data: Option<String>,
    /// A file with the fields as a JSON object; - for standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What the secret is: `kv`, `json`, `certificate`, `ssh_key` or `api_key`
    #[arg(long = "type", value_name = "TYPE")]
    secret_type: Option<String>,
    #[command(flatten)]
    metadata: MetadataArgs,
    #[command(flatten)]
    options: OptionArgs,
}

/// Not secret: people find the secret by it.
#[derive(clap::Args)]
struct MetadataArgs {
    /// What the secret is for
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// A tag; may be given more than once
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Who looks after the secret
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// A custom field; may be given more than once
    #[arg(long = "custom", value_name = "KEY=VALUE")]
    custom: Vec<String>,
}

#[derive(Default, PartialEq, clap::Args, Serialize)]
struct OptionArgs {
    /// When the secret expires, from now: 15m, 48h, 90d
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in: Option<String>,
    /// Write only if this is the latest version; 0 if there must be none yet
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_version: Option<u64>,
    /// How many versions to keep
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_versions: Option<u64>,
}

#[derive(clap::Args)]
struct ListArgs {
    /// Only paths that begin with this
    #[arg(default_value = "")]
    prefix: String,
    /// At most so many; without it all of them
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

#[derive(clap::Args)]
struct DeleteArgs {
    /// The secret's path, such as integrations/salesforce/oauth
    path: String,
    /// Destroy all versions and their keys, for good
    #[arg(long)]
    permanent: bool,
}

#[derive(clap::Args)]
struct BatchArgs {
    /// The secrets' paths
    #[arg(required = true)]
    paths: Vec<String>,
    /// All or nothing: the first path that fails ends the batch
    #[arg(long)]
    fail_fast: bool,
    /// Every path at this version
    #[arg(id = "secret_version", long = "version", value_name = "N")]
    version: Option<u64>,
    /// Show descriptions and times as well
    #[arg(long)]
    include_metadata: bool,
}

/// Runs one command: its result goes to standard output, a failure to standard error as one line. Returns the status
/// to end with, see [`SecretArgs`].
pub async fn run(args: SecretArgs) -> u8 {
    let report = execute(args).await.unwrap_or_else(|failure| Report { failures: vec![failure], ..Report::default() });
    match report.print() {
        Ok(()) => report.exit() as u8,
        // Whoever reads has seen enough, as in `… | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => report.exit() as u8,
        Err(_nowhere_to_say_it) => Exit::Other as u8,
    }
}

async fn execute(args: SecretArgs) -> Result<Report, Failure> {
    let client = Client::new(&args.connection)?;
    match args.command {
        Command::Get(get) => read(&client, &get, args.json).await,
        Command::Put(put) => write(&client, &put, args.json).await,
        Command::List(list) => self::list(&client, &list, args.json).await,
        Command::Delete(delete) => self::delete(&client, &delete, args.json).await,
        Command::Versions(of) => versions(&client, &of, args.json).await,
        Command::Batch(batch) => read_batch(&client, &batch, args.json).await,
    }
}

/// What a command has to say. May hold values of secrets.
#[derive(Default)]
struct Report {
    text: Zeroizing<String>,
    failures: Vec<Failure>,
}

impl Report {
    fn of(text: impl Into<Zeroizing<String>>) -> Self {
        Self { text: text.into(), failures: Vec::new() }
    }

    fn json(answer: Answer) -> Self {
        let mut text = answer.body;
        text.push('\n');
        Self::of(text)
    }

    fn columns<C: AsRef<str>>(rows: &[Vec<C>]) -> Self {
        let mut text = Zeroizing::default();
        columns(&mut text, rows);
        Self::of(text)
    }

    fn exit(&self) -> Exit {
        self.failures.first().map_or(Exit::Success, Failure::exit)
    }

    fn print(&self) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        let printed = stdout.write_all(self.text.as_bytes()).and_then(|()| stdout.flush());
        for failure in &self.failures {
            writeln!(io::stderr(), "portcullis: {failure}")?;
        }
        printed
    }
}

async fn read(client: &Client, args: &GetArgs, json: bool) -> Result<Report, Failure> {
    let path = checked(&args.path)?;
    let query = args.version.map(|version| format!("?version={version}")).unwrap_or_default();
    let answer = client.send(Method::GET, &format!("/v1/secrets/{path}{query}"), None).await?;
    if let Some(name) = &args.field {
        return field(&path, &answer.parse()?, name, json);
    }
    if json {
        return Ok(Report::json(answer));
    }
    let mut text = Zeroizing::default();
    show(&mut text, path.as_str(), &answer.parse()?);
    Ok(Report::of(text))
}

fn field(path: &SecretPath, secret: &Released<'_>, name: &str, json: bool) -> Result<Report, Failure> {
    let Some(value) = secret.data.get(name) else {
        let message = format!("{path} has no field {name:?} in version {}", secret.version);
        return Err(Failure::local(
            Exit::Absent,
            message,
            format!("see its fields with: portcullis secret get {path}"),
        ));
    };
    if json {
        return Ok(Report::of(format!("{}\n", value.get())));
    }
    // A file or a variable gets the value to the byte; a terminal gets nothing that steers it.
    let value = plain(value);
    Ok(Report::of(if io::stdout().is_terminal() { printable(&format!("{}\n", *value)) } else { value }))
}

#[derive(Serialize)]
struct Write<'a> {
    data: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Metadata>,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<&'a OptionArgs>,
}

#[derive(Deserialize)]
struct Written {
    version: u64,
    #[serde(default)]
    expires_at: Option<String>,
}

async fn write(client: &Client, args: &PutArgs, json: bool) -> Result<Report, Failure> {
    let path = checked(&args.path)?;
    let data = data(args)?;
    let body = Write {
        data: object(&data)?,
        secret_type: args.secret_type.as_deref(),
        metadata: args.metadata.given()?,
        options: (args.options != OptionArgs::default()).then_some(&args.options),
    };
    let body = serde_json::to_string(&body).map(Zeroizing::new).map_err(|_| not_an_object())?;
    let answer = client.send(Method::PUT, &format!("/v1/secrets/{path}"), Some(body)).await?;
    if json {
        return Ok(Report::json(answer));
    }
    let written: Written = answer.parse()?;
    let expires = written.expires_at.map(|at| format!(", expires {at}")).unwrap_or_default();
    Ok(Report::columns(&[vec![format!("{path} version {} written{expires}", written.version)]]))
}

fn data(args: &PutArgs) -> Result<Zeroizing<String>, Failure> {
    if let Some(file) = &args.file {
        return contents(file);
    }
    if let Some(data) = &args.data {
        return Ok(Zeroizing::new(data.clone()));
    }
    serde_json::to_string(&pairs(&args.pairs)?).map(Zeroizing::new).map_err(|_| not_an_object())
}

fn contents(file: &Path) -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::default();
    let read = if file.as_os_str() == "-" {
        io::stdin().lock().read_to_string(&mut text).map(drop)
    } else {
        fs::read_to_string(file).map(|contents| *text = contents)
    };
    read.map_err(|error| {
        let next = "give --file a file of JSON, or - for standard input";
        Failure::local(Exit::Invalid, format!("{}: {error}", file.display()), next)
    })?;
    Ok(text)
}

/// Checks the syntax only: the text goes out as it is, so a duplicate key reaches the server and is refused there.
fn object(text: &str) -> Result<&RawValue, Failure> {
    let value: &RawValue = serde_json::from_str(text).map_err(|_may_quote| not_an_object())?;
    if value.get().starts_with('{') { Ok(value) } else { Err(not_an_object()) }
}

fn not_an_object() -> Failure {
    Failure::local(Exit::Invalid, "the data is not a JSON object", r#"give fields like {"user": "…", "password": "…"}"#)
}

/// `KEY=VALUE`, split at the first `=`. A failure names no pair: it may be all value.
fn pairs(texts: &[String]) -> Result<BTreeMap<&str, &str>, Failure> {
    let refused = |number: usize, reason| {
        let next = "give pairs like user=alice, each key once";
        Failure::local(Exit::Invalid, format!("KEY=VALUE number {} {reason}", number + 1), next)
    };
    let mut pairs = BTreeMap::new();
    for (number, text) in texts.iter().enumerate() {
        match text.split_once('=') {
            None | Some(("", _)) => return Err(refused(number, "has no key")),
            Some((key, value)) if pairs.insert(key, value).is_none() => {}
            Some(_) => return Err(refused(number, "repeats a key")),
        }
    }
    Ok(pairs)
}

impl MetadataArgs {
    /// Nothing, if nothing was said about it.
    fn given(&self) -> Result<Option<Metadata>, Failure> {
        let custom = pairs(&self.custom)?.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let metadata = Metadata {
            description: self.description.clone(),
            tags: self.tags.clone(),
            owner: self.owner.clone(),
            custom,
        };
        Ok((metadata != Metadata::default()).then_some(metadata))
    }
}

#[derive(Deserialize)]
struct Listed {
    path: String,
    version: u64,
    #[serde(default)]
    secret_type: Option<String>,
    #[serde(default)]
    updated_at: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
}

async fn list(client: &Client, args: &ListArgs, json: bool) -> Result<Report, Failure> {
    if !args.prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_./-".contains(&byte)) {
        let message = format!("{:?} cannot begin a path", args.prefix);
        return Err(Failure::local(Exit::Invalid, message, "use A-Z a-z 0-9 _ . - and / only"));
    }
    let entries = client.list(&format!("/v1/secrets?prefix={}", args.prefix), args.limit).await?;
    if json {
        return all_pages("secrets", &entries);
    }
    let mut rows = vec![["PATH", "VERSION", "TYPE", "UPDATED", "TAGS"].map(String::from).to_vec()];
    for entry in parse_all::<Listed>(&entries)? {
        let (kind, updated) = (entry.secret_type.unwrap_or_default(), entry.updated_at.unwrap_or_default());
        rows.push(vec![entry.path, entry.version.to_string(), kind, updated, entry.tags.join(", ")]);
    }
    Ok(Report::columns(&rows))
}

#[derive(Deserialize)]
struct VersionEntry {
    version: u64,
    #[serde(default)]
    state: Option<String>,
    #[serde(default)]
    created_at: Option<String>,
    #[serde(default)]
    created_by: Option<String>,
}

async fn versions(client: &Client, args: &PathArgs, json: bool) -> Result<Report, Failure> {
    let path = checked(&args.path)?;
    let entries = client.list(&format!("/v1/versions/{path}"), None).await?;
    if json {
        return all_pages("versions", &entries);
    }
    let mut rows = vec![["VERSION", "STATE", "CREATED", "BY"].map(String::from).to_vec()];
    for entry in parse_all::<VersionEntry>(&entries)? {
        let (state, at) = (entry.state.unwrap_or_default(), entry.created_at.unwrap_or_default());
        rows.push(vec![entry.version.to_string(), state, at, entry.created_by.unwrap_or_default()]);
    }
    Ok(Report::columns(&rows))
}

fn all_pages(name: &str, entries: &[Box<RawValue>]) -> Result<Report, Failure> {
    let text = serde_json::to_string(&BTreeMap::from([(name, entries)])).map_err(|_| unknown_entry())?;
    Ok(Report::of(text + "\n"))
}

fn parse_all<'a, T: Deserialize<'a>>(entries: &'a [Box<RawValue>]) -> Result<Vec<T>, Failure> {
    entries.iter().map(|entry| serde_json::from_str(entry.get())).collect::<Result<_, _>>().map_err(|_| unknown_entry())
}

fn unknown_entry() -> Failure {
    let next = "use --json, or a command line of the server's version";
    Failure::local(Exit::Other, "the answer has an entry that this version does not know", next)
}

#[derive(Deserialize)]
struct Deleted {
    recoverable_until: String,
}

async fn delete(client: &Client, args: &DeleteArgs, json: bool) -> Result<Report, Failure> {
    let path = checked(&args.path)?;
    if args.permanent {
        client.send(Method::DELETE, &format!("/v1/secrets/{path}?permanent=true"), None).await?;
        let (told, said) = (format!("{{\"path\":\"{path}\",\"destroyed\":true}}\n"), format!("{path} destroyed\n"));
        return Ok(Report::of(if json { told } else { said }));
    }
    let answer = client.send(Method::DELETE, &format!("/v1/secrets/{path}"), None).await?;
    if json {
        return Ok(Report::json(answer));
    }
    let deleted: Deleted = answer.parse()?;
    Ok(Report::columns(&[vec![format!("{path} deleted, recoverable until {}", deleted.recoverable_until)]]))
}

#[derive(Serialize)]
struct BatchBody<'a> {
    paths: Vec<&'a str>,
    options: BatchOptions,
}

#[derive(Serialize)]
struct BatchOptions {
    include_metadata: bool,
    fail_fast: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
}

#[derive(Deserialize)]
struct BatchReply<'a> {
    #[serde(borrow)]
    secrets: BTreeMap<String, Released<'a>>,
    #[serde(default)]
    errors: BTreeMap<String, ErrorBody>,
}

async fn read_batch(client: &Client, args: &BatchArgs, json: bool) -> Result<Report, Failure> {
    let paths: Vec<_> = args.paths.iter().map(|path| checked(path)).collect::<Result<_, _>>()?;
    let body = BatchBody {
        paths: paths.iter().map(SecretPath::as_str).collect(),
        options: BatchOptions {
            include_metadata: args.include_metadata,
            fail_fast: args.fail_fast,
            version: args.version,
        },
    };
    let body = serde_json::to_string(&body).map(Zeroizing::new).map_err(|_| not_an_object())?;
    let answer = client.send(Method::POST, "/v1/secrets/batch", Some(body)).await?;
    let reply: BatchReply<'_> = answer.parse()?;
    let failures = in_order(&paths, &reply.errors, answer.request_id.as_deref());
    let text = batch_text(&paths, &reply.secrets);
    if json {
        return Ok(Report { failures, ..Report::json(answer) });
    }
    Ok(Report { text, failures })
}

/// As the paths were given, each once: the status is the first one's.
fn in_order(paths: &[SecretPath], errors: &BTreeMap<String, ErrorBody>, request_id: Option<&str>) -> Vec<Failure> {
    let mut left: BTreeMap<_, _> = errors.iter().collect();
    let mut failures = Vec::new();
    for path in paths {
        let entry = left.remove_entry(&path.as_str().to_owned());
        failures.extend(entry.map(|(path, error)| Failure::of_entry(path, error, request_id)));
    }
    failures
}

fn batch_text(paths: &[SecretPath], secrets: &BTreeMap<String, Released<'_>>) -> Zeroizing<String> {
    let mut left: BTreeMap<_, _> = secrets.iter().collect();
    let mut text = Zeroizing::new(String::new());
    for path in paths {
        if let Some((path, secret)) = left.remove_entry(&path.as_str().to_owned()) {
            if !text.is_empty() {
                text.push('\n');
            }
            show(&mut text, path, secret);
        }
    }
    text
}

/// Nothing outside the grammar is sent: encoded, it would be another path to whoever decodes it.
fn checked(path: &str) -> Result<SecretPath, Failure> {
    SecretPath::parse(path).map_err(|error| {
        let next = "write the path as in integrations/salesforce/oauth, without a slash at either end";
        Failure::local(Exit::Invalid, format!("{path:?} is not a path: {error}"), next)
    })
}

#[cfg(test)]
#[path = "secret_tests.rs"]
mod tests;
