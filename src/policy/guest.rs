//! One module: from bytes to something that can be instantiated, and one instance of it at work.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use wasmtime::{
    Engine, PoolConcurrencyLimitError, Store, Trap,
    component::{Component, HasSelf, Linker},
};

use super::{
    host::{GuestDecision, HostState, Inquiry, Policy, PolicyPre, Subject, TooManyQuestions},
    limits::{GuestLimits, Use, new_store, ticks},
    snapshot,
};
use crate::domain::{Action, InputRead};

/// Largest module file, in bytes.
pub const MAX_MODULE_BYTES: usize = 64 * 1024 * 1024;

/// Most of each thing in an answer, and most bytes of each text.
const REASON_BYTES: usize = 128;
const MESSAGE_BYTES: usize = 1_024;
const NAMES: usize = 64;
const NAME_BYTES: usize = 256;

/// How a guest can fail. Each is a denial, and each is counted by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// It trapped.
    Trap,
    /// It took too long.
    Deadline,
    /// It wanted more memory than it may have, or than there was.
    Memory,
    /// It answered, or asked for, more than may pass.
    Output,
    /// It answered something that the contract does not allow, or could not be instantiated.
    Malformed,
    /// It failed too often in this request to be asked again.
    GivenUp,
}

impl Failure {
    /// The word used in metrics, audit and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Output => "output",
            Self::Malformed => "malformed",
            Self::GivenUp => "given_up",
        }
    }
}

/// A configured module, compiled.
pub struct Template {
    engine: Engine,
    pre: PolicyPre<HostState>,
    limits: GuestLimits,
    /// The interfaces that the module imports: all that it can ever see.
    pub imports: Vec<String>,
}

/// A module that cannot be taken; every reason that was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Unfit(pub Vec<String>);

impl From<String> for Unfit {
    fn from(problem: String) -> Self {
        Self(vec![problem])
    }
}

/// Configures and snapshots a module, and compiles it to code that an engine of the same build can load.
///
/// # Errors
///
/// [`Unfit`] where it is no component of our world, or refuses its settings.
pub fn prepare(engine: &Engine, bytes: &[u8], settings: &str, limits: &GuestLimits) -> Result<Vec<u8>, Unfit> {
    let prepare = AssertUnwindSafe(|| {
        let configured = snapshot::configure(engine, bytes, settings, limits.clone())?;
        let serialized = compile(engine, &configured)?.serialize();
        serialized.map_err(|error| Unfit::from(format!("its code cannot be kept: {error:#}")))
    });
    let panicked = || Unfit::from("it is beyond the tools that take modules apart: they panic".to_owned());
    // The snapshot's tool panics at some valid modules; that is one module's problem, not the vault's.
    catch_unwind(prepare).unwrap_or_else(|_| Err(panicked()))
}

/// How often an instantiation is tried when a module is loaded.
const REHEARSALS: usize = 3;

impl Template {
    /// Makes a template of what [`prepare`] gave, by the interfaces that [`inspect`] found.
    ///
    /// # Errors
    ///
    /// [`Unfit`] where it cannot be linked or instantiated.
    pub fn new(
        engine: &Engine,
        component: &Component,
        imports: Vec<String>,
        limits: GuestLimits,
    ) -> Result<Self, Unfit> {
        let pre = linker(engine)
            .and_then(|linker| linker.instantiate_pre(component))
            .and_then(PolicyPre::new)
            .map_err(|error| Unfit::from(format!("it cannot be linked: {error:#}")))?;
        let template = Self { engine: engine.clone(), pre, limits, imports };
        template.rehearse()?;
        Ok(template)
    }

    /// Instantiates once, so that what can never be instantiated is refused now, not denied later. Tried again where it
    /// fails: a deadline is a matter of milliseconds, and a start on a busy machine must not lose its policies to one.
    fn rehearse(&self) -> Result<(), Unfit> {
        let tried = (0..REHEARSALS).map(|_| {
            let mut store = new_store(&self.engine, HostState::unasked(self.limits.clone()), Use::Evaluate);
            self.pre.instantiate(&mut store).map(drop)
        });
        let mut failure = None;
        for outcome in tried {
            match outcome {
                Ok(()) => return Ok(()),
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), |error| Err(Unfit::from(format!("it cannot be instantiated: {error:#}"))))
    }

