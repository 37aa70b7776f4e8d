//! The newest versions of secrets as they are stored, encrypted, in memory: for a database that no other server writes.
//!
//! A record is here only while it is what the database holds. Before a change can be committed, its record is taken out
//! and kept out until the commit is over, which may bring the new one; what was read from the database meanwhile is not
//! taken in. So whoever finds all records of a question here at once has one snapshot, as from the database.

use std::{
    collections::HashSet,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use quick_cache::{Equivalent, Weighter, sync::Cache};

use super::Wanted;
use crate::domain::{Record, SecretPath, TenantId};

/// How many groups of places are told apart when a change is remembered.
const GROUPS: usize = 4_096;
/// What a record takes beside its texts and its value, in bytes: itself, its key here, the allocator's and the map's own.
const OVERHEAD: usize = 680;

/// The records.
pub struct RecordCache {
    records: Cache<Place, Arc<Record>, Weight>,
    changes: RwLock<Changes>,
    hasher: RandomState,
}

/// When what was changed, in a time that counts beginnings and ends of changes.
struct Changes {
    now: u64,
    /// When each group of places was last changed, and when any might have been.
    group: Vec<u64>,
    all: u64,
    /// What is being changed: these groups, and of them these more than once; or nobody knows what.
    going_on: HashSet<usize>,
    repeated: HashSet<usize>,
    unknown: bool,
}

/// The time at which records were looked for.
#[derive(Clone, Copy)]
pub struct LookedAt(u64);

impl RecordCache {
    /// Room for records of about so many bytes altogether.
    pub fn new(bytes: u64) -> Self {
        let records = usize::try_from(bytes).unwrap_or(usize::MAX) / 1_024;
        let changes = Changes {
            now: 0,
            group: vec![0; GROUPS],
            all: 0,
            going_on: HashSet::new(),
            repeated: HashSet::new(),
            unknown: false,
        };
        Self {
            records: Cache::with_weighter(records, bytes, Weight),
            changes: RwLock::new(changes),
            hasher: RandomState::new(),
        }
    }

    /// What is here of what is wanted, all of it as it was at one moment. Only newest versions are here.
    pub fn look(&self, tenant: &TenantId, wanted: &[Wanted]) -> (LookedAt, Vec<Option<Arc<Record>>>) {
        let changes = self.changes();
        let find = |(path, version): &Wanted| match version {
            Some(_) => None,
            None => self.records.get(&At(tenant, path)),
        };
        (LookedAt(changes.now), wanted.iter().map(find).collect())
    }

    /// Takes in what the database held at some moment after the look, unless it was changed since. False where something
    /// that was found by that look was changed since: it and the others need not be of one moment.
    pub fn keep<'a>(
        &self,
        looked_at: LookedAt,
        tenant: &TenantId,
        mut found: impl Iterator<Item = &'a SecretPath>,
        fetched: impl Iterator<Item = (&'a SecretPath, &'a Arc<Record>)>,
    ) -> bool {
        let changes = self.changes();
        let unchanged = |path: &SecretPath| changes.are_none_since(looked_at, self.group(tenant, path));
        for (path, record) in fetched.filter(|(path, _)| unchanged(path)) {
            self.records.insert(Place(tenant.clone(), path.clone()), Arc::clone(record));
        }
        found.all(unchanged)
    }

    /// Takes a record out.
    pub fn forget(&self, tenant: &TenantId, path: &SecretPath) {
        self.records.remove(&At(tenant, path));
    }

    /// Takes out what is about to be changed. To be called when no earlier change can still be committed, and before
    /// these can be.
    pub fn begin(&self, touched: &[(&TenantId, &SecretPath)]) {
        let mut changes = self.changes_mut();
        if std::mem::take(&mut changes.unknown) {
            changes.now += 1;
            changes.all = changes.now;
        }
        for (tenant, path) in touched {
            let group = self.group(tenant, path);
            if !changes.going_on.insert(group) {
                changes.repeated.insert(group);
            }
            self.records.remove(&At(tenant, path));
        }
    }

    /// The changes that were begun are committed, or will never be. Takes in what they wrote, where each is the only change
    /// of its secret (and of its group of places, by which secrets are told apart here).
    pub fn end(&self, written: Vec<(TenantId, Arc<Record>)>) {
        let mut changes = self.changes_mut();
        changes.now += 1;
        let now = changes.now;
        for group in std::mem::take(&mut changes.going_on) {
            if let Some(changed) = changes.group.get_mut(group) {
                *changed = now;
            }
        }
        let repeated = std::mem::take(&mut changes.repeated);
        for (tenant, record) in written {
            if !repeated.contains(&self.group(&tenant, &record.head.path)) {
                self.records.insert(Place(tenant, record.head.path.clone()), record);
            }
        }
    }

    /// Nobody knows whether the changes that were begun are committed, or will be: nothing is kept here until others begin.
    pub fn lose(&self) {
        let mut changes = self.changes_mut();
        changes.now += 1;
        changes.going_on.clear();
        changes.repeated.clear();
        changes.unknown = true;
        self.records.clear();
    }

    fn group(&self, tenant: &TenantId, path: &SecretPath) -> usize {
        let hash = self.hasher.hash_one(At(tenant, path));
        usize::try_from(hash % GROUPS as u64).unwrap_or_default()
    }

    fn changes(&self) -> RwLockReadGuard<'_, Changes> {
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changes_mut(&self) -> RwLockWriteGuard<'_, Changes> {
        self.changes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Changes {
    fn are_none_since(&self, looked_at: LookedAt, group: usize) -> bool {
        let changed = self.group.get(group).copied().unwrap_or(u64::MAX).max(self.all);
        !self.unknown && !self.going_on.contains(&group) && changed <= looked_at.0
    }
}

/// Where a secret is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Place(pub TenantId, pub SecretPath);

/// The same, to look for it.
#[derive(Hash)]
pub struct At<'a>(pub &'a TenantId, pub &'a SecretPath);

impl Equivalent<Place> for At<'_> {
    fn equivalent(&self, place: &Place) -> bool {
        *self.0 == place.0 && *self.1 == place.1
    }
}

