//! A server that can be sealed: the shell that always listens, and the inside that holds the keys.
//!
//! Sealing drops the whole inside (service, keys, authenticator, policies, the connections to the store); what is wiped
//! when it is dropped is wiped once the last request in flight is done. Unsealing opens a [`Server`] as at the start.

use std::{
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{net::TcpListener, sync::Mutex};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Server, StartError, SystemClock, SystemEntropy, remove_old_events, second_place::SecondPlace, watch};
use crate::{
    config::Config,
    crypto::{RootKey, RootKeySource, Share, ShareBox},
    domain::{Clock, Entropy},
    http::{ApiSettings, App, LocalDoor, SealStatus, Shell, Warden, router, serve, tls_config},
    policy::Trigger,
    store::SecretStore,
    vault::Vault,
};

/// How often it is looked whether the last request has let go of the inside.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long a request may hold on to it before that is told.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
pub struct House {
    config: Config,
    compiler: PathBuf,
    source: RootKeySource,
    shell: Shell,
    state: Mutex<State>,
}

enum State {
    Sealed(ShareBox),
    Open(Inside),
}

/// What is to be ended with the inside.
struct Inside {
    vault: Weak<Vault>,
    store: Arc<dyn SecretStore>,
    second_place: SecondPlace,
    closing: CancellationToken,
    stop: DropGuard,
}

impl House {
    /// A house that is sealed. `compiler` is as in [`Server::open`].
    ///
    /// # Errors
    ///
    /// [`StartError::Config`] where no place of the root key is named.
    pub fn sealed(config: Config, compiler: PathBuf) -> Result<Arc<Self>, StartError> {
        let source = config.root_key_source()?;
        let (shell, state) = (
            Shell::new(Arc::new(SystemClock), Arc::new(SystemEntropy)),
            Mutex::new(State::Sealed(ShareBox::default())),
        );
        Ok(Arc::new(Self { config, compiler, source, shell, state }))
    }

    /// A house with this server inside.
    ///
    /// # Errors
    ///
    /// As [`House::sealed`].
    pub async fn of(server: Server) -> Result<Arc<Self>, StartError> {
        let house = Self::sealed(server.config.clone(), server.compiler.clone())?;
        house.furnish(&mut *house.state.lock().await, server);
        Ok(house)
    }

    /// Serves until `shutdown`, then finishes what was begun and lets go of the store.
    ///
    /// # Errors
    ///
    /// [`StartError::Tls`] where the certificate cannot be used; [`StartError::Door`] where the house is sealed and there
    /// would be no way to open it.
    pub async fn run(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) -> Result<(), StartError> {
        let tls = match (&self.config.tls.certificate, &self.config.tls.key) {
            (Some(certificate), Some(key)) => Some(tls_config(certificate, key)?),
            _ => None,
        };
        let ended = CancellationToken::new();
        // However this ends.
        let _guard = ended.clone().drop_guard();
        let door = match LocalDoor::bind(&self.config.store.data_dir) {
            Ok(door) => {
                let warden: Arc<dyn Warden> = Arc::<Self>::clone(&self);
                Some(tokio::spawn(door.serve(warden, ended.clone())))
            }
            Err(error) if self.status().await.sealed => return Err(StartError::Door(error)),
            Err(error) => {
                tracing::warn!(%error, "there is no socket for the operator: once sealed, start the server anew");
                None
            }
        };
        let watching = tokio::spawn(Arc::clone(&self).empty_when_sealed(ended.clone()));
        let closing = Arc::clone(&self).close_when_stopped(shutdown.clone());
        tokio::spawn(ended.clone().run_until_cancelled_owned(closing));
        serve(listener, tls, self.shell.router(), self.config.serve_limits(), shutdown).await;
        ended.cancel();
        if let Some(door) = door {
            door.await.ok();
        }
        watching.await.ok();
        self.shell.seal();
        let state = std::mem::replace(&mut *self.state.lock().await, State::Sealed(ShareBox::default()));
        if let State::Open(inside) = state {
            drop(inside.stop);
            inside.store.close().await;
            inside.second_place.write_down().await;
        }
        Ok(())
    }

    /// Takes the policy directory as it is, if the house is open.
    pub async fn reload_policies(&self, trigger: Trigger) {
        let vault = match &*self.state.lock().await {
            State::Open(inside) => inside.vault.upgrade(),
            State::Sealed(_) => None,
        };
        if let Some(vault) = vault {
            vault.reload_policies(trigger, None).await.ok();
        }
    }

