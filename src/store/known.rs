//! The newest versions of secrets as they were stored, encrypted, in memory: for a database that other servers write, too.
//!
//! What is here may have been changed meanwhile. So it goes to the database by its stamp with every question, and is
//! answered with only where the database has nothing else to say: all that is answered is of one moment, the database's.

use std::sync::Arc;

use quick_cache::{Weighter, sync::Cache};

use super::{
    Stored, Wanted,
    cache::{At, Place, bytes_of},
    tables::Found,
};
use crate::domain::{Record, SecretPath, TenantId};

/// A record as it was.
#[derive(Clone)]
pub struct Known {
    pub record: Arc<Record>,
    /// The database's. Where it is the same, so is the record.
    pub stamp: Box<str>,
}

/// The records.
pub struct KnownRecords(Cache<Place, Known, Weight>);

impl KnownRecords {
    /// Room for records of about so many bytes altogether.
    pub fn new(bytes: u64) -> Self {
        let records = usize::try_from(bytes).unwrap_or(usize::MAX) / 1_024;
        Self(Cache::with_weighter(records, bytes, Weight))
    }

    /// What is known of what is wanted. Only newest versions are.
    pub fn look(&self, tenant: &TenantId, wanted: &[Wanted]) -> Vec<Option<Known>> {
        let find = |(path, version): &Wanted| match version {
            Some(_) => None,
            None => self.0.get(&At(tenant, path)),
        };
        wanted.iter().map(find).collect()
    }

    /// Takes in what was read anew, and takes out what is not there any more.
    pub fn keep(&self, tenant: &TenantId, wanted: &[Wanted], found: Vec<Found>) -> Vec<Stored> {
        let keep = |((path, version), found): (&Wanted, Found)| {
            match (version, &found.stored, found.stamp) {
                (None, Ok(Some(record)), Some(stamp)) => {
                    self.0.insert(Place(tenant.clone(), path.clone()), Known { record: Arc::clone(record), stamp });
                }
                (None, Ok(None) | Err(_), _) => self.forget(tenant, path),
                _ => (),
            }
            found.stored
        };
        wanted.iter().zip(found).map(keep).collect()
    }

    /// Takes a record out.
    pub fn forget(&self, tenant: &TenantId, path: &SecretPath) {
        self.0.remove(&At(tenant, path));
    }
}

/// Weighs a record by its bytes.
#[derive(Clone)]
struct Weight;

impl Weighter<Place, Known> for Weight {
    fn weight(&self, _: &Place, known: &Known) -> u64 {
        bytes_of(&known.record) + known.stamp.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            DamagedRow,
            cache::tests::{path, record, tenant},
        },
        *,
    };
    use crate::domain::Version;

    fn found(stored: Stored, stamp: Option<&str>) -> Found {
        Found { stored, stamp: stamp.map(Into::into) }
    }

    #[test]
    fn what_is_gone_or_damaged_goes_and_what_is_pinned_does_not_come() {
        let records = KnownRecords::new(1 << 20);
        let newest: Vec<Wanted> = (0..4).map(|number| (path(number), None)).collect();
        let fresh = |number| found(Ok(Some(record(number, 1))), Some("1"));
        records.keep(&tenant(), &newest, (0..4).map(fresh).collect());
        let unchanged = found(Ok(Some(record(0, 1))), None);
        let now = vec![unchanged, found(Ok(None), None), found(Err(DamagedRow("path")), None), fresh(3)];
        records.keep(&tenant(), &newest, now);
        let is_known =
            |wanted: &[Wanted]| -> Vec<bool> { records.look(&tenant(), wanted).iter().map(Option::is_some).collect() };
        assert_eq!(is_known(&newest), [true, false, false, true]);
        let pinned = [(path(4), Version::new(1))];
        records.keep(&tenant(), &pinned, vec![fresh(4)]);
        assert_eq!(is_known(&[(path(4), None), pinned[0].clone()]), [false, false]);
        assert_eq!(is_known(&[(path(0), Version::new(1))]), [false]);
    }
}
