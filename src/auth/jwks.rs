//! Keys fetched from an issuer's JWKS URL: one configured destination, one fetch at a time, one in 30 seconds at most.
//!
//! Keys younger than [`REFRESH_AFTER`] are used as they are. Older ones are used only where the newest fetch failed, and
//! not beyond [`KEEP_FOR`]; so a key that its issuer removed dies with the next fetch. Nothing that a token says changes
//! where keys come from; a name that no key has can at most bring the next fetch forward.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reqwest::{Client, StatusCode, Url, redirect};
use sha2::{Digest, Sha256};

use super::{
    AuthError,
    issuer::Algorithm,
    keys::{KeySet, NotAKeySet},
};
use crate::domain::{Clock, Timestamp};

/// Age at which keys are fetched anew.
const REFRESH_AFTER: Duration = Duration::from_mins(5);
/// Shortest time from one fetch to the next.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// Age up to which keys are used while no fetch succeeds.
const KEEP_FOR: Duration = Duration::from_hours(1);
/// Longest answer, in bytes.
pub(super) const MAX_BODY_BYTES: usize = 256 * 1024;

/// How long a fetch may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Until the connection stands.
    pub(super) connect: Duration,
    /// Until the last byte of the answer.
    pub(super) total: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect: Duration::from_secs(2), total: Duration::from_secs(5) }
    }
}

/// A key set that changes its number whenever its content changes.
#[derive(Clone)]
pub(super) struct Edition {
    /// The number; what one edition verified is void in the next.
    pub(super) number: u64,
    /// The keys.
    pub(super) keys: Arc<KeySet>,
}

/// The keys behind one URL.
pub(super) struct Remote {
    url: Url,
    algorithm: Algorithm,
    client: Client,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Held by the fetch under way, even where the request that began it has gone.
    flight: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct State {
    loaded: Option<Loaded>,
    attempted_at: Option<Timestamp>,
    /// Whether the newest fetch that ended brought no keys.
    failed: bool,
}

struct Loaded {
    edition: Edition,
    digest: [u8; 32],
    at: Timestamp,
}

/// Why a fetch brought no keys; all that the log says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum FetchError {
    #[error("the server could not be reached or did not answer in time")]
    Transport,
    #[error("the answer was not 200")]
    Status,
    #[error("the answer was longer than 256 KiB")]
    TooLong,
    #[error("the answer was not a JWK set of 100 keys at most")]
    NotAKeySet,
}

/// What to do with the keys at hand.
enum Standing {
    Fresh(Edition),
    /// Old, but the issuer cannot be reached.
    Kept(Edition),
    Due,
}

impl Remote {
    /// Prepares the fetching from `url`; nothing is sent yet.
    pub(super) fn new(
        url: Url,
        algorithm: Algorithm,
        clock: Arc<dyn Clock>,
        patience: Patience,
    ) -> reqwest::Result<Arc<Self>> {
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .http1_only()
            .connect_timeout(patience.connect)
            .timeout(patience.total)
            .build()?;
        let (state, flight) = (Mutex::default(), Arc::default());
        Ok(Arc::new(Self { url, algorithm, client, clock, state, flight }))
    }

    /// The keys in force, fetched first where they are too old to be used unasked.
    pub(super) async fn current(self: &Arc<Self>) -> Result<Edition, AuthError> {
        match self.standing() {
            Standing::Fresh(edition) => Ok(edition),
            Standing::Kept(edition) => {
                self.refresh_behind();
                Ok(edition)
            }
            Standing::Due => {
                self.refresh().await;
                self.usable().ok_or(AuthError::Unavailable)
            }
        }
    }

    /// The keys in force, fetched anew where none has the name and a fetch is allowed.
    pub(super) async fn holding(self: &Arc<Self>, kid: Option<&str>) -> Result<Edition, AuthError> {
        let edition = self.current().await?;
        if kid.is_none() || edition.keys.holds(kid) {
            return Ok(edition);
        }
        self.refresh().await;
        self.usable().ok_or(AuthError::Unavailable)
    }