    fn furnish(&self, state: &mut State, server: Server) {
        let Server { vault, authenticator, store, metrics, watch: changes, checkpoints, config, .. } = server;
        let stop = CancellationToken::new();
        let settings = ApiSettings {
            rate_limits: config.rate_limits.clone(),
            metrics_need_token: config.server.metrics_need_token,
            max_requests: config.server.max_requests,
            max_connections: config.server.max_connections,
            closing: stop.child_token(),
        };
        let warming = Arc::clone(&authenticator);
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move { warming.warm_up().await }));
        if config.policy_loading.watch {
            tokio::spawn(watch(Arc::clone(&vault), changes, stop.clone()));
        }
        let second_place = SecondPlace::new(config.checkpoint_file(), checkpoints, Arc::clone(&metrics));
        tokio::spawn(second_place.clone().keep(stop.clone()));
        if let Some(keep_for) = config.audit.keep_for {
            tokio::spawn(remove_old_events(Arc::clone(&vault), keep_for.0, stop.clone()));
        }
        let (closing, stop) = (settings.closing.clone(), stop.drop_guard());
        *state = State::Open(Inside { vault: Arc::downgrade(&vault), store, second_place, closing, stop });
        let outside: (Arc<dyn Clock>, Arc<dyn Entropy>) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
        let app = App::new(vault, authenticator, outside, metrics, &settings, &self.shell);
        self.shell.open(router(app, &settings));
    }

    /// Lets go of the inside whenever it was taken out of the shell.
    async fn empty_when_sealed(self: Arc<Self>, ended: CancellationToken) {
        while ended.run_until_cancelled(self.shell.sealed()).await.is_some() {
            // Held until all is gone: an unsealing that comes meanwhile waits, and finds the store free.
            let mut state = self.state.lock().await;
            // Unsealed again meanwhile, or never open.
            if !self.shell.is_sealed() || matches!(*state, State::Sealed(_)) {
                continue;
            }
            let State::Open(inside) = std::mem::replace(&mut *state, State::Sealed(ShareBox::default())) else {
                continue;
            };
            inside.empty().await;
            tracing::warn!("sealed: the keys are forgotten");
        }
    }

    /// Lets nobody who was turned away wait any longer when the server stops.
    async fn close_when_stopped(self: Arc<Self>, shutdown: CancellationToken) {
        shutdown.cancelled().await;
        if let State::Open(inside) = &*self.state.lock().await {
            inside.closing.cancel();
        }
    }

    async fn open_with(&self, state: &mut State, root: RootKey) -> Result<(), String> {
        let opened = Server::open(self.config.clone(), root, self.compiler.clone()).await;
        let server = opened.map_err(|error| error.to_string())?;
        if let Err(fault) = server.vault.record_unsealing().await {
            server.store.close().await;
            return Err(fault.message());
        }
        self.furnish(state, server);
        tracing::info!("unsealed");
        Ok(())
    }
}

impl Inside {
    async fn empty(self) {
        drop(self.stop);
        let begun = std::time::Instant::now();
        let mut told = false;
        while self.vault.strong_count() > 0 {
            // One may begin while the last requests end.
            if let Some(vault) = self.vault.upgrade() {
                vault.stop_rewrapping();
            }
            if begun.elapsed() > PATIENCE && !told {
                told = true;
                tracing::warn!("a request in flight still holds the keys");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.store.close().await;
        self.second_place.write_down().await;
    }
}

#[async_trait]
impl Warden for House {
    async fn status(&self) -> SealStatus {
        let wanted = match self.source {
            RootKeySource::Shares(wanted) => Some(wanted),
            _ => None,
        };
        match &*self.state.lock().await {
            State::Open(_) => SealStatus { sealed: false, shares: 0, threshold: wanted },
            State::Sealed(shares) => {
                SealStatus { sealed: true, shares: shares.len(), threshold: shares.threshold().or(wanted) }
            }
        }
    }

    async fn unseal(&self, share: Option<&str>) -> Result<SealStatus, String> {
        let mut state = self.state.lock().await;
        if let State::Sealed(shares) = &mut *state {
            let root = match (share, &self.source) {
                (Some(share), RootKeySource::Shares(_)) => {
                    let share: Share = share.parse().map_err(|error: crate::crypto::InvalidShare| error.to_string())?;
                    shares.add(share).map_err(|error| error.to_string())?
                }
                (None, RootKeySource::Shares(wanted)) => return Err(format!("bring shares, {wanted} of them")),
                (Some(_), _) => return Err("the root key of this server is not in shares".to_owned()),
                (None, source) => Some(loaded(source.clone()).await?),
            };
            if let Some(root) = root {
                self.open_with(&mut state, root).await?;
            }
        }
        drop(state);
        Ok(self.status().await)
    }
}

/// It may ask a program, or hash a passphrase.
async fn loaded(source: RootKeySource) -> Result<RootKey, String> {
    let loading = tokio::task::spawn_blocking(move || RootKey::load(&source)).await;
    loading.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}
