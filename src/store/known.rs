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

    /// Takes in what was read anew.
    pub fn keep(&self, tenant: &TenantId, wanted: &[Wanted], found: Vec<Found>) -> Vec<Stored> {
        let keep = |((path, version), found): (&Wanted, Found)| {
            if let (None, Ok(Some(record)), Some(stamp)) = (version, &found.stored, found.stamp) {
                self.0.insert(Place(tenant.clone(), path.clone()), Known { record: Arc::clone(record), stamp });
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
