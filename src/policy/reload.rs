//! The one road by which policies come into force. Whoever asks for it (a start, the watch, a signal, a request), one
//! reload runs at a time, and whatever fails leaves the old generation serving, untouched.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::OwnedMutexGuard;

use super::{Policies, bundle::Bundle, cache::Loader, manifest, set::PolicySet};
use crate::domain::Timestamp;

/// How often a directory is read anew when it changes while it is loaded.
const READINGS: usize = 3;

/// What set a reload off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The start of the server.
    Start,
    /// A change of the directory.
    Watch,
    /// The signal `SIGHUP`.
    Signal,
    /// `POST /v1/policies/reload`.
    Request,
}

impl Trigger {
    /// The word used in logs and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Watch => "watch",
            Self::Signal => "signal",
            Self::Request => "request",
        }
    }
}

/// How a reload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// A new generation is in force.
    Loaded,
    /// The directory holds what is in force already.
    Unchanged,
    /// The directory cannot be taken.
    Rejected,
    /// The directory is good, but what could not be put on record was not done.
    Unrecorded,
}

/// All outcomes, in the order of their numbers.
pub const RELOAD_OUTCOMES: [ReloadOutcome; 4] =
    [ReloadOutcome::Loaded, ReloadOutcome::Unchanged, ReloadOutcome::Rejected, ReloadOutcome::Unrecorded];

impl ReloadOutcome {
    /// The word used in logs, metrics and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Unchanged => "unchanged",
            Self::Rejected => "rejected",
            Self::Unrecorded => "unrecorded",
        }
    }

    /// Whether the directory holds what serves.
    #[must_use]
    pub const fn is_up_to_date(self) -> bool {
        matches!(self, Self::Loaded | Self::Unchanged)
    }
}

/// What became of a reload.
#[derive(Debug, Clone)]
pub struct Report {
    /// When it began.
    pub at: Timestamp,
    /// What set it off.
    pub trigger: Trigger,
    /// How it ended.
    pub outcome: ReloadOutcome,
    /// Everything that is wrong with the directory.
    pub problems: Vec<String>,
    /// The generation in force afterwards.
    pub generation: u64,
    /// How long it took.
    pub took: Duration,
}

/// A reload that has its turn and knows what it would do. Dropped, it does nothing.
pub struct Reload {
    policies: Arc<Policies>,
    trigger: Trigger,
    at: Timestamp,
    began: Instant,
    /// What was found.
    pub finding: Finding,
    _turn: OwnedMutexGuard<()>,
}

/// A generation that is not in force yet, and what it was made of.
pub struct Candidate {
    /// The generation.
    pub set: PolicySet,
    pub(super) bundle: Bundle,
}

/// What a look at the policy directory gave.
pub enum Finding {
    /// A generation that is ready to be put in force.
    Ready(Box<Candidate>),
    /// What is in force already.
    Unchanged,
    /// Something that cannot be taken, with everything that is wrong with it.
    Rejected(Vec<String>),
}

impl Policies {
    /// Waits for its turn, then reads, checks and compiles the directory, off the async workers.
    pub async fn reload(self: &Arc<Self>, trigger: Trigger, now: impl Fn() -> Timestamp) -> Reload {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let (at, began, policies) = (now(), Instant::now(), Arc::clone(self));
        let finding = tokio::task::spawn_blocking(move || {
            let current = policies.current();
            look(&policies.loader, &policies.directory, Some(&current), current.generation + 1, at)
        });
        let finding =
            finding.await.unwrap_or_else(|error| Finding::Rejected(vec![format!("the reload failed: {error}")]));
        Reload { policies: Arc::clone(self), trigger, at, began, finding, _turn: turn }
    }
}

impl Reload {
    /// Puts what was found in force, if it is good.
    pub async fn conclude(self) -> Report {
        let Finding::Ready(candidate) = self.finding else { return self.abandon() };
        let Candidate { set, bundle } = *candidate;
        let generation = set.generation;
        self.policies.install(Arc::new(set));
        let report = self.policies.report(self.trigger, self.at, self.began, ReloadOutcome::Loaded, Vec::new());
        let policies = Arc::clone(&self.policies);
        tokio::task::spawn_blocking(move || policies.keep(generation, &bundle)).await.ok();
        report
    }

    /// Leaves what is in force as it is. A good finding is left unused where it could not be put on record.
    #[must_use]
    pub fn abandon(self) -> Report {
        let (outcome, problems) = match self.finding {
            Finding::Ready(_) => (ReloadOutcome::Unrecorded, Vec::new()),
            Finding::Unchanged => (ReloadOutcome::Unchanged, Vec::new()),
            Finding::Rejected(problems) => (ReloadOutcome::Rejected, problems),
        };
        self.policies.report(self.trigger, self.at, self.began, outcome, problems)
    }
}

/// Reads a directory and makes a generation of it.
pub(super) fn look(
    loader: &Loader,
    directory: &Path,
    current: Option<&PolicySet>,
    generation: u64,
    now: Timestamp,
) -> Finding {
    for _ in 0..READINGS {
        let bundle = match Bundle::read(directory) {
            Ok(bundle) => bundle,
            Err(problems) => return Finding::Rejected(problems),
        };
        if current.is_some_and(|set| set.digest == bundle.digest) {
            return Finding::Unchanged;
        }
        if current.is_some() && bundle.manifest.is_none() {
            let place = directory.display();
            let problem = format!("there is no {} in {place} (an empty one would deny everything)", manifest::FILE);
            return Finding::Rejected(vec![problem]);
        }
        let assembled = PolicySet::assemble(loader, &bundle, generation, now);
        // What was half written when it was read is something else by now.
        if Bundle::read(directory).is_ok_and(|again| again.digest == bundle.digest) {
            let ready = |set| Finding::Ready(Box::new(Candidate { set, bundle }));
            return assembled.map_or_else(Finding::Rejected, ready);
        }
    }
    Finding::Rejected(vec!["its files change while they are read: a reload is wanted when they rest".to_owned()])
}