/// Weighs a record by its bytes.
#[derive(Clone)]
pub struct Weight;

impl Weighter<Place, Arc<Record>> for Weight {
    fn weight(&self, _: &Place, record: &Arc<Record>) -> u64 {
        bytes_of(record)
    }
}

/// About how many bytes a record takes.
pub fn bytes_of(record: &Record) -> u64 {
    let head = &record.head;
    let version = record.version.as_ref();
    let sealed = version.and_then(|version| version.sealed.as_ref());
    let texts =
        2 * head.path.as_str().len() + head.metadata.as_str().len() + head.created_by.len() + head.updated_by.len();
    let value = version.map_or(0, |version| version.created_by.len())
        + sealed.map_or(0, |sealed| sealed.wrapped_key.len() + sealed.ciphertext.len());
    (OVERHEAD + texts + value) as u64
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::{Head, MetadataText, SecretType, Timestamp, Version};

    const PATHS: usize = 6;

    pub fn tenant() -> TenantId {
        TenantId::parse("acme").unwrap()
    }

    pub fn path(number: usize) -> SecretPath {
        SecretPath::parse(&format!("p{number}")).unwrap()
    }

    pub fn record(number: usize, version: i64) -> Arc<Record> {
        let head = Head {
            path: path(number),
            latest: Version::new(version).unwrap(),
            secret_type: SecretType::default(),
            metadata: MetadataText::default(),
            created_at: Timestamp::default(),
            created_by: String::new(),
            updated_at: Timestamp::default(),
            updated_by: String::new(),
            expires_at: None,
            deleted: None,
            max_versions: 10,
        };
        Arc::new(Record { head, version: None })
    }

    /// A database of versions, a reader who is between its steps, and a writer who is between its steps.
    struct Play {
        cache: RecordCache,
        database: [i64; PATHS],
        readers: Vec<Reader>,
        changing: Vec<usize>,
        committed: bool,
        /// A commit that nobody waits for any more, and that may still come.
        ghost: Vec<usize>,
        dice: u64,
        whole_answers: usize,
        mixed_answers: usize,
    }

    struct Reader {
        looked_at: LookedAt,
        wanted: Vec<usize>,
        found: Vec<Option<Arc<Record>>>,
        fetched: Option<[i64; PATHS]>,
    }

    impl Play {
        fn below(&mut self, end: usize) -> usize {
            self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(self.dice >> 33).unwrap() % end
        }

        fn some_paths(&mut self) -> Vec<usize> {
            (0..PATHS).filter(|_| self.below(2) == 0).collect()
        }

        fn commit(&mut self, paths: &[usize]) {
            for path in paths {
                self.database[*path] += 1;
            }
        }

        /// What these changes wrote, one after the other: as far as they tell.
        fn written(&mut self, changed: &[usize]) -> Vec<(TenantId, Arc<Record>)> {
            let mut now = self.database;
            for path in changed {
                now[*path] -= 1;
            }
            let mut written = Vec::new();
            for path in changed {
                now[*path] += 1;
                if self.below(2) == 0 {
                    written.push((tenant(), record(*path, now[*path])));
                }
            }
            written
        }

        fn look(&mut self) {
            let wanted = self.some_paths();
            let places: Vec<Wanted> = wanted.iter().map(|number| (path(*number), None)).collect();
            let (looked_at, found) = self.cache.look(&tenant(), &places);
            if found.iter().all(Option::is_some) {
                Self::assert_of(&wanted, &found, &self.database);
                self.whole_answers += usize::from(!wanted.is_empty());
            }
            self.readers.push(Reader { looked_at, wanted, found, fetched: None });
        }

        fn assert_of(wanted: &[usize], found: &[Option<Arc<Record>>], moment: &[i64; PATHS]) {
            for (number, found) in wanted.iter().zip(found) {
                let Some(record) = found else { continue };
                assert_eq!(record.head.latest.get(), moment[*number], "path {number} of {wanted:?}");
            }
        }

        fn read_on(&mut self) {
            if self.readers.is_empty() {
                return;
            }
            let one = self.below(self.readers.len());
            if self.readers[one].fetched.is_none() {
                self.readers[one].fetched = Some(self.database);
                return;
            }
            let Reader { looked_at, wanted, found, fetched } = self.readers.swap_remove(one);
            let fetched = fetched.unwrap();
            let places: Vec<SecretPath> = (0..PATHS).map(path).collect();
            let with = |is_found: bool| {
                wanted
                    .iter()
                    .zip(&found)
                    .filter(move |(_, found)| found.is_some() == is_found)
                    .map(|(number, _)| *number)
            };
            let missing: Vec<_> = with(false).map(|number| (number, record(number, fetched[number]))).collect();
            let missing = missing.iter().map(|(number, record)| (&places[*number], record));
            if self.cache.keep(looked_at, &tenant(), with(true).map(|number| &places[number]), missing) {
                Self::assert_of(&wanted, &found, &fetched);
                self.mixed_answers += 1;
            }
        }

        fn write_on(&mut self) {
            if self.changing.is_empty() {
                let mut paths = self.some_paths();
                if self.below(4) == 0 {
                    paths.extend(self.some_paths());
                }
                // The database lets this transaction begin when the one before is over.
                let ghost = std::mem::take(&mut self.ghost);
                if self.below(2) == 0 {
                    self.commit(&ghost);
                }
                let places: Vec<_> = paths.iter().map(|number| path(*number)).collect();
                let tenant = tenant();
                let touched: Vec<_> = places.iter().map(|place| (&tenant, place)).collect();
                self.cache.begin(&touched);
                self.changing = paths;
                return;
            }
            match self.below(8) {
                0 => {
                    let changing = std::mem::take(&mut self.changing);
                    if !std::mem::take(&mut self.committed) {
                        self.ghost = changing;
                    }
                    self.cache.lose();
                }
                1..5 if !self.committed => {
                    let changing = self.changing.clone();
                    self.commit(&changing);
                    self.committed = true;
                }
                _ => {
                    let changed = std::mem::take(&mut self.changing);
                    let committed = std::mem::take(&mut self.committed);
                    let written = if committed { self.written(&changed) } else { Vec::new() };
                    self.cache.end(written);
                }
            }
        }
    }

    #[test]
    fn what_is_here_is_what_the_database_holds() {
        let mut play = Play {
            cache: RecordCache::new(1 << 20),
            database: [1; PATHS],
            readers: Vec::new(),
            changing: Vec::new(),
            committed: false,
            ghost: Vec::new(),
            dice: 1,
            whole_answers: 0,
            mixed_answers: 0,
        };
        for _ in 0..200_000 {
            match play.below(16) {
                0..4 => play.look(),
                4..15 => play.read_on(),
                _ => play.write_on(),
            }
            if !play.ghost.is_empty() && play.below(20) == 0 {
                let ghost = std::mem::take(&mut play.ghost);
                play.commit(&ghost);
            }
        }
        assert!(play.whole_answers > 1_000, "{}", play.whole_answers);
        assert!(play.mixed_answers > 1_000, "{}", play.mixed_answers);
    }

    #[test]
    fn it_holds_no_more_than_it_has_room_for() {
        let cache = RecordCache::new(64 * 1_024);
        for number in 0..1_000 {
            let (looked_at, _) = cache.look(&tenant(), &[(path(number), None)]);
            assert!(cache.keep(
                looked_at,
                &tenant(),
                [].into_iter(),
                [(&path(number), &record(number, 1))].into_iter()
            ));
        }
        assert!(cache.records.weight() <= 64 * 1_024 && cache.records.len() > 20, "{}", cache.records.len());
    }

    #[test]
    fn a_version_that_is_named_is_not_here() {
        let cache = RecordCache::new(64 * 1_024);
        let (looked_at, _) = cache.look(&tenant(), &[]);
        cache.keep(looked_at, &tenant(), [].into_iter(), [(&path(1), &record(1, 1))].into_iter());
        let (_, found) = cache.look(&tenant(), &[(path(1), Some(Version::FIRST)), (path(1), None)]);
        assert!(found[0].is_none() && found[1].is_some());
        let other = TenantId::parse("other").unwrap();
        assert!(cache.look(&other, &[(path(1), None)]).1[0].is_none());
    }
}
