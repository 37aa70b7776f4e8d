//! Decisions: policies loaded from disk as WebAssembly components, asked path by path. The only module that names the
//! WebAssembly runtime.
//!
//! Anything but a well-formed `allow` is a denial; there is no setting that opens on failure. A guest's instance lives
//! for one request and sees what `wit/policy.wit` offers, never a value.

mod bundle;
mod cache;
mod compiler;
mod explanation;
mod guest;
mod host;
mod inspection;
mod kept;
mod lane;
mod limits;
mod manifest;
mod measure;
mod reload;
mod replay;
mod scenario;
mod sealed;
mod session;
mod set;
mod snapshot;
mod stats;
mod trial;
mod vectors;
mod watch;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

pub use compiler::{Bounds, Compiler, THIS_PROGRAM, work};
pub use explanation::{Dissent, Explanation, JoinedFields};
pub use guest::Failure;
pub use host::{Inquiry, Subject};
pub use inspection::{Description, ModuleKind, describe};
pub use lane::Busy;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use manifest::parse as parse_manifest;
pub use manifest::{Mode, is_name as is_policy_name};
pub use measure::{Footprint, Timing};
pub use reload::{Candidate, Finding, RELOAD_OUTCOMES, Reload, ReloadOutcome, Report, Trigger};
pub use replay::{Access, Flip, Judgement, Outcome, PastEvent, Turn, Unjudged};
pub use scenario::{ContextFacts, PrincipalFacts, Problem, Scenario, SecretFacts};
pub use session::{Duty, Opinion, Session, Until};
pub use set::{Module, PolicySet};
pub use stats::{Disagreement, OUTCOMES, Stats};
pub use trial::{Trial, try_directory, try_module};
pub use watch::Watch;

use crate::domain::{Action, Decision, InputRead, Key, Timestamp};
use bundle::Bundle;
use cache::Loader;
use kept::Kept;
use lane::Lane;
use session::Round;

/// Most problems of a directory that are told, and the most bytes of each.
const TOLD: usize = 200;
const TOLD_BYTES: usize = 2_048;

/// Why there are no policies to be had.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// This machine cannot run guests.
    #[error("the WebAssembly engine cannot start: {0}")]
    Engine(String),
    /// The directory holds something that cannot be taken; every problem that was found, in words for people.
    #[error("the policies in {} cannot be loaded:{}", .directory.display(), bullets(.problems))]
    Rejected {
        /// The directory.
        directory: PathBuf,
        /// What is wrong with it.
        problems: Vec<String>,
    },
}

fn bullets(lines: &[String]) -> String {
    lines.iter().fold(String::new(), |text, line| text + "\n  - " + line)
}

/// Where policies come from, and what may be kept of them.
pub struct Sources {
    /// The policy directory.
    pub directory: PathBuf,
    /// Where modules are compiled.
    pub compiler: Compiler,
    /// Where compiled code and the last good generation are kept, and the key that authenticates them.
    pub memory: Option<(PathBuf, Key)>,
}

/// The policies in force: one pointer to the present generation, and the road to the next.
pub struct Policies {
    directory: PathBuf,
    loader: Loader,
    kept: Option<Kept>,
    current: ArcSwap<PolicySet>,
    /// Whoever has it may change the policies.
    turn: Arc<tokio::sync::Mutex<()>>,
    last: Mutex<Report>,
    reloads: [AtomicU64; RELOAD_OUTCOMES.len()],
    generations: Mutex<Vec<Weak<PolicySet>>>,
    /// Where slow modules are asked.
    slow: Lane,
    /// Where dry runs are made, so that none keeps a decision in earnest waiting.
    dry: Lane,
}

impl Policies {
    /// Starts the engine and puts the directory in force; where it is broken, the last good generation that was kept.
    ///
    /// # Errors
    ///
    /// [`PolicyError`] with every problem of the directory, where there is nothing to fall back on.
    pub fn open(sources: Sources, now: Timestamp) -> Result<Self, PolicyError> {
        let began = Instant::now();
        let Sources { directory, compiler, memory } = sources;
        let engine = limits::engine().map_err(|error| PolicyError::Engine(format!("{error:#}")))?;
        let memory = memory.as_ref().map(|(place, key)| (place.as_path(), key));
        let loader = Loader::new(engine, compiler, memory);
        let kept = memory.and_then(|(place, key)| Kept::open(place, key));
        let (Candidate { set: first, bundle }, problems) = first(&loader, kept.as_ref(), &directory, now)?;
        if first.modules.is_empty() {
            tracing::warn!(directory = %directory.display(), "no policies are in force: EVERY ACCESS IS DENIED");
        }
        let lane = |threads| Lane::start(threads).map_err(|error| PolicyError::Engine(error.to_string()));
        let (slow, dry) = (lane(lane::threads())?, lane(1)?);
        let outcome = if problems.is_empty() { ReloadOutcome::Loaded } else { ReloadOutcome::Rejected };
        let (generation, took) = (first.generation, began.elapsed());
        let first = Arc::new(first);
        let policies = Self {
            directory,
            loader,
            kept,
            generations: Mutex::new(vec![Arc::downgrade(&first)]),
            current: ArcSwap::new(first),
            turn: Arc::default(),
            last: Mutex::new(Report { at: now, trigger: Trigger::Start, outcome, problems, generation, took }),
            reloads: Default::default(),
            slow,
            dry,
        };
        if outcome == ReloadOutcome::Loaded && bundle.manifest.is_some() {
            policies.keep(generation, &bundle);
        }
        Ok(policies)
    }

