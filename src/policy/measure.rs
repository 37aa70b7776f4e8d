//! What a generation of policies costs, step by step: for authors, and for the benches.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{
    guest::Failure,
    host::{Inquiry, Subject},
    set::{Module, PolicySet},
};
use crate::domain::Action;

/// How long a step takes, over many rounds.
#[derive(Debug, Clone, Serialize)]
pub struct Timing {
    /// The step.
    pub step: String,
    /// The module; none where it is all of them together, combined.
    pub module: Option<String>,
    /// Half of the rounds took at most this, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 rounds took at most this, in microseconds.
    pub p99_us: f64,
    /// The quickest round, in microseconds.
    pub best_us: f64,
}

/// How much a module's instance holds after its calls.
#[derive(Debug, Clone, Serialize)]
pub struct Footprint {
    /// The module.
    pub module: String,
    /// Linear memory, in bytes.
    pub memory_bytes: usize,
}

/// Sizes of a batch that are timed.
const BATCHES: [usize; 3] = [1, 10, 100];
/// Calls of each instance that are timed.
const CALLS: usize = 10;

impl PolicySet {
    /// Times each module by itself (a fresh instance, its first call, a further call) and batches through all of them,
    /// from the request's first question until its guests are gone. The questions are put in turn.
    ///
    /// # Errors
    ///
    /// The failure of a module that cannot be instantiated, by its name.
    pub fn measure(
        &self,
        inquiry: &Inquiry,
        questions: &[(Action, Subject)],
        rounds: usize,
    ) -> Result<(Vec<Timing>, Vec<Footprint>), (String, Failure)> {
        let (mut timings, mut footprints) = (Vec::new(), Vec::new());
        for module in &self.modules {
            let measured = module.measure(inquiry, questions, rounds);
            let (steps, footprint) = measured.map_err(|failure| (module.reference.name.clone(), failure))?;
            timings.extend(steps);
            footprints.push(footprint);
        }
        for size in BATCHES {
            let samples = (0..rounds).map(|_| timed(|| self.batch(inquiry, questions, size)).1).collect();
            timings.extend(summary(format!("a batch of {size}"), None, samples));
        }
        Ok((timings, footprints))
    }

    fn batch(&self, inquiry: &Inquiry, questions: &[(Action, Subject)], size: usize) {
        let mut session = self.session(inquiry.clone());
        for (action, subject) in questions.iter().cycle().take(size) {
            session.decide(*action, subject);
        }
    }
}

impl Module {
    fn measure(
        &self,
        inquiry: &Inquiry,
        questions: &[(Action, Subject)],
        rounds: usize,
    ) -> Result<(Vec<Timing>, Footprint), Failure> {
        let (mut fresh, mut first, mut further) = (Vec::new(), Vec::new(), Vec::new());
        let mut memory_bytes = 0;
        for _ in 0..rounds {
            let inquiry = inquiry.clone().into();
            let (guest, took) = timed(|| self.template.instantiate(inquiry));
            let mut guest = guest?;
            fresh.push(took);
            for (index, (action, subject)) in questions.iter().take(CALLS).enumerate() {
                let (answer, took) = timed(|| guest.evaluate(*action, subject.clone()));
                if index == 0 { &mut first } else { &mut further }.push(took);
                if answer.is_err() {
                    break;
                }
            }
            memory_bytes = memory_bytes.max(guest.memory_taken());
        }
        let name = &self.reference.name;
        let steps = [("a fresh instance", fresh), ("its first call", first), ("a further call", further)];
        let timings = steps.into_iter().filter_map(|(step, took)| summary(step.to_owned(), Some(name.clone()), took));
        Ok((timings.collect(), Footprint { module: name.clone(), memory_bytes }))
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed())
}

/// None where nothing was timed.
fn summary(step: String, module: Option<String>, mut samples: Vec<Duration>) -> Option<Timing> {
    samples.sort_unstable();
    let at = |rank: usize| samples.get(rank).map(|took| took.as_secs_f64() * 1e6);
    let (p50_us, p99_us, best_us) = (at(samples.len() / 2)?, at(samples.len() * 99 / 100)?, at(0)?);
    Some(Timing { step, module, p50_us, p99_us, best_us })
}
