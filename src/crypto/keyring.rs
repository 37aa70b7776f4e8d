//! The keys of all tenants, unwrapped, and the two operations on records.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use zeroize::Zeroizing;

use super::{
    CryptoError, RootKey,
    envelope::{Key, Place, Purpose, fresh_key, open, seal, unwrap, wrap},
};
use crate::domain::{Entropy, SealedValue, SecretPath, SecretValue, TenantId, Version, WrappedKey};

/// Seals and opens records with the tenants' key-encryption keys, which it holds once they were handed in.
pub struct Keyring {
    root: RootKey,
    entropy: Arc<dyn Entropy>,
    tenants: RwLock<HashMap<TenantId, Arc<TenantKeys>>>,
}

struct TenantKeys {
    by_generation: HashMap<u32, Key>,
    newest: u32,
}

impl Keyring {
    /// A keyring that holds no tenant's keys yet.
    #[must_use]
    pub fn new(root: RootKey, entropy: Arc<dyn Entropy>) -> Self {
        Self { root, entropy, tenants: RwLock::default() }
    }

    /// The root key, for what is derived from it.
    #[must_use]
    pub fn root(&self) -> &RootKey {
        &self.root
    }

    /// Whether the tenant's keys are here.
    #[must_use]
    pub fn knows(&self, tenant: &TenantId) -> bool {
        self.keys_of(tenant).is_some()
    }

    /// Makes a tenant's first key, to be kept by the store.
    ///
    /// # Errors
    ///
    /// [`CryptoError`] never, unless the cipher fails.
    pub fn first_key(&self, tenant: &TenantId) -> Result<WrappedKey, CryptoError> {
        const GENERATION: u32 = 1;
        let data = tenant_key_data(tenant, GENERATION);
        let wrapped = wrap(self.root.bytes(), &fresh_key(&*self.entropy), &data, &*self.entropy)?;
        Ok(WrappedKey { generation: GENERATION, wrapped })
    }

    /// Takes in the tenant's keys as the store keeps them.
    ///
    /// # Errors
    ///
    /// [`CryptoError`] where one of them was not wrapped under this root key for this tenant; none is taken in then.
    pub fn take_in(&self, tenant: &TenantId, keys: &[WrappedKey]) -> Result<(), CryptoError> {
        let newest = keys.iter().map(|key| key.generation).max().ok_or(CryptoError::UnknownKey)?;
        let unwrap_one = |key: &WrappedKey| {
            let data = tenant_key_data(tenant, key.generation);
            Ok((key.generation, unwrap(self.root.bytes(), &key.wrapped, &data)?))
        };
        let by_generation = keys.iter().map(unwrap_one).collect::<Result<_, CryptoError>>()?;
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        tenants.insert(tenant.clone(), Arc::new(TenantKeys { by_generation, newest }));
        Ok(())
    }

    /// Makes a key of the vault's own, to be kept by the store under this name.
    ///
    /// # Errors
    ///
    /// [`CryptoError`] never, unless the cipher fails.
    pub fn fresh_vault_key(&self, name: &str) -> Result<Vec<u8>, CryptoError> {
        wrap(self.root.bytes(), &fresh_key(&*self.entropy), &vault_key_data(name), &*self.entropy)
    }

    /// Unwraps a key of the vault's own.
    ///
    /// # Errors
    ///
    /// [`CryptoError`] where it was not wrapped under this root key and name.
    pub fn vault_key(&self, name: &str, wrapped: &[u8]) -> Result<Zeroizing<[u8; 32]>, CryptoError> {
        unwrap(self.root.bytes(), wrapped, &vault_key_data(name))
    }

    /// Seals a value for the version that it is about to be.
    ///
    /// # Errors
    ///
    /// [`CryptoError::UnknownKey`] where the tenant's keys were not taken in.
    pub fn seal(
        &self,
        tenant: &TenantId,
        path: &SecretPath,
        version: Version,
        value: &SecretValue,
    ) -> Result<SealedValue, CryptoError> {
        let keys = self.keys_of(tenant).ok_or(CryptoError::UnknownKey)?;
        let wrapping = keys.by_generation.get(&keys.newest).ok_or(CryptoError::UnknownKey)?;
        let place =
            Place { owner: tenant.as_str(), path: Some(path), version: Some(version), key_generation: keys.newest };
        let data_key = fresh_key(&*self.entropy);
        Ok(SealedValue {
            key_generation: keys.newest,
            wrapped_key: wrap(wrapping, &data_key, &place.associated_data(Purpose::DataKey), &*self.entropy)?,
            // The value's own data names no key generation: re-wrapping its data key must not touch it.
            ciphertext: seal(&data_key, value.expose(), &value_data(tenant, path, version))?,
        })
    }

