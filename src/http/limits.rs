//! Rate limits: a token bucket for each identity and category, refilled continuously.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use quick_cache::sync::Cache;

use crate::domain::Timestamp;

/// How many buckets are remembered. One that is forgotten is full again.
const BUCKETS: usize = 100_000;

/// What a request draws on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Category {
    /// Secrets returned.
    Read,
    /// Writes, restores, rollbacks, metadata patches.
    Write,
    /// Deletes and destroys.
    Delete,
    /// Listings, metadata, versions.
    List,
    /// Batch reads.
    BatchRead,
    /// Batch metadata.
    BatchMetadata,
    /// Audit queries.
    AuditQuery,
    /// Audit exports.
    AuditExport,
    /// Everything about policies but their tests.
    PolicyOps,
    /// Dry runs.
    PolicyTest,
    /// Turning keys.
    Keys,
    /// `whoami`, and failed authentications by address.
    Auth,
}

impl Category {
    /// Every category, its word, and how much of it one identity has in a minute.
    pub const ALL: [(Self, &'static str, u32); 12] = [
        (Self::Read, "read", 1_000),
        (Self::Write, "write", 100),
        (Self::Delete, "delete", 100),
        (Self::List, "list", 100),
        (Self::BatchRead, "batch_read", 100),
        (Self::BatchMetadata, "batch_metadata", 100),
        (Self::AuditQuery, "audit_query", 50),
        (Self::AuditExport, "audit_export", 5),
        (Self::PolicyOps, "policy_ops", 50),
        (Self::PolicyTest, "policy_test", 200),
        (Self::Keys, "keys", 50),
        (Self::Auth, "auth", 300),
    ];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(category, ..)| *category == self).map_or("", |(_, word, _)| word)
    }
}

/// How a bucket stands after a request drew on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Units in a minute.
    pub limit: u32,
    /// Whole units left.
    pub remaining: u32,
    /// When the bucket is full again, in seconds since the Unix epoch.
    pub reset: i64,
}

/// Too little is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exhausted {
    /// How the bucket stands.
    pub quota: Quota,
    /// Seconds until there is enough, at least 1.
    pub retry_after: u64,
}

/// The buckets of all identities.
pub struct RateLimits {
    per_minute: BTreeMap<&'static str, u32>,
    buckets: Cache<(Arc<str>, Category), Arc<Mutex<Bucket>>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    units: f64,
    at: Timestamp,
}

impl RateLimits {
    /// Limits by category word; what is not named has its default, and `0` has none.
    #[must_use]
    pub fn new(overrides: &BTreeMap<String, u32>) -> Self {
        let limit = |word: &'static str, default| overrides.get(word).copied().unwrap_or(default);
        let per_minute = Category::ALL.iter().map(|&(_, word, default)| (word, limit(word, default))).collect();
        Self { per_minute, buckets: Cache::new(BUCKETS) }
    }

    /// Draws units; none is drawn where there are too few. `None`: the category is unlimited.
    ///
    /// # Errors
    ///
    /// [`Exhausted`] where there are too few.
    pub fn draw(
        &self,
        who: &Arc<str>,
        category: Category,
        units: u32,
        now: Timestamp,
    ) -> Result<Option<Quota>, Exhausted> {
        let Some(limit) = self.limit(category) else { return Ok(None) };
        self.with_bucket(who, category, now, |bucket| {
            let wanted = f64::from(units);
            if bucket.units < wanted {
                let missing = (wanted - bucket.units) / per_second(limit);
                let retry_after = Duration::from_secs_f64(missing.clamp(1.0, 3_600.0)).as_secs_f64().ceil();
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 3,600")]
                return Err(Exhausted { quota: bucket.quota(limit), retry_after: retry_after as u64 });
            }
            bucket.units -= wanted;
            Ok(Some(bucket.quota(limit)))
        })
    }

