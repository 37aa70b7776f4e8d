//! Puts a server together from its configuration, and runs it.

mod backup;
mod house;
mod second_place;
mod verification;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    audit::{AuditChain, AuditKeys, CheckpointFile, Problem},
    auth::{AuthConfigError, AuthError, Authenticator, TokenError, TokenIssuer},
    config::{Config, ConfigError, PolicyLoadingConfig},
    crypto::{CryptoError, Keyring, RootKey, RootKeyError, RootKeySource},
    domain::{Clock, Entropy, Receipt, Timestamp, hex},
    http::TlsError,
    policy::{Bounds, Compiler, Policies, PolicyError, Sources, Trigger, Watch},
    store::{PostgresStore, SecretStore, SqliteStore, StoreError},
    telemetry::Metrics,
    vault::{Fault, Parts, Vault},
};

pub use backup::{BackupError, Restored, back_up, restore};
pub use house::House;
pub use verification::verify_log;

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each is the error that it carries")]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    RootKey(#[from] RootKeyError),
    #[error(
        "the root key (fingerprint {given}) is not this vault's (fingerprint {kept}): give it the vault's root key, or \
         another database"
    )]
    WrongRootKey { given: String, kept: String },
    #[error("the vault's own keys cannot be unwrapped: {0}")]
    VaultKey(#[from] CryptoError),
    #[error("this vault was never started: it has no audit log")]
    NoAuditKey,
    #[error("the store cannot be opened: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("tokens cannot be verified: {0}")]
    Auth(#[from] AuthConfigError),
    #[error("tokens cannot be issued: {0}")]
    Token(#[from] TokenError),
    #[error("a token of this server is refused by it: {0}")]
    OwnToken(#[from] AuthError),
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    #[error("cannot listen on {0}: {1}")]
    Listen(std::net::SocketAddr, std::io::Error),
    #[error("no socket for the operator can be made in the data directory: {0}")]
    Door(std::io::Error),
    #[error("the audit log cannot be written: {}", .0.message())]
    Audit(Fault),
    #[error("the audit log is not what this vault wrote; was an old database put back? {} (to go on all the same, and have \
         that on record: serve --accept-rollback)", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    RolledBack(Vec<Problem>),
    #[error("the checkpoints in {} cannot be read: {}", .0.display(), .1)]
    Checkpoints(PathBuf, std::io::Error),
    #[error("the sample secrets cannot be stored: {}", .0.message())]
    Samples(Fault),
}

/// How often the policy directory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long after a reload that could not be put on record the next is tried.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// The wall clock of this machine.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_micros(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
    }
}

/// The random source of this machine.
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    #[expect(clippy::expect_used, reason = "a vault without randomness must stop at once, not go on with weak keys")]
    fn fill(&self, buffer: &mut [u8]) {
        getrandom::fill(buffer).expect("the operating system gives random bytes");
    }
}

/// A server that is ready to listen.
pub struct Server {
    /// The service.
    pub vault: Arc<Vault>,
    /// What verifies tokens.
    pub authenticator: Arc<Authenticator>,
    /// What issues the server's own tokens.
    pub issuer: TokenIssuer,
    store: Arc<dyn SecretStore>,
    metrics: Arc<Metrics>,
    watch: Watch,
    checkpoints: Checkpoints,
    config: Config,
    compiler: PathBuf,
}

impl Server {
    /// Opens the store, checks the root key against it, loads the policies, prepares the verification of tokens.
    /// `compiler` is the program that compiles policies: [`crate::policy::THIS_PROGRAM`], for whoever is it.
    ///
    /// # Errors
    ///
    /// [`StartError`]: a server that cannot do all of this does not start.
    pub async fn open(config: Config, root: RootKey, compiler: PathBuf) -> Result<Self, StartError> {
        let store = open_store(&config).await?;
        match Self::furnish(config, root, compiler, &store).await {
            Ok(server) => Ok(server),
            Err(error) => {
                store.close().await;
                Err(error)
            }
        }
    }