    fn standing(&self) -> Standing {
        let now = self.clock.now();
        let state = self.state();
        match state.usable(now) {
            Some(loaded) if !has_passed(REFRESH_AFTER, loaded.at, now) => Standing::Fresh(loaded.edition.clone()),
            Some(loaded) if state.failed => Standing::Kept(loaded.edition.clone()),
            _ => Standing::Due,
        }
    }

    fn usable(&self) -> Option<Edition> {
        let now = self.clock.now();
        self.state().usable(now).map(|loaded| loaded.edition.clone())
    }

    /// Waits for the fetch under way, then fetches if it is time. The fetch itself runs detached: a client that hangs up
    /// must not be able to cut it short and use up the interval.
    async fn refresh(self: &Arc<Self>) {
        let flight = Arc::clone(&self.flight).lock_owned().await;
        let Some(started) = self.begin() else { return };
        let remote = Arc::clone(self);
        let fetch = tokio::spawn(async move {
            let outcome = remote.fetch().await;
            remote.finish(started, outcome);
            drop(flight);
        });
        if fetch.await.is_err() {
            tracing::error!(host = self.url.host_str(), "the fetch of a JWKS was aborted");
        }
    }

    fn refresh_behind(self: &Arc<Self>) {
        if self.state().may_attempt(self.clock.now()) {
            let remote = Arc::clone(self);
            tokio::spawn(async move { remote.refresh().await });
        }
    }

    fn begin(&self) -> Option<Timestamp> {
        let now = self.clock.now();
        let mut state = self.state();
        if !state.may_attempt(now) {
            return None;
        }
        state.attempted_at = Some(now);
        Some(now)
    }

    async fn fetch(&self) -> Result<([u8; 32], KeySet), FetchError> {
        let mut response = self.client.get(self.url.clone()).send().await.map_err(|_| FetchError::Transport)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status);
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|_| FetchError::Transport)? {
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(FetchError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        let keys = KeySet::of_jwks(&body, self.algorithm).map_err(|NotAKeySet| FetchError::NotAKeySet)?;
        Ok((Sha256::digest(&body).into(), keys))
    }

    fn finish(&self, started: Timestamp, outcome: Result<([u8; 32], KeySet), FetchError>) {
        let mut state = self.state();
        match outcome {
            Ok((digest, keys)) => {
                if keys.is_empty() {
                    tracing::warn!(host = self.url.host_str(), "a JWKS holds no key for its issuer's algorithm");
                }
                state.load(digest, keys, started);
            }
            Err(error) => {
                state.failed = true;
                tracing::warn!(host = self.url.host_str(), %error, "a JWKS could not be fetched");
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn usable(&self, now: Timestamp) -> Option<&Loaded> {
        self.loaded.as_ref().filter(|loaded| now.since(loaded.at) < KEEP_FOR)
    }

    fn may_attempt(&self, now: Timestamp) -> bool {
        self.attempted_at.is_none_or(|at| has_passed(RETRY_AFTER, at, now))
    }

    /// Takes the keys over as of the instant at which they were asked for.
    fn load(&mut self, digest: [u8; 32], keys: KeySet, at: Timestamp) {
        self.failed = false;
        match &mut self.loaded {
            Some(loaded) if loaded.digest == digest => loaded.at = at,
            loaded => {
                let number = loaded.as_ref().map_or(0, |former| former.edition.number) + 1;
                *loaded = Some(Loaded { edition: Edition { number, keys: Arc::new(keys) }, digest, at });
            }
        }
    }
}

/// Whether a length of time has passed. A clock that was set back counts as passed, or keys would outlive their age.
fn has_passed(span: Duration, since: Timestamp, now: Timestamp) -> bool {
    now < since || now.since(since) >= span
}
