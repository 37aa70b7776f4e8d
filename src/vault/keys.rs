//! Tenants' keys: fetched from the store when first needed, made when a tenant first writes.

use super::{DEADLINE, Fault, Vault, within};
use crate::{
    crypto::CryptoError,
    domain::{SealedValue, SecretPath, SecretValue, TenantId, Version},
};

impl Vault {
    /// Makes sure that the tenant's keys are in the keyring, making the first where `create`.
    pub(super) async fn ensure_keys(&self, tenant: &TenantId, create: bool) -> Result<(), Fault> {
        if self.keyring.knows(tenant) {
            return Ok(());
        }
        let mut keys = within(DEADLINE, self.store.tenant_keys(tenant)).await?;
        if keys.is_empty() && create {
            let first = self.keyring.first_key(tenant).map_err(|error| key_fault(tenant, error))?;
            keys = within(DEADLINE, self.store.add_tenant_key(tenant, first)).await?;
        }
        if keys.is_empty() {
            return Ok(());
        }
        self.keyring.take_in(tenant, &keys).map_err(|error| key_fault(tenant, error))
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
            tracing::error!(%tenant, %path, %version, %error, "ALARM: a stored record cannot be opened");
            Fault::Unreadable
        })
    }
}

fn key_fault(tenant: &TenantId, error: CryptoError) -> Fault {
    tracing::error!(%tenant, %error, "ALARM: the tenant's keys cannot be unwrapped");
    Fault::Unavailable
}