    async fn furnish(
        config: Config,
        root: RootKey,
        compiler: PathBuf,
        store: &Arc<dyn SecretStore>,
    ) -> Result<Self, StartError> {
        let (clock, entropy): (Arc<dyn Clock>, Arc<dyn Entropy>) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
        // Before all else: with a wrong key, what is kept of the policies would look like forgeries, and be replaced.
        let (root, root_sources) = vaults_root(&config, root, &**store).await?;
        let issuer = token_issuer(&config, &root)?;
        let own = config.auth.own_issuer.then(|| issuer.verifier());
        let authenticator = Arc::new(Authenticator::new(own, &config.auth.issuers, Arc::clone(&clock))?);
        let watch = Watch::new(config.policies.clone());
        let policies = Arc::new(open_policies(&config, &root, compiler.clone(), clock.now()).await?);
        let metrics = Arc::new(Metrics::default());
        let keyring = Keyring::new(root, Arc::clone(&entropy));
        let audit_keys = Arc::new(audit_keys(&**store, &keyring).await?);
        let (checkpoints, lost) = start_log(&config, &**store, &audit_keys, Arc::clone(&clock)).await?;
        let vault = Vault::new(Parts {
            store: Arc::clone(store),
            keyring,
            audit_keys,
            policies,
            clock,
            entropy,
            metrics: Arc::clone(&metrics),
            recoverable_for: config.secrets.recoverable_for.0,
            root_sources,
        });
        record_start(&vault, &lost).await.map_err(StartError::Audit)?;
        if !lost.is_empty() {
            // On record by now, so that the next start need not be told again.
            let file = CheckpointFile::new(config.checkpoint_file());
            file.put_aside().map_err(|error| StartError::Checkpoints(file.path().to_owned(), error))?;
        }
        let (vault, store) = (Arc::new(vault), Arc::clone(store));
        Ok(Self { vault, authenticator, issuer, store, metrics, watch, checkpoints, config, compiler })
    }

    /// Serves until `shutdown`, see [`House::run`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), StartError> {
        House::of(self).await?.run(listener, shutdown).await
    }
}

/// The newest durable checkpoint of the audit log.
type Checkpoints = tokio::sync::watch::Receiver<Option<Receipt>>;

/// Takes a chain of the audit log, after the log was held against what is known of it elsewhere. Answers what is missing
/// where that was accepted.
async fn start_log(
    config: &Config,
    store: &dyn SecretStore,
    keys: &Arc<AuditKeys>,
    clock: Arc<dyn Clock>,
) -> Result<(Checkpoints, Vec<Problem>), StartError> {
    let file = CheckpointFile::new(config.checkpoint_file());
    let unusable = |error| StartError::Checkpoints(file.path().to_owned(), error);
    let lost = second_place::lost_rows(store, keys, &file.read().map_err(unusable)?).await?;
    if !lost.is_empty() {
        if !config.audit.accept_rollback {
            return Err(StartError::RolledBack(lost));
        }
        tracing::warn!(?lost, "the audit log was rolled back, and that was accepted");
    }
    let chain = AuditChain::new(Arc::clone(keys), clock);
    let checkpoints = chain.checkpoints();
    store.start_log(Arc::new(chain)).await?;
    Ok((checkpoints, lost))
}

/// The audit's word for a start on an older database than the last.
const ACCEPT_ROLLBACK: &str = "accept_rollback";

async fn record_start(vault: &Vault, lost: &[Problem]) -> Result<(), Fault> {
    if !lost.is_empty() {
        vault.record_own(ACCEPT_ROLLBACK, serde_json::json!({ "lost": lost })).await?;
    }
    vault.record_first_policies().await
}

/// How often old events are removed.
const REMOVE_EVERY: Duration = Duration::from_hours(1);

async fn remove_old_events(vault: Arc<Vault>, keep_for: Duration, shutdown: CancellationToken) {
    loop {
        let cutoff = SystemClock.now().minus(keep_for);
        shutdown.run_until_cancelled(vault.remove_events_before(cutoff)).await;
        if shutdown.run_until_cancelled(tokio::time::sleep(REMOVE_EVERY)).await.is_none() {
            return;
        }
    }
}

/// The issuer of the server's own tokens.
///
/// # Errors
///
/// [`TokenError`] where the configured names are empty.
pub fn token_issuer(config: &Config, root: &RootKey) -> Result<TokenIssuer, TokenError> {
    TokenIssuer::new(&root.token_seed(), config.auth.own_issuer_name.clone(), config.auth.own_audience.clone())
}

/// The name of the key that the audit log's keys hang from.
const AUDIT_KEY: &str = "audit";

