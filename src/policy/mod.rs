//! Decisions: policies loaded from disk as WebAssembly components, asked path by path. The only module that names the
//! WebAssembly runtime.
//!
//! Anything but a well-formed `allow` is a denial; there is no setting that opens on failure. A guest's instance lives
//! for one request and sees what `wit/policy.wit` offers, never a value.

mod description;
mod guest;
mod host;
mod limits;
mod manifest;
mod session;
mod set;
mod snapshot;
mod stats;

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use wasmtime::Engine;

pub use description::{Description, ModuleKind, describe};
pub use guest::Failure;
pub use host::{Inquiry, Subject};
pub use manifest::{Mode, is_name as is_policy_name};
pub use session::{Opinion, Session};
pub use set::{Module, PolicySet, Rejected};
pub use stats::{OUTCOMES, Stats};

use crate::domain::Timestamp;

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
        Ok(Self { directory, current: ArcSwap::from_pointee(first), _engine: engine })
    }

    /// The generation in force. A request asks once and keeps what it got.
    #[must_use]
    pub fn current(&self) -> Arc<PolicySet> {
        self.current.load_full()
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
