//! Single-use keys, associated data, and the two layers of a sealed record.

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{AeadInOut, Nonce},
};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use smallvec::SmallVec;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{CryptoError, locked::scrub_stack};
pub use crate::domain::Key;
use crate::domain::{Entropy, MAX_VALUE_BYTES, SecretPath, Version};

pub const SALT: usize = 32;
const TAG: usize = 16;
/// What a sealed value begins with.
pub const COMMITMENT: usize = 32;
/// Longest sealed value. What is longer was not sealed here, and is not worth a copy.
const SEALED: usize = COMMITMENT + MAX_VALUE_BYTES + TAG;

/// What a ciphertext is for. Part of its associated data, so that one kind never opens as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A secret's value under its data key.
    Value,
    /// A data key under a key derived from the tenant's key.
    DataKey,
    /// A tenant's key under a key derived from the root key.
    TenantKey,
    /// A key of the vault's own under a key derived from the root key.
    VaultKey,
}

impl Purpose {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::Value => b"value",
            Self::DataKey => b"data-key",
            Self::TenantKey => b"tenant-key",
            Self::VaultKey => b"vault-key",
        }
    }
}

/// Associated data, mostly so short that it needs no memory of its own.
pub type Data = SmallVec<[u8; 256]>;

/// The place that a ciphertext belongs to; it opens nowhere else.
pub struct Place<'a> {
    /// The tenant; the key's name for a key of the vault's own.
    pub owner: &'a str,
    pub path: Option<&'a SecretPath>,
    pub version: Option<Version>,
    /// The generation of the key that wraps.
    pub key_generation: u32,
}

impl Place<'_> {
    /// Associated data: a label of the format, then each part behind its length, so that no two places read alike.
    pub fn associated_data(&self, purpose: Purpose) -> Data {
        let mut data = SmallVec::new();
        data.extend_from_slice(b"portcullis-v1");
        let path = self.path.map_or("", SecretPath::as_str);
        let version = self.version.map_or(0, Version::get).to_be_bytes();
        let generation = self.key_generation.to_be_bytes();
        for part in [self.owner.as_bytes(), path.as_bytes(), &version, purpose.label(), &generation] {
            let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
            data.extend_from_slice(&length.to_be_bytes());
            data.extend_from_slice(part);
        }
        data
    }
}

/// A fresh random key.
pub fn fresh_key(entropy: &dyn Entropy) -> Key {
    let mut key = Key::default();
    entropy.fill(key.as_mut_slice());
    key
}

/// A key's sibling, by label (HKDF-SHA-256, RFC 5869, without salt).
pub fn derive(key: &[u8; 32], label: &[u8]) -> Key {
    let mut derived = Key::default();
    // INVARIANT: 32 bytes are fewer than HKDF's limit of 255 blocks, so expansion cannot fail.
    let expanded = Hkdf::<Sha256>::new(None, key).expand(label, derived.as_mut_slice());
    debug_assert!(expanded.is_ok());
    scrub_stack();
    derived
}

/// Wraps a key under one derived for this use: `salt ‖ ciphertext ‖ tag`.
pub fn wrap(
    wrapping: &[u8; 32],
    key: &[u8; 32],
    associated_data: &[u8],
    entropy: &dyn Entropy,
) -> Result<Vec<u8>, CryptoError> {
    let mut wrapped = vec![0; SALT];
    entropy.fill(&mut wrapped);
    let mut single_use = Zeroizing::new([0; 32]);
    single_use_key(&mut single_use, wrapping, &wrapped, associated_data);
    let mut body = key.to_vec();
    let encrypted = encrypt(&single_use, associated_data, &mut body);
    scrub_stack();
    encrypted?;
    wrapped.append(&mut body);
    Ok(wrapped)
}

/// Undoes [`wrap`].
pub fn unwrap(wrapping: &[u8; 32], wrapped: &[u8], associated_data: &[u8]) -> Result<Key, CryptoError> {
    let mut key = Key::default();
    let unwrapped = unwrap_into(&mut key, wrapping, wrapped, associated_data);
    scrub_stack();
    unwrapped.map(|()| key)
}

/// Leaves traces on the stack, in a frame of its own, for the caller to scrub.
#[inline(never)]
fn unwrap_into(
    key: &mut [u8; 32],
    wrapping: &[u8; 32],
    wrapped: &[u8],
    associated_data: &[u8],
) -> Result<(), CryptoError> {
    let (salt, body) = wrapped.split_at_checked(SALT).ok_or(CryptoError::Malformed)?;
    let mut plain = Zeroizing::new(<[u8; 32 + TAG]>::try_from(body).map_err(|_| CryptoError::Malformed)?);
    let mut single_use = Zeroizing::new([0; 32]);
    single_use_key(&mut single_use, wrapping, salt, associated_data);
    key.copy_from_slice(decrypt(&single_use, associated_data, &mut *plain)?);
    Ok(())
}

