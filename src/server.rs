//! Puts a server together from its configuration, and runs it.

use std::{path::Path, sync::Arc, time::SystemTime};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{AuthConfigError, AuthError, Authenticator, TokenError, TokenIssuer},
    config::{Config, ConfigError},
    crypto::{Keyring, RootKey, RootKeyError},
    domain::{Clock, Entropy, Timestamp},
    http::{ApiSettings, App, TlsError, router, serve, tls_config},
    policy::{Policies, PolicyError},
    store::{PostgresStore, SecretStore, SqliteStore, StoreError},
    telemetry::Metrics,
    vault::{Fault, Parts, Vault},
};

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each is the error that it carries")]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    RootKey(#[from] RootKeyError),
    #[error("the root key is not the one that this vault was made with: give it the right key, or another database")]
    WrongRootKey,
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
    #[error("the sample secrets cannot be stored: {}", .0.message())]
    Samples(Fault),
}

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
    config: Config,
}

impl Server {
    /// Opens the store, checks the root key against it, loads the policies, prepares the verification of tokens.
    ///
    /// # Errors
    ///
    /// [`StartError`]: a server that cannot do all of this does not start.
    pub async fn open(config: Config, root: RootKey) -> Result<Self, StartError> {
        let (clock, entropy): (Arc<dyn Clock>, Arc<dyn Entropy>) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
        let issuer = token_issuer(&config, &root)?;
        let own = config.auth.own_issuer.then(|| issuer.verifier());
        let authenticator = Arc::new(Authenticator::new(own, &config.auth.issuers, Arc::clone(&clock))?);
        let policies = Arc::new(load_policies(&config.policies, clock.now()).await?);
        let store = open_store(&config).await?;
        if store.root_fingerprint(&root.fingerprint()).await? != root.fingerprint() {
            store.close().await;
            return Err(StartError::WrongRootKey);
        }
        let metrics = Arc::new(Metrics::default());
        let vault = Vault::new(Parts {
            store: Arc::clone(&store),
            keyring: Keyring::new(root, Arc::clone(&entropy)),
            policies,
            clock,
            entropy,
            metrics: Arc::clone(&metrics),
            recoverable_for: config.secrets.recoverable_for.0,
        });
        Ok(Self { vault: Arc::new(vault), authenticator, issuer, store, metrics, config })
    }

    /// Serves until `shutdown`, then finishes what was begun and lets go of the store.
    ///
    /// # Errors
    ///
    /// [`StartError::Tls`] where the certificate cannot be used.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), StartError> {
        let tls = match (&self.config.tls.certificate, &self.config.tls.key) {
            (Some(certificate), Some(key)) => Some(tls_config(certificate, key)?),
            _ => None,
        };
        let settings = ApiSettings {
            rate_limits: self.config.rate_limits.clone(),
            metrics_need_token: self.config.server.metrics_need_token,
        };
        let outside: (Arc<dyn Clock>, Arc<dyn Entropy>) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
        let warming = Arc::clone(&self.authenticator);
        tokio::spawn(async move { warming.warm_up().await });
        let app = App::new(Arc::clone(&self.vault), self.authenticator, outside, self.metrics, &settings);
        serve(listener, tls, router(app, &settings), self.config.serve_limits(), shutdown).await;
        self.store.close().await;
        Ok(())
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

async fn load_policies(directory: &Path, now: Timestamp) -> Result<Policies, PolicyError> {
    let directory = directory.to_owned();
    let loading = tokio::task::spawn_blocking(move || Policies::load(directory, now));
    loading.await.unwrap_or_else(|error| Err(PolicyError::Engine(error.to_string())))
}

async fn open_store(config: &Config) -> Result<Arc<dyn SecretStore>, StoreError> {
    match &config.store.database_url {
        Some(url) => Ok(Arc::new(PostgresStore::connect(&url.0, config.store.max_connections).await?)),
        None => Ok(Arc::new(SqliteStore::open(&config.store.data_dir).await?)),
    }
}
