//! What a module has done since it was loaded, for the metrics and `GET /v1/policies`. What every call adds is counted
//! without locks.

use std::{
    array,
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::lane::Pace;
use crate::domain::{Action, SecretPath, TenantId, Timestamp};

/// The outcomes that are counted apart, in the order of [`Stats::outcomes`].
pub const OUTCOMES: [&str; 9] =
    ["allow", "deny", "abstain", "trap", "deadline", "memory", "output", "malformed", "given_up"];
/// The outcome of a path that was denied without a call, since the module had failed too often.
const NOT_CALLED: &str = "given_up";
/// Buckets grow by a quarter: the error of a quantile is at most that. The last takes all that is longer.
const BUCKETS: usize = 96;

/// Disagreements that are remembered one by one.
const REMEMBERED: usize = 100;

/// An answer of a shadow module that differed from what was decided.
#[derive(Debug, Clone)]
pub struct Disagreement {
    /// When the request arrived.
    pub at: Timestamp,
    /// Whose secret it was about.
    pub tenant: TenantId,
    /// The request, as in the audit log.
    pub request_id: Arc<str>,
    /// What was asked for.
    pub action: Action,
    /// Where.
    pub path: SecretPath,
    /// What the module would have decided: `allow` or `deny`.
    pub would: &'static str,
}

/// Counters of one module.
#[derive(Debug)]
pub struct Stats {
    outcomes: [AtomicU64; OUTCOMES.len()],
    disagreements: AtomicU64,
    latest: Mutex<VecDeque<Disagreement>>,
    nanos: AtomicU64,
    durations: [AtomicU64; BUCKETS],
    pub(super) pace: Pace,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            outcomes: array::from_fn(|_| AtomicU64::new(0)),
            disagreements: AtomicU64::new(0),
            latest: Mutex::default(),
            nanos: AtomicU64::new(0),
            durations: array::from_fn(|_| AtomicU64::new(0)),
            pace: Pace::default(),
        }
    }
}

impl Stats {
    /// Counts one call of the guest.
    pub fn called(&self, outcome: &'static str, took: Duration) {
        let counted = OUTCOMES.iter().zip(&self.outcomes).find(|(word, _)| **word == outcome);
        if let Some((_, counter)) = counted {
            counter.fetch_add(1, Relaxed);
        }
        if outcome == NOT_CALLED {
            return;
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Relaxed);
        if let Some(bucket) = self.durations.get(bucket_of(nanos)) {
            bucket.fetch_add(1, Relaxed);
        }
    }

    /// Counts one answer of a shadow module that differs from what was decided.
    pub fn disagreed(&self, disagreement: Disagreement) {
        self.disagreements.fetch_add(1, Relaxed);
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.truncate(REMEMBERED - 1);
        latest.push_front(disagreement);
    }

    /// The last answers that differed, about this tenant's secrets, newest first.
    #[must_use]
    pub fn latest_disagreements(&self, tenant: &TenantId) -> Vec<Disagreement> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.iter().filter(|disagreement| disagreement.tenant == *tenant).cloned().collect()
    }

    /// How often each outcome was seen.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        OUTCOMES.into_iter().zip(self.outcomes.iter().map(|counter| counter.load(Relaxed)))
    }

    /// Calls of the guest.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.outcomes().filter(|(word, _)| *word != NOT_CALLED).map(|(_, count)| count).sum()
    }

    /// Calls that denied, failures included.
    #[must_use]
    pub fn denials(&self) -> u64 {
        self.outcomes()
            .filter(|(word, _)| !matches!(*word, "allow" | "abstain" | NOT_CALLED))
            .map(|(_, count)| count)
            .sum()
    }

    /// Answers of a shadow module that differed.
    #[must_use]
    pub fn disagreements(&self) -> u64 {
        self.disagreements.load(Relaxed)
    }

    /// All time spent in the guest.
    #[must_use]
    pub fn total_time(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Relaxed))
    }

    /// The time that this share of the calls stayed within, to a quarter; none without calls.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let counts: Vec<u64> = self.durations.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let rank = (total as f64 * share).max(1.0);
        let mut seen = 0;
        let bucket = counts.iter().position(|count| {
            seen += count;
            #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
            let reached = seen as f64 >= rank;
            total > 0 && reached
        })?;
        Some(Duration::from_nanos(upper_bound(bucket)))
    }
}

/// The bucket of a duration: the place of its highest bit, and the two bits below it.
fn bucket_of(nanos: u64) -> usize {
    let nanos = nanos.max(4);
    let magnitude = nanos.ilog2() - 2;
    let quarter = (nanos >> magnitude) & 3;
    let bucket = u64::from(magnitude) * 4 + quarter;
    usize::try_from(bucket).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

fn upper_bound(bucket: usize) -> u64 {
    let bucket = u64::try_from(bucket).unwrap_or(0);
    (bucket % 4 + 5) << (bucket / 4).min(60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_below_its_bound_and_within_a_quarter() {
        for nanos in (4..100_000).step_by(7) {
            let bound = upper_bound(bucket_of(nanos));
            assert!(nanos < bound && bound <= nanos + nanos / 4 + 1, "{nanos} {bound}");
        }
    }

    #[test]
    fn quantiles_and_counts() {
        let stats = Stats::default();
        assert_eq!(stats.quantile(0.5), None);
        for micros in 1..=100 {
            stats.called(if micros % 2 == 0 { "allow" } else { "deadline" }, Duration::from_micros(micros));
        }
        assert_eq!((stats.calls(), stats.denials()), (100, 50));
        let median = stats.quantile(0.5).unwrap().as_nanos();
        assert!((50_000..=62_500).contains(&median), "{median}");
    }
}
