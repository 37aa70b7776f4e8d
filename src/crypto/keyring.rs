//! The keys of all tenants, unwrapped, and the two operations on records.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use arc_swap::ArcSwap;

use super::{
    CryptoError, RootKey,
    envelope::{Bound, Data, Key, Place, Purpose, fresh_key, open_known, open_wrapped, seal, unwrap, wrap},
    locked::LockedKey,
    mask::Mask,
};
use crate::domain::{
    Entropy, KeyStock, MaskedKey, SealedValue, SecretPath, SecretValue, TenantId, Version, WrappedDataKey, WrappedKey,
};

/// Seals and opens records with the tenants' key-encryption keys, which it holds once they were handed in.
pub struct Keyring {
    root: ArcSwap<RootKey>,
    entropy: Arc<dyn Entropy>,
    tenants: RwLock<HashMap<TenantId, Arc<TenantKeys>>>,
    mask: Mask,
}

struct TenantKeys {
    by_generation: HashMap<u32, Arc<LockedKey>>,
    newest: u32,
}

impl Keyring {
    /// A keyring that holds no tenant's keys yet.
    #[must_use]
    pub fn new(root: RootKey, entropy: Arc<dyn Entropy>) -> Self {
        let mask = Mask::new(&fresh_key(&*entropy));
        Self { root: ArcSwap::from_pointee(root), entropy, tenants: RwLock::default(), mask }
    }

    /// The root key, for what is derived from it.
    #[must_use]
    pub fn root(&self) -> Arc<RootKey> {
        self.root.load_full()
    }

    /// Whether the tenant's keys are here.
    #[must_use]
    pub fn knows(&self, tenant: &TenantId) -> bool {
        self.keys_of(tenant).is_some()
    }

    /// Whether this generation of the tenant's keys is here.
    #[must_use]
    pub fn holds(&self, tenant: &TenantId, generation: u32) -> bool {
        self.keys_of(tenant).is_some_and(|keys| keys.by_generation.contains_key(&generation))
    }

    /// The generation that new values are sealed under.
    #[must_use]
    pub fn newest(&self, tenant: &TenantId) -> Option<u32> {
        self.keys_of(tenant).map(|keys| keys.newest)
    }

    /// Makes a generation of a tenant's keys, to be kept by the store.
    ///
    /// # Errors
    ///
    /// [`CryptoError`] never, unless the cipher fails.
    pub fn fresh_tenant_key(&self, tenant: &TenantId, generation: u32) -> Result<WrappedKey, CryptoError> {
        let data = tenant_key_data(tenant, generation);
        let wrapped = wrap(self.root().bytes(), &fresh_key(&*self.entropy), &data, &*self.entropy)?;
        Ok(WrappedKey { generation, wrapped })
    }

    /// Takes in the tenant's keys as the store keeps them. What is here already is not unwrapped again; what the store
    /// no longer keeps is forgotten.
    ///
    /// # Errors
    ///
    /// [`CryptoError`] where one of them was not wrapped under this root key for this tenant; none is taken in then.
    pub fn take_in(&self, tenant: &TenantId, keys: &[WrappedKey]) -> Result<(), CryptoError> {
        let newest = keys.iter().map(|key| key.generation).max().ok_or(CryptoError::UnknownKey)?;
        let (root, here) = (self.root(), self.keys_of(tenant));
        let unwrap_one = |key: &WrappedKey| {
            let known = here.as_ref().and_then(|here| here.by_generation.get(&key.generation));
            if let Some(known) = known {
                return Ok((key.generation, Arc::clone(known)));
            }
            let data = tenant_key_data(tenant, key.generation);
            Ok((key.generation, Arc::new(unwrap(root.bytes(), &key.wrapped, &data)?.into())))
        };
        let by_generation = keys.iter().map(unwrap_one).collect::<Result<_, CryptoError>>()?;
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        tenants.insert(tenant.clone(), Arc::new(TenantKeys { by_generation, newest }));
        Ok(())
    }

    /// Wraps a data key under the newest generation instead of an older one. The value that it opens is not touched.
    ///
    /// # Errors
    ///
    /// [`CryptoError`] where it was not wrapped for that place under a key of this keyring.
    pub fn rewrap(&self, tenant: &TenantId, old: &WrappedDataKey) -> Result<WrappedKey, CryptoError> {
        let keys = self.keys_of(tenant).ok_or(CryptoError::UnknownKey)?;
        let data_under = |generation| data_key_data(tenant, &old.path, old.version, generation);
        let data_key = unwrap(keys.of(old.key.generation)?, &old.key.wrapped, &data_under(old.key.generation))?;
        let wrapped = wrap(keys.of(keys.newest)?, &data_key, &data_under(keys.newest), &*self.entropy)?;
        Ok(WrappedKey { generation: keys.newest, wrapped })
    }

