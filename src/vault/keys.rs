//! Tenants' keys: fetched from the store when first needed, made when a tenant first writes, fetched anew when another
//! server may have turned them.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{DEADLINE, Fault, KeyRefusal, Vault, within};
use crate::{
    crypto::CryptoError,
    domain::{Record, SealedValue, SecretPath, SecretValue, TenantId, Version, WrappedKey},
    store::{KeyChange, KeyChangeRequest, StoreError},
};

/// How long a tenant's keys are taken as the newest without asking the store: so long at most, another server's new
/// generation is not written under here.
const FRESH: Duration = Duration::from_secs(1);

impl Vault {
    /// Makes sure that the tenant's keys can be read with.
    pub(super) async fn ensure_keys(&self, tenant: &TenantId) -> Result<(), Fault> {
        if self.keyring.knows(tenant) { Ok(()) } else { self.fetch_keys(tenant).await.map(drop) }
    }

    /// Makes sure that the tenant's newest keys are in the keyring, making the first where there are none.
    pub(super) async fn ensure_newest_keys(&self, tenant: &TenantId) -> Result<(), Fault> {
        if self.keyring.knows(tenant) && self.fetched.is_fresh(tenant) {
            return Ok(());
        }
        if self.fetch_keys(tenant).await? {
            return Ok(());
        }
        let key = self.keyring.fresh_tenant_key(tenant, 1).map_err(|error| key_fault(tenant, error))?;
        self.add_key(tenant, key).await?;
        self.fetch_keys(tenant).await.map(drop)
    }

    /// Fetches the tenant's keys where one of these records names a generation that is not here: another server has
    /// turned them meanwhile.
    pub(super) async fn ensure_keys_of<'r>(
        &self,
        tenant: &TenantId,
        records: impl Iterator<Item = &'r Record>,
    ) -> Result<(), Fault> {
        self.ensure_keys(tenant).await?;
        let generation = |record: &Record| Some(record.version.as_ref()?.sealed.as_ref()?.key_generation);
        let mut held = None;
        let missing = |generation| held != Some(generation) && !self.keyring.holds(tenant, *held.insert(generation));
        if records.filter_map(generation).any(missing) {
            self.fetch_keys(tenant).await?;
        }
        Ok(())
    }

    /// Takes the tenant's keys as the store has them; whether there are any.
    pub(super) async fn fetch_keys(&self, tenant: &TenantId) -> Result<bool, Fault> {
        let asked = Instant::now();
        let keys = within(DEADLINE, self.store.tenant_keys(tenant)).await?;
        if keys.is_empty() {
            return Ok(false);
        }
        self.keyring.take_in(tenant, &keys).map_err(|error| key_fault(tenant, error))?;
        self.fetched.note(tenant, asked);
        Ok(true)
    }

    async fn add_key(&self, tenant: &TenantId, key: WrappedKey) -> Result<(), Fault> {
        let change = KeyChange::Add { tenant: tenant.clone(), key, root: self.keyring.root().fingerprint() };
        match within(DEADLINE, self.store.change_keys(KeyChangeRequest { change, witness: None })).await {
            Err(StoreError::OtherRoot) => Err(Fault::Keys(KeyRefusal::OtherRoot)),
            other => Ok(other.map(drop)?),
        }
    }

    /// Opens a record where it was found: the only place in the program that does.
    pub(super) fn reveal(
        &self,
        tenant: &TenantId,
        path: &SecretPath,
        version: Version,
        sealed: &SealedValue,
    ) -> Result<SecretValue, Fault> {
        self.keyring.open(tenant, path, version, sealed).map_err(|error| {
            self.metrics.unreadable_record();
            self.store.distrust(tenant, path);
            tracing::error!(%tenant, %path, %version, %error, "ALARM: a stored record cannot be opened");
            Fault::Unreadable
        })
    }
}

fn key_fault(tenant: &TenantId, error: CryptoError) -> Fault {
    tracing::error!(%tenant, %error, "ALARM: the tenant's keys cannot be unwrapped under this server's root key");
    Fault::Unavailable
}

/// When the keys of each tenant were last fetched.
#[derive(Default)]
pub(super) struct Fetched(Mutex<HashMap<TenantId, Instant>>);

impl Fetched {
    fn is_fresh(&self, tenant: &TenantId) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(tenant).is_some_and(|at| at.elapsed() < FRESH)
    }

    fn note(&self, tenant: &TenantId, at: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant.clone(), at);
    }

    /// The keys are to be fetched before the next write.
    pub(super) fn forget(&self, tenant: &TenantId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant);
    }
}
