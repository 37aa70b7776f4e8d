//! Decisions: policies loaded from disk as WebAssembly components, asked path by path. The only module that names the
//! WebAssembly runtime.
//!
//! Anything but a well-formed `allow` is a denial; there is no setting that opens on failure. A guest's instance lives
//! for one request and sees what `wit/policy.wit` offers, never a value.

mod guest;
mod host;
mod lane;
mod limits;
mod manifest;
mod session;
mod set;
mod snapshot;
mod stats;

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use wasmtime::Engine;

pub use guest::Failure;
pub use host::{Inquiry, Subject};
pub use lane::Busy;
pub use manifest::Mode;
pub use session::{Opinion, Session, Until};
pub use set::{Module, PolicySet, Rejected};
pub use stats::{OUTCOMES, Stats};

use crate::domain::{Action, Decision, InputRead, Timestamp};

/// Why there are no policies to be had.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// This machine cannot run guests.
    #[error("the WebAssembly engine cannot start: {0}")]
    Engine(String),
    /// The directory holds something that cannot be taken.
    #[error(transparent)]
    Rejected(#[from] Rejected),
}

/// The policies in force: one pointer to the present generation.
pub struct Policies {
    directory: PathBuf,
    current: ArcSwap<PolicySet>,
    slow: lane::Lane,
    /// Compiles the next generation; every generation runs on the same engine.
    _engine: Engine,
}

impl Policies {
    /// Starts the engine and loads the directory as the first generation.
    ///
    /// # Errors
    ///
    /// [`PolicyError`] with every problem of the directory.
    pub fn load(directory: PathBuf, now: Timestamp) -> Result<Self, PolicyError> {
        let engine = limits::engine().map_err(|error| PolicyError::Engine(format!("{error:#}")))?;
        let first = PolicySet::load(&engine, &directory, 1, now)?;
        if first.modules.is_empty() {
            tracing::warn!(directory = %directory.display(), "no policies are in force: EVERY ACCESS IS DENIED");
        }
        let slow = lane::Lane::start().map_err(|error| PolicyError::Engine(error.to_string()))?;
        Ok(Self { directory, current: ArcSwap::from_pointee(first), slow, _engine: engine })
    }

    /// The generation in force. A request asks once and keeps what it got.
    #[must_use]
    pub fn current(&self) -> Arc<PolicySet> {
        self.current.load_full()
    }

    /// Puts a request's questions to one generation, in their order; with the decisions comes what the modules asked
    /// about the request itself. Where a slow module would be asked, this waits while others are served.
    ///
    /// # Errors
    ///
    /// [`Busy`] where too many requests wait for slow modules.
    pub async fn decide(
        &self,
        set: &Arc<PolicySet>,
        inquiry: Inquiry,
        action: Action,
        subjects: Vec<Subject>,
        until: Until,
    ) -> Result<(Vec<Decision>, Vec<InputRead>), Busy> {
        if !set.is_slow_for(action, &subjects) {
            return Ok(set.session(inquiry).decide_all(action, &subjects, until));
        }
        let set = Arc::clone(set);
        self.slow.run(move || set.session(inquiry).decide_all(action, &subjects, until)).await
    }

    /// Where policies are loaded from.
    #[must_use]
    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }
}

/// Makes a component of a core module that carries the contract's description, as a Rust guest's build leaves it.
///
/// # Errors
///
/// In words for the author.
pub fn componentize(core_module: &[u8]) -> Result<Vec<u8>, String> {
    wit_component::ComponentEncoder::default()
        .validate(true)
        .module(core_module)
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| format!("{error:#}"))
}