    /// Wraps every key under another root key.
    ///
    /// # Errors
    ///
    /// [`CryptoError`] where one of them does not open under the present one.
    pub fn rewrap_stock(&self, next: &RootKey, stock: KeyStock) -> Result<KeyStock, CryptoError> {
        let root = self.root();
        let again = |wrapped: &[u8], data: &[u8]| {
            wrap(next.bytes(), &*unwrap(root.bytes(), wrapped, data)?, data, &*self.entropy)
        };
        let tenant_key = |(tenant, key): (TenantId, WrappedKey)| {
            let wrapped = again(&key.wrapped, &tenant_key_data(&tenant, key.generation))?;
            Ok((tenant, WrappedKey { wrapped, ..key }))
        };
        let own_key = |(name, wrapped): (String, Vec<u8>)| {
            let wrapped = again(&wrapped, &vault_key_data(&name))?;
            Ok((name, wrapped))
        };
        Ok(KeyStock {
            tenants: stock.tenants.into_iter().map(tenant_key).collect::<Result<_, CryptoError>>()?,
            own: stock.own.into_iter().map(own_key).collect::<Result<_, CryptoError>>()?,
        })
    }

    /// Holds another root key from now on, once the store's keys are wrapped under it.
    pub fn replace_root(&self, next: Arc<RootKey>) {
        self.root.store(next);
    }

    /// Makes a key of the vault's own, to be kept by the store under this name.
    ///
    /// # Errors
    ///
    /// [`CryptoError`] never, unless the cipher fails.
    pub fn fresh_vault_key(&self, name: &str) -> Result<Vec<u8>, CryptoError> {
        wrap(self.root().bytes(), &fresh_key(&*self.entropy), &vault_key_data(name), &*self.entropy)
    }

    /// Unwraps a key of the vault's own.
    ///
    /// # Errors
    ///
    /// [`CryptoError`] where it was not wrapped under this root key and name.
    pub fn vault_key(&self, name: &str, wrapped: &[u8]) -> Result<Key, CryptoError> {
        unwrap(self.root().bytes(), wrapped, &vault_key_data(name))
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
        let data = data_key_data(tenant, path, version, keys.newest);
        let data_key = fresh_key(&*self.entropy);
        Ok(SealedValue {
            key_generation: keys.newest,
            wrapped_key: wrap(keys.of(keys.newest)?, &data_key, &data, &*self.entropy)?,
            // The value's own data names no key generation: re-wrapping its data key must not touch it.
            ciphertext: seal(&data_key, value.expose(), &value_data(tenant, path, version))?,
            masked_key: MaskedKey::default(),
        })
    }

    /// Opens a record at the place where it was found. Opened again, it need not be unwrapped again.
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
        // INVARIANT: what is under a generation that is gone does not open, whether or not its data key is known.
        let wrapping = keys.of(sealed.key_generation)?;
        let value_data = value_data(tenant, path, version);
        let value = Bound { text: &sealed.ciphertext, associated_data: &value_data };
        let opened = if let Some(masked) = sealed.masked_key.get() {
            open_known(|| self.mask.apply(sealed, masked), &value)
        } else {
            let key_data = data_key_data(tenant, path, version, sealed.key_generation);
            let data_key = Bound { text: &sealed.wrapped_key, associated_data: &key_data };
            open_wrapped(wrapping, &data_key, &value, |key| sealed.masked_key.keep(*self.mask.apply(sealed, key)))
        };
        opened.map(SecretValue::new)
    }

    fn keys_of(&self, tenant: &TenantId) -> Option<Arc<TenantKeys>> {
        self.tenants.read().unwrap_or_else(PoisonError::into_inner).get(tenant).cloned()
    }
}

impl TenantKeys {
    fn of(&self, generation: u32) -> Result<&LockedKey, CryptoError> {
        self.by_generation.get(&generation).map(|key| &**key).ok_or(CryptoError::UnknownKey)
    }
}

fn data_key_data(tenant: &TenantId, path: &SecretPath, version: Version, generation: u32) -> Data {
    Place { owner: tenant.as_str(), path: Some(path), version: Some(version), key_generation: generation }
        .associated_data(Purpose::DataKey)
}

fn tenant_key_data(tenant: &TenantId, generation: u32) -> Data {
    Place { owner: tenant.as_str(), path: None, version: None, key_generation: generation }
        .associated_data(Purpose::TenantKey)
}

fn value_data(tenant: &TenantId, path: &SecretPath, version: Version) -> Data {
    Place { owner: tenant.as_str(), path: Some(path), version: Some(version), key_generation: 0 }
        .associated_data(Purpose::Value)
}