    /// A fresh instance for one request.
    pub fn instantiate(&self, inquiry: Arc<Inquiry>) -> Result<Guest, Failure> {
        let mut store = new_store(&self.engine, HostState::asked(self.limits.clone(), inquiry), Use::Evaluate);
        match self.pre.instantiate(&mut store) {
            Ok(policy) => Ok(Guest { store, policy }),
            Err(error) => Err(classify(&error, &store)),
        }
    }
}

/// One instance. Lives as long as one request, and never longer.
pub struct Guest {
    store: Store<HostState>,
    policy: Policy,
}

/// A guest's answer, within all limits.
pub struct Answer {
    /// What it decided.
    pub decision: GuestDecision,
    /// What it asked about the secret.
    pub inputs: Vec<InputRead>,
    /// What it noted.
    pub notes: Vec<String>,
}

impl Guest {
    /// One question. After a failure the instance is of no more use.
    pub fn evaluate(&mut self, action: Action, subject: Subject) -> Result<Answer, Failure> {
        let path = subject.path.clone();
        self.store.data_mut().turn_to(subject);
        let limits = &mut self.store.data_mut().limits;
        limits.exhausted = false;
        let deadline = ticks(limits.deadline);
        self.store.set_epoch_deadline(deadline);
        let decision = self
            .policy
            .call_evaluate(&mut self.store, action.as_str(), path.as_str())
            .map_err(|error| classify(&error, &self.store))?;
        if !fits(&decision) {
            return Err(Failure::Output);
        }
        let (inputs, notes) = self.take_findings();
        Ok(Answer { decision, inputs, notes })
    }

    /// What it asked about the secret at hand, and what it noted: all that is left where it failed.
    pub fn take_findings(&mut self) -> (Vec<InputRead>, Vec<String>) {
        self.store.data_mut().take_findings()
    }

    /// The linear memory that it has taken so far, in bytes.
    pub fn memory_taken(&self) -> usize {
        self.store.data().limits.granted
    }

    /// What it asked about the request.
    pub fn request_inputs(&self) -> &[InputRead] {
        self.store.data().request_inputs()
    }
}

fn fits(decision: &GuestDecision) -> bool {
    let short = |names: &[String]| names.len() <= NAMES && names.iter().all(|name| name.len() <= NAME_BYTES);
    decision.reason.len() <= REASON_BYTES
        && decision.message.as_ref().is_none_or(|message| message.len() <= MESSAGE_BYTES)
        && short(&decision.rules)
        && decision.obligations.len() <= NAMES
        && decision.obligations.iter().all(|duty| duty.kind.len() <= NAME_BYTES && short(&duty.args))
}

/// What the runtime says when a guest hands over more than [`Store::set_hostcall_fuel`] allows. It has no public type
/// for that; the integration tests provoke it, so another wording would show there (and still be a denial).
const TOO_MUCH_COPIED: &str = "fuel allocated for hostcalls has been exhausted";

fn classify(error: &wasmtime::Error, store: &Store<HostState>) -> Failure {
    let exhausted = store.data().limits.exhausted;
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => Failure::Deadline,
        // A guest that is refused memory mostly gives up by a trap.
        Some(_) if exhausted => Failure::Memory,
        Some(_) => Failure::Trap,
        None if error.is::<TooManyQuestions>() => Failure::Output,
        None if error.root_cause().to_string().ends_with(TOO_MUCH_COPIED) => Failure::Output,
        None if exhausted => Failure::Memory,
        None if error.is::<PoolConcurrencyLimitError>() => {
            tracing::error!(%error, "no room for another policy guest: the access is denied");
            Failure::Memory
        }
        // Not the guest's code but what it handed over: pointers to nowhere, bad UTF-8, a case that does not exist.
        None => Failure::Malformed,
    }
}

pub(super) fn compile(engine: &Engine, bytes: &[u8]) -> Result<Component, Unfit> {
    Component::from_binary(engine, bytes).map_err(|error| Unfit::from(format!("it does not compile: {error:#}")))
}

fn linker(engine: &Engine) -> wasmtime::Result<Linker<HostState>> {
    let mut linker = Linker::new(engine);
    Policy::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    Ok(linker)
}
