//! How many requests are worked on at one time. Who finds all places taken waits a little, as long as few others do, and is
//! turned away else: an answer that comes too late to be of use only keeps the others waiting.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long a request waits for a place.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long those who are turned away are kept waiting for the word at least, where they are many, and over how much more
/// they are spread. The further apart they come back, the fewer are there at one time; but the first are back before those
/// who were let in meanwhile leave the processors idle.
const SHORTEST: Duration = Duration::from_millis(100);
const SPREAD: Duration = Duration::from_millis(3_900);
/// In how many steps the time between the two is gone through, and by how many at a time: some, however few come together.
const STEPS: u32 = 256;
const STRIDE: usize = 97;
/// The time in which they are counted.
const COUNTED: Duration = Duration::from_secs(1);
/// Of how many connections one at most may be kept waiting: the others are for those who find a place, and for the operator.
const KEPT_WAITING: usize = 2;
/// How many places there are for each processor: enough that some wait for the disk while others are worked on.
const FOR_EACH_PROCESSOR: usize = 32;
const AT_LEAST: usize = 64;

/// The places, and the queue for them: as many may wait as there are places.
pub struct Places {
    number: usize,
    free: Arc<Semaphore>,
    queue: Semaphore,
    turned_away: Mutex<TurnedAway>,
    kept_waiting: Semaphore,
    closing: CancellationToken,
}

/// How many were turned away since a moment.
struct TurnedAway {
    since: Instant,
    count: usize,
}

/// A place that is taken until this is dropped.
#[expect(dead_code, reason = "held, not used")]
pub struct Place(OwnedSemaphorePermit);

impl Places {
    /// So many places; with 0, as many as the processors can make use of. Nobody is kept waiting once `closing` is cancelled.
    pub fn new(number: usize, max_connections: usize, closing: CancellationToken) -> Self {
        let usual = || thread::available_parallelism().map_or(1, usize::from) * FOR_EACH_PROCESSOR;
        let number = if number == 0 { usual().max(AT_LEAST) } else { number };
        Self {
            number,
            free: Arc::new(Semaphore::new(number)),
            queue: Semaphore::new(number),
            turned_away: Mutex::new(TurnedAway { since: Instant::now(), count: 0 }),
            kept_waiting: Semaphore::new((max_connections / KEPT_WAITING).min(Semaphore::MAX_PERMITS)),
            closing,
        }
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

    /// Waits until somebody may hear that there is no place. In a second, as many as there are places hear it at once: who
    /// asks again without waiting would keep the processors busy with nothing else.
    pub async fn turn_away(&self) {
        let Some(many) = self.turned_away_before().checked_sub(self.number) else { return };
        if let Ok(_kept) = self.kept_waiting.try_acquire() {
            let step = u32::try_from(many.wrapping_mul(STRIDE) % STEPS as usize).unwrap_or_default();
            self.closing.run_until_cancelled(sleep(SHORTEST + SPREAD * step / STEPS)).await;
        }
    }

    /// How many were turned away in this second before.
    fn turned_away_before(&self) -> usize {
        let mut turned_away = self.turned_away.lock().unwrap_or_else(PoisonError::into_inner);
        if turned_away.since.elapsed() >= COUNTED {
            *turned_away = TurnedAway { since: Instant::now(), count: 0 };
        }
        turned_away.count += 1;
        turned_away.count - 1
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    const MANY: usize = 1_000;

    /// When many hear that there is no place.
    async fn heard(places: Places) -> Vec<Duration> {
        let (places, begun, mut all) = (Arc::new(places), Instant::now(), JoinSet::new());
        for _ in 0..MANY {
            let places = Arc::clone(&places);
            all.spawn(async move {
                places.turn_away().await;
                begun.elapsed()
            });
        }
        all.join_all().await
    }

    #[tokio::test(start_paused = true)]
    async fn many_who_are_turned_away_hear_it_spread_evenly() {
        let heard = heard(Places::new(16, 10 * MANY, CancellationToken::new())).await;
        assert_eq!(heard.iter().filter(|after| after.is_zero()).count(), 16);
        for eighth in 0..8 {
            let part = SHORTEST + SPREAD * eighth / 8..SHORTEST + SPREAD * (eighth + 1) / 8;
            let count = heard.iter().filter(|after| part.contains(*after)).count();
            assert!((MANY / 9..MANY / 7).contains(&count), "{count} in {part:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_half_of_the_connections_are_kept_waiting() {
        let heard = heard(Places::new(1, 200, CancellationToken::new())).await;
        assert_eq!(heard.iter().filter(|after| !after.is_zero()).count(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_kept_waiting_by_a_server_that_closes() {
        let closing = CancellationToken::new();
        let places = Places::new(1, 10 * MANY, closing.clone());
        let (heard, ()) = tokio::join!(heard(places), async {
            sleep(SHORTEST / 2).await;
            closing.cancel();
        });
        assert!(heard.iter().all(|after| *after < SHORTEST), "{:?}", heard.iter().max());
    }
}