    /// Gives units back.
    pub fn give_back(&self, who: &Arc<str>, category: Category, units: u32, now: Timestamp) {
        if let Some(limit) = self.limit(category) {
            self.with_bucket(who, category, now, |bucket| {
                bucket.units = (bucket.units + f64::from(units)).min(f64::from(limit));
            });
        }
    }

    fn limit(&self, category: Category) -> Option<u32> {
        self.per_minute.get(category.as_str()).copied().filter(|limit| *limit > 0)
    }

    fn with_bucket<T>(
        &self,
        who: &Arc<str>,
        category: Category,
        now: Timestamp,
        act: impl FnOnce(&mut Bucket) -> T,
    ) -> T {
        let limit = self.limit(category).unwrap_or(u32::MAX);
        let full = || Arc::new(Mutex::new(Bucket { units: f64::from(limit), at: now }));
        let key = (Arc::clone(who), category);
        let bucket = self.buckets.get_or_insert_with(&key, || Ok::<_, std::convert::Infallible>(full()));
        let bucket = bucket.unwrap_or_else(|never| match never {});
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.refill(limit, now);
        act(&mut bucket)
    }
}

impl Bucket {
    fn refill(&mut self, limit: u32, now: Timestamp) {
        let gained = now.since(self.at).as_secs_f64() * per_second(limit);
        self.units = (self.units + gained).min(f64::from(limit));
        self.at = self.at.max(now);
    }

    fn quota(&self, limit: u32) -> Quota {
        let until_full = (f64::from(limit) - self.units) / per_second(limit);
        let reset = self.at.plus(Duration::from_secs_f64(until_full.max(0.0)));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the limit")]
        let remaining = self.units as u32;
        Quota { limit, remaining, reset: reset.unix_seconds() + 1 }
    }
}

fn per_second(limit: u32) -> f64 {
    f64::from(limit) / 60.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000_000;

    fn limits(read: u32) -> RateLimits {
        RateLimits::new(&BTreeMap::from([("read".to_owned(), read)]))
    }

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    #[test]
    fn a_bucket_empties_and_fills_again() {
        let (limits, who): (_, Arc<str>) = (limits(60), "sa:a".into());
        assert_eq!(limits.draw(&who, Category::Read, 59, at(0)).unwrap().unwrap().remaining, 1);
        let refused = limits.draw(&who, Category::Read, 2, at(0)).unwrap_err();
        assert_eq!((refused.quota.remaining, refused.retry_after), (1, 1));
        assert!(limits.draw(&who, Category::Read, 2, at(MINUTE / 60)).is_ok());
        assert_eq!(limits.draw(&who, Category::Read, 1, at(10 * MINUTE)).unwrap().unwrap().remaining, 59);
    }

    #[test]
    fn identities_and_categories_do_not_share() {
        let limits = limits(1);
        let (a, b): (Arc<str>, Arc<str>) = ("sa:a".into(), "sa:b".into());
        assert!(limits.draw(&a, Category::Read, 1, at(0)).is_ok());
        assert!(limits.draw(&a, Category::Read, 1, at(0)).is_err());
        assert!(limits.draw(&b, Category::Read, 1, at(0)).is_ok());
        assert!(limits.draw(&a, Category::List, 1, at(0)).is_ok());
    }

    #[test]
    fn what_is_given_back_can_be_drawn_and_a_clock_that_turns_back_gives_nothing() {
        let (limits, who): (_, Arc<str>) = (limits(10), "sa:a".into());
        assert!(limits.draw(&who, Category::Read, 10, at(MINUTE)).is_ok());
        limits.give_back(&who, Category::Read, 4, at(MINUTE));
        assert_eq!(limits.draw(&who, Category::Read, 4, at(0)).unwrap().unwrap().remaining, 0);
        assert!(limits.draw(&who, Category::Read, 1, at(0)).is_err());
    }

    #[test]
    fn zero_is_no_limit() {
        let (limits, who): (_, Arc<str>) = (limits(0), "sa:a".into());
        assert_eq!(limits.draw(&who, Category::Read, 1_000_000, at(0)), Ok(None));
    }
}
