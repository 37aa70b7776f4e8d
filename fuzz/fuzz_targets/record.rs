//! Sealed records and wrapped keys as a store may hand them back: what was not sealed does not open, what was sealed
//! opens as it was, and what was changed anywhere does not.

#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use portcullis::{
    crypto::{Keyring, RootKey},
    domain::{MaskedKey, SealedValue, SecretPath, SecretValue, TenantId, Version, WrappedKey},
    server::SystemEntropy,
};
use zeroize::Zeroizing;

struct Fixture {
    keyring: Keyring,
    /// Never seals: the fuzzer sees what is compared, and would soon hand back what was sealed for it before.
    stranger: Keyring,
    tenant: TenantId,
    path: SecretPath,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let (tenant, path) = (TenantId::default_tenant(), SecretPath::parse("team/app/key").unwrap());
    Fixture { keyring: keyring_of(&tenant), stranger: keyring_of(&tenant), tenant, path }
});

fn keyring_of(tenant: &TenantId) -> Keyring {
    let directory = tempfile::tempdir().unwrap();
    let root = RootKey::load_or_create(&directory.path().join("root.key"), &SystemEntropy).unwrap().0;
    let keyring = Keyring::new(root, Arc::new(SystemEntropy));
    keyring.take_in(tenant, &[keyring.fresh_tenant_key(tenant, 1).unwrap()]).unwrap();
    keyring
}

fuzz_target!(|input: (u32, u16, u8, &[u8])| {
    let (generation, at, change, bytes) = input;
    let Fixture { keyring, stranger, tenant, path } = &*FIXTURE;
    let split = usize::from(at) % (bytes.len() + 1);
    let forged = SealedValue {
        key_generation: generation % 3,
        wrapped_key: bytes[..split].to_vec(),
        ciphertext: bytes[split..].to_vec(),
        masked_key: MaskedKey::default(),
    };
    assert!(stranger.open(tenant, path, Version::FIRST, &forged).is_err(), "nobody sealed this");
    let other = TenantId::parse("other").unwrap();
    let key = WrappedKey { generation, wrapped: bytes.to_vec() };
    assert!(stranger.take_in(&other, &[key]).is_err() && !stranger.knows(&other), "nobody wrapped this");

    let value = SecretValue::new(Zeroizing::new(bytes.to_vec()));
    let sealed = keyring.seal(tenant, path, Version::FIRST, &value).unwrap();
    for _ in ["unwrapped", "unmasked"] {
        assert_eq!(keyring.open(tenant, path, Version::FIRST, &sealed).unwrap().expose(), bytes);
    }
    // A copy was never opened.
    for sealed in [sealed.clone(), sealed] {
        assert!(stranger.open(tenant, path, Version::FIRST, &sealed).is_err(), "another key");
        if change != 0 {
            assert!(keyring.open(tenant, path, Version::FIRST, &changed(sealed, at.into(), change)).is_err());
        }
    }
});

/// The record with one byte changed, wherever it is.
fn changed(mut sealed: SealedValue, at: usize, change: u8) -> SealedValue {
    let at = at % (sealed.wrapped_key.len() + sealed.ciphertext.len());
    let wrapped = sealed.wrapped_key.len();
    match sealed.wrapped_key.get_mut(at) {
        Some(byte) => *byte ^= change,
        None => sealed.ciphertext[at - wrapped] ^= change,
    }
    sealed
}
