//! Keys, nonces and ciphertexts (2f of the list, and C-30, C-58, C-74, C-75).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
};

use portcullis::{
    crypto::{Keyring, RootKey},
    domain::{SecretPath, SecretValue, TenantId, Version},
    server::SystemEntropy,
};
use zeroize::Zeroizing;

use super::{leaks::files, number};

/// The sources by path, without their tests.
pub fn sources() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let name = |path: &Path| path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    let all = files(&root.join("src")).into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs"));
    let production = |text: String| text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned();
    let found: BTreeMap<_, _> = all.map(|path| (name(&path), production(fs::read_to_string(&path).unwrap()))).collect();
    found.into_iter().filter(|(name, _)| !name.contains("tests")).collect()
}

/// The files whose code says this.
pub fn sayers(text: &str) -> BTreeSet<String> {
    let says = |code: &str| code.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(text));
    sources().into_iter().filter(|(_, code)| says(code)).map(|(name, _)| name).collect()
}

fn keyring() -> (Keyring, TenantId, SecretPath) {
    let directory = tempfile::tempdir().unwrap();
    let (root, _) = RootKey::load_or_create(&directory.path().join("root.key"), &SystemEntropy).unwrap();
    let keyring = Keyring::new(root, Arc::new(SystemEntropy));
    let tenant = TenantId::default_tenant();
    keyring.take_in(&tenant, &[keyring.fresh_tenant_key(&tenant, 1).unwrap()]).unwrap();
    (keyring, tenant, SecretPath::parse("team/app/key").unwrap())
}

fn value(bytes: usize) -> SecretValue {
    SecretValue::new(Zeroizing::new(format!("{{\"k\":\"{}\"}}", "x".repeat(bytes.saturating_sub(8))).into_bytes()))
}

/// CVE-2023-4680: a nonce that the caller chooses. Only one file knows what a nonce is, and no key encrypts twice there:
/// the same value at the same place is another record each time.
#[test]
fn c_73_nobody_chooses_a_nonce() {
    assert_eq!(sayers("Nonce"), BTreeSet::from(["src/crypto/envelope.rs".to_owned()]));
    assert_eq!(sayers("nonce:"), BTreeSet::new(), "no argument and no field is a nonce");
    let (keyring, tenant, path) = keyring();
    let (same, count) = (value(100), number(10_000, 1_000_000));
    let (mut salts, mut bodies, mut commitments) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for _ in 0..count {
        let sealed = keyring.seal(&tenant, &path, Version::FIRST, &same).unwrap();
        assert!(salts.insert(sealed.wrapped_key[..32].to_vec()), "a wrapping key would be used twice");
        assert!(bodies.insert(sealed.wrapped_key[32..].to_vec()), "a wrapped key is seen twice");
        assert!(commitments.insert(sealed.ciphertext[..32].to_vec()), "a data key would be used twice");
    }
    println!("{count} seals of one value at one place, no two alike");
}

/// sqlx RUSTSEC-2024-0363: a value so long that its length does not fit. The limit holds below the API, too.
#[test]
fn c_58_a_value_beyond_the_limit_is_not_sealed() {
    let (keyring, tenant, path) = keyring();
    let most = portcullis::domain::MAX_VALUE_BYTES;
    assert_eq!(value(most).expose().len(), most);
    let sealed = keyring.seal(&tenant, &path, Version::FIRST, &value(most)).unwrap();
    assert_eq!(keyring.open(&tenant, &path, Version::FIRST, &sealed).unwrap().expose().len(), most);
    for beyond in [most + 1, 2 * most, 16 * most] {
        assert!(keyring.seal(&tenant, &path, Version::FIRST, &value(beyond)).is_err(), "{beyond}");
    }
    // Nor does a store that was tampered with make the vault take more into memory than it ever gave out.
    let mut longer = sealed;
    longer.ciphertext.resize(64 * most, 0);
    let refused = keyring.open(&tenant, &path, Version::FIRST, &longer).unwrap_err();
    assert_eq!(refused, portcullis::crypto::CryptoError::Malformed);
}

/// GHSA-34fc-gh42-pj53: a comparison that stops at the first difference. What proves something is compared by `subtle`,
/// or inside the library that verifies it.
#[test]
fn c_30_what_proves_something_is_compared_in_constant_time() {
    for (name, code) in
        sources().iter().filter(|(name, _)| name.starts_with("src/crypto") || name.starts_with("src/auth"))
    {
        for line in code.lines().filter(|line| line.contains("==") || line.contains("!=")) {
            for word in ["mac", "tag", "signature", "commitment", "secret", "hmac"] {
                let fine = line.trim_start().starts_with("//") || line.contains(".len()");
                let says = line.to_lowercase().split(|c: char| !c.is_alphanumeric()).any(|part| part == word);
                assert!(fine || !says, "{name}: {line}");
            }
        }
    }
    assert!(sayers("ct_eq").contains("src/crypto/envelope.rs"));
}

/// `zeroize_derive` RUSTSEC-2021-0115: a type that says that it is wiped, and is not. Keys and values are `Zeroizing`
/// arrays and vectors, whose wiping no derive has to get right.
#[test]
fn c_74_no_derive_decides_what_is_wiped() {
    for derived in ["derive(Zeroize", "ZeroizeOnDrop", "zeroize(drop)", "zeroize(skip)"] {
        assert_eq!(sayers(derived), BTreeSet::new(), "{derived}");
    }
    let key = &sources()["src/domain/keys.rs"];
    assert!(key.contains("impl Drop for Key {") && key.contains("self.0.zeroize();"));
    let secret = &sources()["src/domain/secret.rs"];
    assert!(secret.contains("pub struct SecretValue(Zeroizing<Vec<u8>>);"));
}

/// Vault CVE-2024-8365 and its kin begin with a type that prints itself.
#[test]
fn c_44_what_is_secret_prints_nothing() {
    let (keyring, tenant, path) = keyring();
    let opened = keyring.seal(&tenant, &path, Version::FIRST, &value(40)).unwrap();
    let opened = keyring.open(&tenant, &path, Version::FIRST, &opened).unwrap();
    assert_eq!(format!("{opened:?}"), "SecretValue(…)");
    let sources = sources();
    for (file, kind) in [("src/domain/secret.rs", "SecretValue"), ("src/crypto/root.rs", "RootKey")] {
        for forbidden in ["fmt::Display for", "Serialize for", "Clone for", "PartialEq for"] {
            let text = format!("{forbidden} {kind} ");
            assert!(!sources[file].contains(&text), "{file}: {text}");
        }
        let at = sources[file].find(&format!("pub struct {kind}(")).unwrap();
        let before = sources[file][..at].lines().next_back().unwrap();
        assert!(!before.contains("derive"), "{kind} derives something: {before}");
    }
}
