//! How many requests are worked on at one time. Who finds all places taken waits a little, as long as few others do, and is
//! turned away else: an answer that comes too late to be of use only keeps the others waiting.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// How long a request waits for a place.
const PATIENCE: Duration = Duration::from_millis(100);
/// How many places there are for each processor: enough that some wait for the disk while others are worked on.
const FOR_EACH_PROCESSOR: usize = 32;
const AT_LEAST: usize = 64;

/// The places, and how many wait for one: as many as there are places, at most.
pub struct Places {
    free: Arc<Semaphore>,
    number: usize,
    waiting: AtomicUsize,
}

/// A place that is taken until this is dropped.
#[expect(dead_code, reason = "held, not used")]
pub struct Place(OwnedSemaphorePermit);

/// Somebody who waits, until this is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Places {
    /// So many places; with 0, as many as the processors can make use of.
    pub fn new(number: usize) -> Self {
        let usual = || thread::available_parallelism().map_or(1, usize::from) * FOR_EACH_PROCESSOR;
        let number = if number == 0 { usual().max(AT_LEAST) } else { number };
        Self { free: Arc::new(Semaphore::new(number)), number, waiting: AtomicUsize::new(0) }
    }

    /// Whether as many wait as may wait: who comes now would be turned away.
    pub fn are_crowded(&self) -> bool {
        self.waiting.load(Relaxed) >= self.number
    }

    /// A place, as soon as there is one; first come, first served. None where that takes too long, or too many wait.
    pub async fn take(&self) -> Option<Place> {
        if let Ok(place) = Arc::clone(&self.free).try_acquire_owned() {
            return Some(Place(place));
        }
        if self.are_crowded() {
            return None;
        }
        let _waiting = Waiting::begin(&self.waiting);
        timeout(PATIENCE, Arc::clone(&self.free).acquire_owned()).await.ok()?.ok().map(Place)
    }
}

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
