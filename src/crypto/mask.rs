//! Data keys that were unwrapped once, kept masked beside the values that they open.
//!
//! To unwrap a data key costs more than to open its value, and services read the same values again and again. So the
//! first opening leaves the key with the record in memory, under a pseudorandom text (HMAC-SHA-256, joined by XOR) that only
//! this keyring can make again, and only for that very record. Whoever finds it has nothing without the keyring; when the
//! keyring goes, no mask can be lifted any more.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{
    envelope::{COMMITMENT, Key},
    locked::{Locked, Wipe, scrub_stack},
};
use crate::domain::SealedValue;

/// What masks data keys, and lifts the masks. It lasts as long as its keyring, and is nowhere else.
pub struct Mask(Locked<Hmac<Sha256>>);

impl Mask {
    /// The mask of a fresh key.
    pub fn new(key: &Key) -> Self {
        let mask = Self(Locked::new(keyed(&[0; 64]), |here| set(here, key)));
        scrub_stack();
        mask
    }

    /// Masks the data key of this value, or lifts the mask. Leaves traces on the stack, in a frame of its own, for the caller
    /// to scrub.
    ///
    /// INVARIANT: the text depends on everything that was checked when the key was unwrapped: on its generation, on how it
    /// is wrapped, and on what the value commits to. With another of these, the key that comes out opens nothing. And no two
    /// keys share a text, since each is wrapped with a random salt of its own.
    #[inline(never)]
    pub fn apply(&self, sealed: &SealedValue, key: &[u8; 32]) -> Zeroizing<[u8; 32]> {
        let mut mac = (*self.0).clone();
        mac.update(&sealed.key_generation.to_be_bytes());
        mac.update(&sealed.wrapped_key);
        mac.update(sealed.ciphertext.get(..COMMITMENT).unwrap_or_default());
        let mut masked: Zeroizing<[u8; 32]> = Zeroizing::new(mac.finalize().into_bytes().into());
        masked.iter_mut().zip(key).for_each(|(masked, key)| *masked ^= key);
        masked
    }
}

impl Wipe for Hmac<Sha256> {
    fn wipe(&mut self) {
        // What was there wipes itself.
        *self = keyed(&[0; 64]);
    }
}

/// Leaves traces on the stack, in a frame of its own, for the caller to scrub.
#[inline(never)]
fn set(here: &mut Hmac<Sha256>, key: &Key) {
    // Shorter keys are those of a whole block that ends in zeros (RFC 2104, section 2).
    let mut block = Zeroizing::new([0; 64]);
    block.iter_mut().zip(&**key).for_each(|(block, key)| *block = *key);
    *here = keyed(&block);
}

fn keyed(block: &[u8; 64]) -> Hmac<Sha256> {
    KeyInit::new(block.into())
}