    /// Loads a directory for its author: compiles in this process, keeps nothing.
    ///
    /// # Errors
    ///
    /// As [`Policies::open`].
    pub fn load(directory: PathBuf, now: Timestamp) -> Result<Self, PolicyError> {
        Self::open(Sources { directory, compiler: Compiler::Here, memory: None }, now)
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
        let slow = set.is_slow_for(action, &subjects);
        let mut round = Round::new(Session::new(Arc::clone(set), inquiry), action, subjects, until);
        // Where it takes longer than it should, the rest is for others to do.
        if !slow && round.go_on(lane::LONG) {
            return Ok(round.end());
        }
        let rest = move || {
            round.go_on(Duration::MAX);
            let late = round.late();
            (round.end(), late)
        };
        self.slow.run(rest).await
    }

    /// Tries a decision, told in full, and counted nowhere. It has a thread of its own, and keeps no decision in earnest waiting.
    ///
    /// # Errors
    ///
    /// As [`Policies::decide`].
    pub async fn explain(
        &self,
        set: &Arc<PolicySet>,
        inquiry: Inquiry,
        action: Action,
        subject: Subject,
    ) -> Result<Explanation, Busy> {
        let set = Arc::clone(set);
        self.dry.run(move || (Session::dry(&*set, inquiry).explain(action, &subject), Duration::ZERO)).await
    }

    /// What became of the last reload. As long as it was rejected, the directory holds something else than what serves.
    #[must_use]
    pub fn last_reload(&self) -> Report {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the policy directory, at the last look, held what is in force.
    #[must_use]
    pub fn is_up_to_date(&self) -> bool {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).outcome.is_up_to_date()
    }

    /// How often reloads ended so, since the start.
    pub fn reloads(&self) -> impl Iterator<Item = (ReloadOutcome, u64)> {
        RELOAD_OUTCOMES.into_iter().zip(self.reloads.iter().map(|count| count.load(Relaxed)))
    }

    /// How many generations are in memory: that in force, and those that requests still hold.
    #[must_use]
    pub fn live_generations(&self) -> usize {
        let known = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().filter(|generation| generation.strong_count() > 0).count()
    }

    fn install(&self, set: Arc<PolicySet>) {
        let mut known = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|generation| generation.strong_count() > 0);
        known.push(Arc::downgrade(&set));
        drop(known);
        self.current.store(set);
    }

    /// Keeps a good generation for the next start.
    fn keep(&self, generation: u64, bundle: &Bundle) {
        let Some(kept) = &self.kept else { return };
        if let Err(error) = kept.store(generation, bundle) {
            tracing::error!(%error, "this generation of policies cannot be kept: after a restart on a broken directory nothing serves");
            // What was kept before may permit what is forbidden by now.
            kept.forget();
        }
    }

    fn report(
        &self,
        trigger: Trigger,
        at: Timestamp,
        began: Instant,
        outcome: ReloadOutcome,
        problems: Vec<String>,
    ) -> Report {
        let generation = self.current.load().generation;
        let problems = problems.into_iter().take(TOLD).map(shortened).collect();
        let report = Report { at, trigger, outcome, problems, generation, took: began.elapsed() };
        if let Some((_, count)) = RELOAD_OUTCOMES.iter().zip(&self.reloads).find(|(known, _)| **known == outcome) {
            count.fetch_add(1, Relaxed);
        }
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&report);
        report
    }
}

fn shortened(mut problem: String) -> String {
    problem.truncate(problem.floor_char_boundary(TOLD_BYTES));
    problem
}

/// The first generation, with the directory's problems where it is the one that was kept.
fn first(
    loader: &Loader,
    kept: Option<&Kept>,
    directory: &Path,
    now: Timestamp,
) -> Result<(Candidate, Vec<String>), PolicyError> {
    let index = kept.and_then(Kept::index);
    let known = index.as_ref().map_or(0, |index| index.generation);
    let problems = match reload::look(loader, directory, None, known + 1, now) {
        Finding::Ready(mut candidate) => {
            // What served before the restart keeps its number.
            if index.is_some_and(|index| index.digest == candidate.bundle.digest) {
                candidate.set.generation = known;
            }
            return Ok((*candidate, Vec::new()));
        }
        Finding::Rejected(problems) => problems,
        Finding::Unchanged => Vec::new(),
    };
    let last_good = kept.zip(index).and_then(|(kept, index)| {
        let assemble = |bundle: Bundle| {
            let set = PolicySet::assemble(loader, &bundle, known, now)?;
            Ok(Candidate { set, bundle })
        };
        let told =
            |problems: &Vec<String>| tracing::error!(?problems, "the last good policies cannot be loaded either");
        kept.bundle(&index).and_then(assemble).inspect_err(told).ok()
    });
    match last_good {
        Some(candidate) => {
            let directory = directory.display();
            tracing::error!(%directory, ?problems, generation = known, "BROKEN POLICIES: the last good generation serves");
            Ok((candidate, problems))
        }
        None => Err(PolicyError::Rejected { directory: directory.to_owned(), problems }),
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