/// Seals a value under its data key: `commitment ‖ ciphertext ‖ tag`. A data key seals one value, ever.
pub fn seal(data_key: &[u8; 32], value: &[u8], associated_data: &[u8]) -> Result<Vec<u8>, CryptoError> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(CryptoError::Malformed);
    }
    let mut body = Zeroizing::new(Vec::with_capacity(value.len() + TAG));
    body.extend_from_slice(value);
    let encrypted = encrypt(data_key, associated_data, &mut body);
    let mut sealed = commitment(data_key).to_vec();
    scrub_stack();
    encrypted?;
    sealed.extend_from_slice(&body);
    Ok(sealed)
}

/// Undoes [`seal`].
#[cfg(test)]
pub fn open(data_key: &[u8; 32], sealed: &[u8], associated_data: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let opened = open_with(data_key, sealed, associated_data);
    scrub_stack();
    opened
}

/// What is sealed, and what it is bound to.
pub struct Bound<'a> {
    pub text: &'a [u8],
    pub associated_data: &'a [u8],
}

/// Undoes [`wrap`] and [`seal`] of a value whose data key is wrapped. Where it opens, `keep` may look at the key.
pub fn open_wrapped(
    wrapping: &[u8; 32],
    data_key: &Bound<'_>,
    value: &Bound<'_>,
    keep: impl FnOnce(&[u8; 32]),
) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let mut key = Zeroizing::new([0; 32]);
    let opened = unwrap_into(&mut key, wrapping, data_key.text, data_key.associated_data)
        .and_then(|()| open_with(&key, value.text, value.associated_data))
        .inspect(|_| keep(&key));
    scrub_stack();
    opened
}

/// Undoes [`seal`] of a value that `key` is known to have sealed: what the value commits to is not compared again.
pub fn open_known(
    key: impl FnOnce() -> Zeroizing<[u8; 32]>,
    value: &Bound<'_>,
) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let opened = split_commitment(value.text).and_then(|(_, body)| open_body(&key(), body, value.associated_data));
    scrub_stack();
    opened
}

/// The commitment is checked first: GCM alone does not commit to its key (Albertini et al., "How to Abuse and Fix
/// Authenticated Encryption Without Key Commitment", USENIX Security 2022). Leaves traces on the stack, in a frame of its
/// own, for the caller to scrub.
#[inline(never)]
fn open_with(data_key: &[u8; 32], sealed: &[u8], associated_data: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let (committed, body) = split_commitment(sealed)?;
    if !bool::from(commitment(data_key).ct_eq(committed)) {
        return Err(CryptoError::Unauthentic);
    }
    open_body(data_key, body, associated_data)
}

fn split_commitment(sealed: &[u8]) -> Result<(&[u8], &[u8]), CryptoError> {
    if sealed.len() > SEALED {
        return Err(CryptoError::Malformed);
    }
    sealed.split_at_checked(COMMITMENT).ok_or(CryptoError::Malformed)
}

/// Leaves traces on the stack, for the caller to scrub.
fn open_body(data_key: &[u8; 32], body: &[u8], associated_data: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let mut plain = Zeroizing::new(body.to_vec());
    let length = decrypt(data_key, associated_data, &mut plain)?.len();
    plain.truncate(length);
    Ok(plain)
}

/// HKDF-SHA-256 with a salt of its own for each use; the associated data is bound in as well. Leaves traces on the stack,
/// in a frame of its own, for the caller to scrub.
#[inline(never)]
pub fn single_use_key(key: &mut [u8; 32], wrapping: &[u8; 32], salt: &[u8], associated_data: &[u8]) {
    let expanded = Hkdf::<Sha256>::new(Some(salt), wrapping).expand(associated_data, key);
    debug_assert!(expanded.is_ok());
}

#[inline(never)]
fn commitment(data_key: &[u8; 32]) -> [u8; COMMITMENT] {
    let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(data_key);
    // INVARIANT: HMAC takes keys of every length, so there is no error to meet.
    mac.map_or([0; COMMITMENT], |mut mac| {
        mac.update(b"portcullis-v1 key commitment");
        mac.finalize().into_bytes().into()
    })
}

/// The nonce may be constant because every key is used once. Leaves traces on the stack, for the caller to scrub.
#[inline(never)]
pub fn encrypt(key: &[u8; 32], associated_data: &[u8], buffer: &mut Vec<u8>) -> Result<(), CryptoError> {
    #[cfg(test)]
    used_keys(|keys| keys.push(*key));
    let cipher = Aes256Gcm::new(key.into());
    let encrypted = cipher.encrypt_in_place(&Nonce::<Aes256Gcm>::default(), associated_data, buffer);
    encrypted.map_err(|_| CryptoError::Malformed)
}

/// The keys that this thread has encrypted with, for a test that watches them.
#[cfg(test)]
pub fn used_keys(see: impl FnOnce(&mut Vec<[u8; 32]>)) {
    thread_local!(static KEYS: std::cell::RefCell<Vec<[u8; 32]>> = const { std::cell::RefCell::new(Vec::new()) });
    KEYS.with_borrow_mut(see);
}