    /// Opens a record at the place where it was found.
    ///
    /// # Errors
    ///
    /// [`CryptoError`] where it was not sealed for that place under a key of this keyring.
    pub fn open(
        &self,
        tenant: &TenantId,
        path: &SecretPath,
        version: Version,
        sealed: &SealedValue,
    ) -> Result<SecretValue, CryptoError> {
        let keys = self.keys_of(tenant).ok_or(CryptoError::UnknownKey)?;
        let wrapping = keys.by_generation.get(&sealed.key_generation).ok_or(CryptoError::UnknownKey)?;
        let (path_there, version_there, key_generation) = (Some(path), Some(version), sealed.key_generation);
        let place = Place { owner: tenant.as_str(), path: path_there, version: version_there, key_generation };
        let data_key = unwrap(wrapping, &sealed.wrapped_key, &place.associated_data(Purpose::DataKey))?;
        open(&data_key, &sealed.ciphertext, &value_data(tenant, path, version)).map(SecretValue::new)
    }

    fn keys_of(&self, tenant: &TenantId) -> Option<Arc<TenantKeys>> {
        self.tenants.read().unwrap_or_else(PoisonError::into_inner).get(tenant).cloned()
    }
}

fn tenant_key_data(tenant: &TenantId, generation: u32) -> Vec<u8> {
    Place { owner: tenant.as_str(), path: None, version: None, key_generation: generation }
        .associated_data(Purpose::TenantKey)
}

fn value_data(tenant: &TenantId, path: &SecretPath, version: Version) -> Vec<u8> {
    Place { owner: tenant.as_str(), path: Some(path), version: Some(version), key_generation: 0 }
        .associated_data(Purpose::Value)
}

fn vault_key_data(name: &str) -> Vec<u8> {
    Place { owner: name, path: None, version: None, key_generation: 0 }.associated_data(Purpose::VaultKey)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct SystemEntropy;

    impl Entropy for SystemEntropy {
        fn fill(&self, buffer: &mut [u8]) {
            getrandom::fill(buffer).unwrap();
        }
    }

    fn keyring() -> Keyring {
        let directory = tempfile::tempdir().unwrap();
        let (root, _) = RootKey::load_or_create(&directory.path().join("k"), &SystemEntropy).unwrap();
        Keyring::new(root, Arc::new(SystemEntropy))
    }

    #[test]
    fn a_record_opens_where_it_was_sealed_and_nowhere_else() {
        let keyring = keyring();
        let (ours, theirs) = (TenantId::parse("ours").unwrap(), TenantId::parse("theirs").unwrap());
        for tenant in [&ours, &theirs] {
            keyring.take_in(tenant, &[keyring.first_key(tenant).unwrap()]).unwrap();
        }
        let (here, there) = (SecretPath::parse("a/b").unwrap(), SecretPath::parse("a/c").unwrap());
        let (one, two) = (Version::FIRST, Version::FIRST.next().unwrap());
        let value = SecretValue::new(Zeroizing::new(b"{\"k\":1}".to_vec()));
        let sealed = keyring.seal(&ours, &here, one, &value).unwrap();
        assert_eq!(keyring.open(&ours, &here, one, &sealed).unwrap().expose(), b"{\"k\":1}");
        assert!(keyring.open(&theirs, &here, one, &sealed).is_err());
        assert!(keyring.open(&ours, &there, one, &sealed).is_err());
        assert!(keyring.open(&ours, &here, two, &sealed).is_err());
        let renumbered = SealedValue { key_generation: 2, ..sealed.clone() };
        assert_eq!(keyring.open(&ours, &here, one, &renumbered).unwrap_err(), CryptoError::UnknownKey);
        let again = keyring.seal(&ours, &here, one, &value).unwrap();
        assert_ne!(again.wrapped_key, sealed.wrapped_key);
        assert_ne!(again.ciphertext, sealed.ciphertext);
    }

    #[test]
    fn a_key_of_the_vaults_own_opens_under_its_root_key_and_name() {
        let (keyring, other) = (keyring(), keyring());
        let wrapped = keyring.fresh_vault_key("audit").unwrap();
        assert!(keyring.vault_key("audit", &wrapped).is_ok());
        assert!(keyring.vault_key("audits", &wrapped).is_err());
        assert!(other.vault_key("audit", &wrapped).is_err());
    }

    #[test]
    fn another_root_key_or_tenant_takes_nothing_in() {
        let (keyring, other) = (keyring(), keyring());
        let (ours, theirs) = (TenantId::parse("ours").unwrap(), TenantId::parse("theirs").unwrap());
        let key = keyring.first_key(&ours).unwrap();
        assert!(other.take_in(&ours, std::slice::from_ref(&key)).is_err());
        assert!(keyring.take_in(&theirs, &[key]).is_err());
        assert!(!keyring.knows(&theirs) && !other.knows(&ours));
    }
}