/// The keys of the audit log, made at the first start.
///
/// # Errors
///
/// [`StartError`] where the store cannot be read, or holds a key of another vault.
pub async fn audit_keys(store: &dyn SecretStore, keyring: &Keyring) -> Result<AuditKeys, StartError> {
    let fresh = keyring.fresh_vault_key(AUDIT_KEY)?;
    let kept = store.vault_key(&keyring.root().fingerprint(), AUDIT_KEY, &fresh).await?;
    Ok(AuditKeys::new(&*keyring.vault_key(AUDIT_KEY, &kept)?))
}

/// The keys of the audit log of a vault that has been started before.
///
/// # Errors
///
/// [`StartError`] where the store cannot be read, or holds no such key, or one of another vault.
pub async fn kept_audit_keys(store: &dyn SecretStore, keyring: &Keyring) -> Result<AuditKeys, StartError> {
    let kept = store.kept_vault_key(AUDIT_KEY).await?.ok_or(StartError::NoAuditKey)?;
    Ok(AuditKeys::new(&*keyring.vault_key(AUDIT_KEY, &kept)?))
}

/// The root key that the vault's keys are wrapped under: the given one, or else the next one, where a rotation was done
/// and the configuration was left as it was. With the places of that key and of the one after it.
async fn vaults_root(
    config: &Config,
    given: RootKey,
    store: &dyn SecretStore,
) -> Result<(RootKey, (RootKeySource, Option<RootKeySource>)), StartError> {
    let kept = store.root_fingerprint(&given.fingerprint()).await?;
    let next = config.next_root_key_source()?;
    if kept == given.fingerprint() {
        return Ok((given, (config.root_key_source()?, next)));
    }
    if let Some(source) = next
        && let Ok(key) = RootKey::load(&source)
        && key.fingerprint() == kept
    {
        tracing::warn!(%source, "the vault's root key is the one of [root_key.next]: make it that of [root_key]");
        return Ok((key, (source, None)));
    }
    Err(StartError::WrongRootKey { given: hex(&given.fingerprint()), kept: hex(&kept) })
}

async fn open_policies(
    config: &Config,
    root: &RootKey,
    compiler: PathBuf,
    now: Timestamp,
) -> Result<Policies, PolicyError> {
    let PolicyLoadingConfig { compile_time, compile_memory_mib, .. } = config.policy_loading;
    let sources = Sources {
        directory: config.policies.clone(),
        compiler: Compiler::Process(Bounds {
            program: compiler,
            time: compile_time.0,
            memory: compile_memory_mib.saturating_mul(1024 * 1024),
        }),
        memory: Some((config.store.data_dir.join("policies"), root.policy_memory_key())),
    };
    let opening = tokio::task::spawn_blocking(move || Policies::open(sources, now));
    opening.await.unwrap_or_else(|error| Err(PolicyError::Engine(error.to_string())))
}

/// Reloads the policies when their directory has changed, until the server stops.
async fn watch(vault: Arc<Vault>, mut watch: Watch, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        let looked = tokio::task::spawn_blocking(move || (watch.changed(), watch)).await;
        let Ok((changed, again)) = looked else { return };
        watch = again;
        if changed && vault.reload_policies(Trigger::Watch, None).await.is_err() {
            // It could not be put on record: a later look tries again.
            watch.forget();
            shutdown.run_until_cancelled(tokio::time::sleep(TRY_AGAIN)).await;
        }
    }
}

/// Opens the store to read alone, whether or not a server is using it.
///
/// # Errors
///
/// Where there is none, or it cannot be opened.
pub async fn open_to_read(config: &Config) -> Result<Arc<dyn SecretStore>, StoreError> {
    match &config.store.database_url {
        Some(url) => Ok(Arc::new(PostgresStore::connect_to_read(&url.0).await?)),
        None => Ok(Arc::new(SqliteStore::open_to_read(&config.store.data_dir).await?)),
    }
}

async fn open_store(config: &Config) -> Result<Arc<dyn SecretStore>, StoreError> {
    let config = &config.store;
    let cache = u64::from(config.cache_mib) << 20;
    match &config.database_url {
        Some(url) => Ok(Arc::new(PostgresStore::connect(&url.0, config.max_connections, cache).await?)),
        None => Ok(Arc::new(SqliteStore::open(&config.data_dir, cache).await?)),
    }
}