/// Undoes [`encrypt`] in place, and leaves traces on the stack as well. Answers the part of the buffer that is plain text.
#[inline(never)]
pub fn decrypt<'b>(key: &[u8; 32], associated_data: &[u8], buffer: &'b mut [u8]) -> Result<&'b mut [u8], CryptoError> {
    let (body, tag) = buffer.split_last_chunk_mut::<TAG>().ok_or(CryptoError::Malformed)?;
    let cipher = Aes256Gcm::new(key.into());
    let nonce = Nonce::<Aes256Gcm>::default();
    let decrypted = cipher.decrypt_inout_detached(&nonce, associated_data, (&mut *body).into(), (&*tag).into());
    decrypted.map(|()| body).map_err(|_| CryptoError::Unauthentic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{SecretPath, TenantId};

    struct Counting(std::sync::atomic::AtomicU8);

    impl Entropy for Counting {
        fn fill(&self, buffer: &mut [u8]) {
            buffer.fill(self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        }
    }

    fn places() -> Vec<(TenantId, Option<SecretPath>, Option<Version>, u32)> {
        let path = |text| Some(SecretPath::parse(text).unwrap());
        let tenant = |text| TenantId::parse(text).unwrap();
        vec![
            (tenant("t"), path("a/b"), Version::new(1), 1),
            (tenant("ta"), path("b"), Version::new(1), 1),
            (tenant("t"), path("a"), Version::new(1), 1),
            (tenant("t"), path("a/b"), Version::new(2), 1),
            (tenant("t"), path("a/b"), Version::new(1), 2),
            (tenant("t"), None, None, 1),
        ]
    }

    fn data_of(place: &(TenantId, Option<SecretPath>, Option<Version>, u32), purpose: Purpose) -> Data {
        Place { owner: place.0.as_str(), path: place.1.as_ref(), version: place.2, key_generation: place.3 }
            .associated_data(purpose)
    }

    #[test]
    fn a_value_opens_at_its_own_place_alone() {
        let key = [7; 32];
        let all: Vec<Data> = places()
            .iter()
            .flat_map(|place| [Purpose::Value, Purpose::DataKey, Purpose::TenantKey].map(|p| data_of(place, p)))
            .collect();
        for (sealed_at, here) in all.iter().enumerate() {
            let sealed = seal(&key, b"{}", here).unwrap();
            for (opened_at, there) in all.iter().enumerate() {
                assert_eq!(open(&key, &sealed, there).is_ok(), sealed_at == opened_at);
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let key = [7; 32];
        let sealed = seal(&key, b"{\"k\":\"v\"}", b"here").unwrap();
        let wrapped = wrap(&key, &[9; 32], b"here", &Counting(1.into())).unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut altered = sealed.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&key, &altered, b"here").is_err(), "bit {bit}");
        }
        for bit in 0..wrapped.len() * 8 {
            let mut altered = wrapped.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(unwrap(&key, &altered, b"here").is_err(), "bit {bit}");
        }
    }

    /// aes-gcm RUSTSEC-2023-0096: plaintext that stayed in the buffer though the tag was wrong.
    #[test]
    fn c_72_a_failed_opening_leaves_no_plaintext() {
        let (key, plain) = ([7; 32], b"{\"k\":\"a value of more than one block of the cipher\"}".to_vec());
        let mut sealed = plain.clone();
        encrypt(&key, b"here", &mut sealed).unwrap();
        let mut refused = 0;
        for bit in 0..sealed.len() * 8 {
            let mut altered = sealed.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            let before = altered.clone();
            assert!(decrypt(&key, b"here", &mut altered).is_err());
            let wiped = altered.iter().all(|byte| *byte == 0);
            assert!(altered == before || wiped, "bit {bit}: something was decrypted");
            refused += 1;
        }
        for elsewhere in [&b""[..], b"there", b"here\0"] {
            let mut moved = sealed.clone();
            assert!(decrypt(&key, elsewhere, &mut moved).is_err());
            assert_eq!(moved, sealed);
        }
        assert_eq!(refused, (plain.len() + TAG) * 8);
    }

    #[test]
    fn another_key_opens_nothing() {
        let sealed = seal(&[7; 32], b"{}", b"here").unwrap();
        assert_eq!(open(&[8; 32], &sealed, b"here").unwrap_err(), CryptoError::Unauthentic);
        assert_eq!(open(&[7; 32], &sealed[..31], b"here").unwrap_err(), CryptoError::Malformed);
    }

    #[test]
    fn siblings_differ() {
        assert_ne!(*derive(&[1; 32], b"a"), *derive(&[1; 32], b"b"));
        assert_ne!(*derive(&[1; 32], b"a"), *derive(&[2; 32], b"a"));
    }

    /// RFC 5869, test case 3 (no salt, no info), shortened to the first 32 bytes.
    #[test]
    fn hkdf_known_answer() {
        let mut okm = [0; 32];
        Hkdf::<Sha256>::new(None, &[0x0b; 22]).expand(b"", &mut okm).unwrap();
        assert_eq!(okm[..8], [0x8d, 0xa4, 0xe7, 0x75, 0xa5, 0x63, 0xc1, 0x8f]);
    }
}