fn vault_key_data(name: &str) -> Data {
    Place { owner: name, path: None, version: None, key_generation: 0 }.associated_data(Purpose::VaultKey)
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

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
            keyring.take_in(tenant, &[keyring.fresh_tenant_key(tenant, 1).unwrap()]).unwrap();
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
        for (tenant, path, version) in [(&theirs, &here, one), (&ours, &there, one), (&ours, &here, two)] {
            assert!(keyring.open(tenant, path, version, &sealed.clone()).is_err(), "what was not opened before");
        }
        let again = keyring.seal(&ours, &here, one, &value).unwrap();
        assert_ne!(again.wrapped_key, sealed.wrapped_key);
        assert_ne!(again.ciphertext, sealed.ciphertext);
    }

    /// A tenant with two generations of keys, and a record of it under the newest.
    fn sealed_by(keyring: &Keyring) -> (TenantId, SecretPath, SealedValue) {
        let (tenant, path) = (TenantId::parse("ours").unwrap(), SecretPath::parse("a/b").unwrap());
        let keys = [1, 2].map(|generation| keyring.fresh_tenant_key(&tenant, generation).unwrap());
        keyring.take_in(&tenant, &keys).unwrap();
        let value = SecretValue::new(Zeroizing::new(b"{\"k\":1}".to_vec()));
        let sealed = keyring.seal(&tenant, &path, Version::FIRST, &value).unwrap();
        (tenant, path, sealed)
    }

    #[test]
    fn what_was_opened_before_opens_as_it_did_and_no_more() {
        let keyring = keyring();
        let (tenant, path, mut sealed) = sealed_by(&keyring);
        let open = |sealed: &SealedValue| keyring.open(&tenant, &path, Version::FIRST, sealed);
        for masked in [false, true, true] {
            assert_eq!(sealed.masked_key.get().is_some(), masked);
            assert_eq!(open(&sealed).unwrap().expose(), b"{\"k\":1}");
        }
        let (there, two) = (SecretPath::parse("a/c").unwrap(), Version::FIRST.next().unwrap());
        assert!(keyring.open(&tenant, &there, Version::FIRST, &sealed).is_err());
        assert!(keyring.open(&tenant, &path, two, &sealed).is_err());
        for bit in 0..sealed.wrapped_key.len() * 8 {
            sealed.wrapped_key[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&sealed).unwrap_err(), CryptoError::Unauthentic, "bit {bit} of the wrapped key");
            sealed.wrapped_key[bit / 8] ^= 1 << (bit % 8);
        }
        for bit in 0..sealed.ciphertext.len() * 8 {
            sealed.ciphertext[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&sealed).unwrap_err(), CryptoError::Unauthentic, "bit {bit} of the ciphertext");
            sealed.ciphertext[bit / 8] ^= 1 << (bit % 8);
        }
        sealed.key_generation = 1;
        assert_eq!(open(&sealed).unwrap_err(), CryptoError::Unauthentic);
        sealed.key_generation = 3;
        assert_eq!(open(&sealed).unwrap_err(), CryptoError::UnknownKey);
        sealed.key_generation = 2;
        assert!(open(&sealed).is_ok(), "all of it is as it was");
    }

    #[test]
    fn a_masked_key_is_of_no_use_without_the_keyring_that_masked_it() {
        let (ours, theirs) = (keyring(), keyring());
        let (tenant, path, sealed) = sealed_by(&ours);
        // The same keys in another keyring.
        let keys = ours.keys_of(&tenant).unwrap();
        theirs.tenants.write().unwrap().insert(tenant.clone(), keys);
        let opens =
            |keyring: &Keyring, sealed: &SealedValue| keyring.open(&tenant, &path, Version::FIRST, sealed).is_ok();
        assert!(opens(&theirs, &sealed.clone()), "a copy has no masked key");
        assert!(opens(&ours, &sealed));
        assert!(!opens(&theirs, &sealed));
        let again = sealed.clone();
        assert!(again.masked_key.get().is_none() && again == sealed);
        assert!(opens(&ours, &again));
        assert_eq!(again.masked_key.get(), sealed.masked_key.get());
        let other =
            ours.seal(&tenant, &path, Version::FIRST, &SecretValue::new(Zeroizing::new(b"{}".to_vec()))).unwrap();
        assert!(opens(&ours, &other));
        assert_ne!(other.masked_key.get(), sealed.masked_key.get());
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
        let key = keyring.fresh_tenant_key(&ours, 1).unwrap();
        assert!(other.take_in(&ours, std::slice::from_ref(&key)).is_err());
        assert!(keyring.take_in(&theirs, &[key]).is_err());
        assert!(!keyring.knows(&theirs) && !other.knows(&ours));
    }
}
