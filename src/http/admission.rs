//! How many requests are worked on at one time. Who finds all places taken waits a little, as long as few others do, and is
//! turned away else: an answer that comes too late to be of use only keeps the others waiting.

use std::{sync::Arc, thread, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// How long a request waits for a place.
const PATIENCE: Duration = Duration::from_millis(100);
/// How many places there are for each processor: enough that some wait for the disk while others are worked on.
const FOR_EACH_PROCESSOR: usize = 32;
const AT_LEAST: usize = 64;

/// The places, and the queue for them: as many may wait as there are places.
pub struct Places {
    free: Arc<Semaphore>,
    queue: Semaphore,
}

/// A place that is taken until this is dropped.
#[expect(dead_code, reason = "held, not used")]
pub struct Place(OwnedSemaphorePermit);

impl Places {
    /// So many places; with 0, as many as the processors can make use of.
    pub fn new(number: usize) -> Self {
        let usual = || thread::available_parallelism().map_or(1, usize::from) * FOR_EACH_PROCESSOR;
        let number = if number == 0 { usual().max(AT_LEAST) } else { number };
        Self { free: Arc::new(Semaphore::new(number)), queue: Semaphore::new(number) }
    }

    /// Whether as many wait as may wait: who comes now would be turned away.
    pub fn are_crowded(&self) -> bool {
        self.queue.available_permits() == 0
    }

    /// A place, as soon as there is one; first come, first served. None where that takes too long, or too many wait.
    pub async fn take(&self) -> Option<Place> {
        if let Ok(place) = Arc::clone(&self.free).try_acquire_owned() {
            return Some(Place(place));
        }
        let _waiting = self.queue.try_acquire().ok()?;
        timeout(PATIENCE, Arc::clone(&self.free).acquire_owned()).await.ok()?.ok().map(Place)
    }
}
