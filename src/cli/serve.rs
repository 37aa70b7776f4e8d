//! `portcullis serve`.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use clap::Args;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::signal::unix;
use tokio_util::sync::CancellationToken;

use super::{CommandResult, ConfigFile, samples};
use crate::{
    config::{Config, LogFormat},
    crypto::{RootKey, RootKeySource},
    http::listen,
    policy::{THIS_PROGRAM, Trigger},
    server::{House, Server, StartError, SystemEntropy},
    telemetry::start_log,
};

/// How to run the server.
#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Where SQLite (and, unless configured, the root key) is kept.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The policy directory.
    #[arg(long, value_name = "DIR")]
    policies: Option<PathBuf>,
    /// For a first look: make a root key where there is none, store sample secrets in an empty vault, print tokens for
    /// sample identities. Not for production: whoever reads the output can use the tokens.
    #[arg(long)]
    dev: bool,
    /// Go on with a database that is older than the checkpoints of its audit log say: after a backup was restored.
    #[arg(long)]
    accept_rollback: bool,
}

/// Runs the server until it is asked to stop.
pub async fn run(args: ServeArgs) -> CommandResult {
    let mut config = args.config.load()?;
    config.listen = args.listen.unwrap_or(config.listen);
    config.store.data_dir = args.data_dir.unwrap_or(config.store.data_dir);
    config.policies = args.policies.unwrap_or(config.policies);
    config.audit.accept_rollback = args.accept_rollback;
    start_log(&config.log.filter, config.log.format == LogFormat::Json);
    keep_memory_private();
    open_many_files();
    // From here on a hangup stops nothing; what comes before the policies are there is done then.
    let hangup = unix::signal(unix::SignalKind::hangup())?;
    let root = root_key(&config, args.dev)?;
    // The socket for the operator is there too.
    make_private(&config.store.data_dir);
    let listener = listen(config.listen).map_err(|error| StartError::Listen(config.listen, error))?;
    let address = listener.local_addr()?;
    let house = match root {
        Some(root) => {
            let server = Server::open(config.clone(), root, THIS_PROGRAM.into()).await?;
            if args.dev {
                samples::welcome(&server, &config, address).await?;
            }
            House::of(server).await?
        }
        None => House::sealed(config.clone(), THIS_PROGRAM.into())?,
    };
    tracing::info!(%address, "listening");
    let shutdown = CancellationToken::new();
    tokio::spawn(stop_on_signal(shutdown.clone()));
    tokio::spawn(reload_on_signal(hangup, Arc::clone(&house)));
    house.run(listener, shutdown).await?;
    tracing::info!("stopped");
    Ok(0)
}

/// No core dump, and no other process of this user may look in: keys and values are in this memory.
fn keep_memory_private() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let undumpable = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if let Err(error) = setrlimit(Resource::Core, none).and(undumpable) {
        tracing::warn!(%error, "core dumps cannot be switched off");
    }
}

/// Each connection is an open file, and the usual limit is far below the number of clients that are served.
fn open_many_files() {
    let most = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }) {
        tracing::warn!(%error, "the limit of open files, and so of connections, cannot be raised");
    }
}

/// The root key; none where people have to bring it.
fn root_key(config: &Config, dev: bool) -> Result<Option<RootKey>, StartError> {
    match (config.root_key_source()?, dev) {
        (RootKeySource::File(path), true) => {
            if let Some(directory) = path.parent() {
                make_private(directory);
            }
            let (key, made) = RootKey::load_or_create(&path, &SystemEntropy)?;
            if made {
                tracing::warn!(path = %path.display(), "made a root key: whoever has it and the database has the secrets");
            }
            Ok(Some(key))
        }
        (RootKeySource::Shares(wanted), _) => {
            tracing::warn!(wanted, "sealed: bring shares of the root key with `portcullis unseal`");
            Ok(None)
        }
        // After a rotation, the operator may have taken the old one away before making the new one the configured one.
        (source, _) => match (RootKey::load_or_ask(&source), config.next_root_key_source()?) {
            (Err(error), Some(next)) => Ok(Some(RootKey::load_or_ask(&next).map_err(|_| error)?)),
            (key, _) => Ok(Some(key?)),
        },
    }
}

/// What fails here is reported when the key is written.
fn make_private(directory: &std::path::Path) {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).ok();
}

async fn stop_on_signal(shutdown: CancellationToken) {
    let Ok(mut terminate) = unix::signal(unix::SignalKind::terminate()) else { return };
    tokio::select! {
        _ = terminate.recv() => (),
        _ = tokio::signal::ctrl_c() => (),
    }
    tracing::info!("stopping: requests in flight are finished first");
    shutdown.cancel();
}

/// `SIGHUP` takes the policy directory as it is. What comes of it is told by the vault.
async fn reload_on_signal(mut hangup: unix::Signal, house: Arc<House>) {
    while hangup.recv().await.is_some() {
        house.reload_policies(Trigger::Signal).await;
    }
}
