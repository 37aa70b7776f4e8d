//! Where slow modules run: apart from the threads that serve requests, on few threads that yield to all others.
//!
//! A guest that takes long holds its thread for all that time. Modules are quick as a rule, and quick ones are asked
//! where the request is served; one that was seen to be slow is asked here, so that it holds up nobody else.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// A call that works for this long is a long one.
pub const LONG: Duration = Duration::from_millis(5);
/// A module that had a long call is slow until it had so many others, or for so long.
const QUICK_CALLS: u32 = 1_000;
const SLOW_FOR: Duration = Duration::from_mins(1);
/// The longest that a thread rests after a request.
const LONGEST_REST: Duration = Duration::from_millis(100);
/// How long a request waits for a thread, and how many requests to each thread may wait.
const PATIENCE: Duration = Duration::from_secs(2);
const WAITING: usize = 64;
/// How far the threads stand back, in steps of `nice`.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// How many threads slow modules have.
pub fn threads() -> usize {
    (thread::available_parallelism().map_or(1, usize::from) / 2).max(1)
}

/// The time that this thread has worked so far; a thread that has to wait for a processor does not.
pub fn worked() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Whether a module is quick, as its calls of late were.
#[derive(Debug)]
pub struct Pace {
    since: Instant,
    /// When the last long call was, in milliseconds after `since`.
    long_at: AtomicU64,
    /// How many quick calls are missing until it is forgotten.
    missing: AtomicU32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { since: Instant::now(), long_at: AtomicU64::new(0), missing: AtomicU32::new(0) }
    }
}

impl Pace {
    /// Takes note of a call that was a long one, or was not.
    pub fn called(&self, long: bool) {
        if long {
            self.long_at.store(self.millis(), Relaxed);
            self.missing.store(QUICK_CALLS, Relaxed);
        } else if self.missing.load(Relaxed) > 0 {
            self.missing.fetch_update(Relaxed, Relaxed, |missing| missing.checked_sub(1)).ok();
        }
    }

    /// Whether it is better asked where it holds up nobody.
    pub fn is_slow(&self) -> bool {
        self.missing.load(Relaxed) > 0
            && u128::from(self.millis().saturating_sub(self.long_at.load(Relaxed))) < SLOW_FOR.as_millis()
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// There is no thread for this, and there are too many before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many requests wait for slow policies")]
pub struct Busy;

type Job = Box<dyn FnOnce() + Send>;

/// The threads for slow modules, and the requests that wait for one.
pub struct Lane {
    /// A place for each request that runs or waits.
    places: Arc<Semaphore>,
    /// A turn for each thread.
    turns: Arc<Semaphore>,
    jobs: mpsc::Sender<Job>,
}

impl Lane {
    /// Starts its threads. They end with it.
    ///
    /// # Errors
    ///
    /// Where the system has no more threads.
    pub fn start(threads: usize) -> std::io::Result<Self> {
        let (jobs, work) = mpsc::channel::<Job>();
        let work = Arc::new(Mutex::new(work));
        for _ in 0..threads {
            let work = Arc::clone(&work);
            thread::Builder::new().name("slow-policies".into()).spawn(move || serve(&work))?;
        }
        let turns = Arc::new(Semaphore::new(threads));
        Ok(Self { places: Arc::new(Semaphore::new(threads * (1 + WAITING))), turns, jobs })
    }

    /// Has something done on one of the threads, which rests afterwards for as long as the work says: whoever asks for
    /// what cannot end must not keep a processor busy for good.
    ///
    /// # Errors
    ///
    /// [`Busy`] where too many wait already, or no thread was free in time.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> (T, Duration) + Send + 'static,
    ) -> Result<T, Busy> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Busy)?;
        let waiting = tokio::time::timeout(PATIENCE, Arc::clone(&self.turns).acquire_owned());
        let turn = waiting.await.map_err(|_| Busy)?.map_err(|_| Busy)?;
        let (answer, answered) = oneshot::channel();
        let span = tracing::Span::current();
        // Whoever asked may be gone before the answer is there; the thread is taken until then nevertheless.
        let held: (OwnedSemaphorePermit, OwnedSemaphorePermit) = (place, turn);
        let job = move || {
            let Ok((done, rest)) = catch_unwind(AssertUnwindSafe(|| span.in_scope(work))) else { return };
            let resting = (!rest.is_zero()).then_some(held);
            answer.send(done).ok();
            if resting.is_some() {
                thread::sleep(rest.min(LONGEST_REST));
            }
        };
        self.jobs.send(Box::new(job)).map_err(|_| Busy)?;
        answered.await.map_err(|_| Busy)
    }
}

fn serve(work: &Mutex<mpsc::Receiver<Job>>) {
    // On Linux alone this is about a thread; elsewhere all of the program would stand back.
    #[cfg(target_os = "linux")]
    if let Err(error) = stand_back() {
        tracing::warn!(%error, "slow policies run with the priority of all others");
    }
    loop {
        let job = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        job();
    }
}

#[cfg(target_os = "linux")]
fn stand_back() -> rustix::io::Result<()> {
    let before = rustix::process::getpriority_process(None)?;
    rustix::process::setpriority_process(None, before + NICENESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_call_is_forgotten_after_quick_ones() {
        let pace = Pace::default();
        pace.called(false);
        assert!(!pace.is_slow());
        pace.called(true);
        for _ in 0..QUICK_CALLS {
            assert!(pace.is_slow());
            pace.called(false);
        }
        assert!(!pace.is_slow());
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_thread_waits_a_while_and_not_in_a_crowd() {
        let lane = Arc::new(Lane::start(threads()).unwrap());
        assert_eq!(lane.run(|| (7, Duration::ZERO)).await, Ok(7));
        assert!(lane.run::<()>(|| panic!("on purpose")).await.is_err());
        assert_eq!(lane.run(|| (8, Duration::ZERO)).await, Ok(8), "a panic takes no thread away");
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..threads() * (1 + WAITING) {
            let (lane, released) = (Arc::clone(&lane), Arc::clone(&released));
            asking.spawn(
                async move { lane.run(move || (released.lock().unwrap().recv().is_err(), Duration::ZERO)).await },
            );
        }
        while lane.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let before = tokio::time::Instant::now();
        assert_eq!(lane.run(|| ((), Duration::ZERO)).await, Err(Busy), "a crowd waits already");
        assert_eq!(before.elapsed(), Duration::ZERO);
        tokio::time::sleep(PATIENCE * 2).await;
        drop(release);
        let answers = asking.join_all().await;
        assert_eq!(answers.iter().filter(|answer| **answer == Ok(true)).count(), threads());
        assert_eq!(lane.run(|| (9, Duration::ZERO)).await, Ok(9));
    }

    #[test]
    fn waiting_is_no_work() {
        let before = worked();
        thread::sleep(Duration::from_millis(20));
        assert!(worked().saturating_sub(before) < LONG);
    }
}
