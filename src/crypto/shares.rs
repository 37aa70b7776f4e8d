//! Shamir's secret sharing of the root key: any so many shares make the key, fewer tell nothing of it.

use std::{fmt, str::FromStr};

use rand_core::{TryCryptoRng, TryRng};
use sha2::{Digest, Sha256};
use vsss_rs::Gf256;
use zeroize::Zeroizing;

use super::{CryptoError, RootKey, envelope::Key};
use crate::domain::{Entropy, hex};

const MARK: &str = "PS1";
const CHECKSUM: usize = 4;
/// Bytes of a share's text after [`MARK`], without the checksum: threshold, number, set, share.
const BODY: usize = 1 + 1 + 4 + 32;
const LENGTH: usize = BODY + CHECKSUM;

/// One share. As text it is `PS1` and hexadecimal digits in groups, with a checksum, so that a typing error is told at
/// once. Wiped when dropped.
pub struct Share {
    threshold: u8,
    number: u8,
    set: [u8; 4],
    bytes: Key,
}

/// A text that is no share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidShare {
    /// Another text.
    #[error("it is no share: PS1- and 84 hexadecimal digits are wanted")]
    Form,
    /// Nearly a share.
    #[error("it has a typing error: its checksum does not hold")]
    Checksum,
    /// A share of another key or another number of shares.
    #[error("it belongs to other shares than the ones before it")]
    OtherSet,
    /// The shares do not make the key that they were made from.
    #[error("together the shares make no key: they are not of one splitting")]
    NoKey,
}

impl Share {
    /// How many shares make the key.
    #[must_use]
    pub fn threshold(&self) -> u8 {
        self.threshold
    }

    /// Which share it is: 1, 2, …
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    fn of_body(body: &[u8]) -> Option<Self> {
        let [threshold, number, a, b, c, d, bytes @ ..] = body else { return None };
        let mut key = Key::default();
        key.copy_from_slice(bytes.get(..32)?);
        Some(Self { threshold: *threshold, number: *number, set: [*a, *b, *c, *d], bytes: key })
    }

    fn body(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Zeroizing::new(Vec::with_capacity(LENGTH));
        body.extend_from_slice(&[self.threshold, self.number]);
        body.extend_from_slice(&self.set);
        body.extend_from_slice(&*self.bytes);
        body
    }

    /// The share as the library takes it: its number, then its bytes.
    fn numbered(&self) -> Vec<u8> {
        let mut numbered = Vec::with_capacity(1 + self.bytes.len());
        numbered.push(self.number);
        numbered.extend_from_slice(&*self.bytes);
        numbered
    }

    /// The share as text.
    #[must_use]
    pub fn text(&self) -> Zeroizing<String> {
        let mut body = self.body();
        let sum = checksum(&body);
        body.extend_from_slice(&sum);
        let digits = Zeroizing::new(hex(&body));
        let mut text = Zeroizing::new(String::with_capacity(MARK.len() + digits.len() * 2));
        text.push_str(MARK);
        for (place, digit) in digits.chars().enumerate() {
            if place % 12 == 0 {
                text.push('-');
            }
            text.push(digit);
        }
        text
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Share(…)")
    }
}

impl FromStr for Share {
    type Err = InvalidShare;

    fn from_str(text: &str) -> Result<Self, InvalidShare> {
        let digits = text.trim().strip_prefix(MARK).ok_or(InvalidShare::Form)?;
        let mut digits = digits.bytes().filter(|byte| !matches!(byte, b'-' | b' ')).map(nibble);
        let mut bytes = Zeroizing::new(vec![0; LENGTH]);
        for byte in bytes.iter_mut() {
            let mut digit = || digits.next().flatten().ok_or(InvalidShare::Form);
            *byte = digit()? << 4 | digit()?;
        }
        if digits.next().is_some() {
            return Err(InvalidShare::Form);
        }
        let (body, sum) = bytes.split_at_checked(BODY).ok_or(InvalidShare::Form)?;
        if checksum(body) != sum {
            return Err(InvalidShare::Checksum);
        }
        Self::of_body(body).filter(|share| share.threshold > 1 && share.number > 0).ok_or(InvalidShare::Form)
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM] {
    let digest = Sha256::new().chain_update(b"portcullis-v1 share").chain_update(body).finalize();
    let mut sum = [0; CHECKSUM];
    sum.iter_mut().zip(digest.iter()).for_each(|(to, from)| *to = *from);
    sum
}

impl RootKey {
    /// Splits the key into shares, of which any `threshold` make it.
    ///
    /// # Errors
    ///
    /// [`CryptoError::Malformed`] for fewer than two shares, or more needed than made.
    pub fn split(&self, threshold: u8, shares: u8, entropy: &dyn Entropy) -> Result<Vec<Share>, CryptoError> {
        if threshold < 2 || shares < threshold {
            return Err(CryptoError::Malformed);
        }
        let numbered = Gf256::split_array(threshold.into(), shares.into(), self.bytes(), Numbers(entropy));
        let numbered = Zeroizing::new(numbered.map_err(|_| CryptoError::Malformed)?);
        let share = |numbered: &Vec<u8>| {
            let (number, share) = numbered.split_first()?;
            let mut bytes = Key::default();
            bytes.copy_from_slice(share.get(..32)?);
            Some(Share { threshold, number: *number, set: self.share_set(), bytes })
        };
        numbered.iter().map(|numbered| share(numbered).ok_or(CryptoError::Malformed)).collect()
    }
}

/// Shares on their way to a key.
#[derive(Default)]
pub struct ShareBox(Vec<Share>);

impl ShareBox {
    /// Takes a share in; answers the key once there are enough. A share that is here already changes nothing.
    ///
    /// # Errors
    ///
    /// [`InvalidShare`]; where the shares make no key, all of them are forgotten.
    pub fn add(&mut self, share: Share) -> Result<Option<RootKey>, InvalidShare> {
        if self.0.first().is_some_and(|first| (first.threshold, first.set) != (share.threshold, share.set)) {
            return Err(InvalidShare::OtherSet);
        }
        if self.0.iter().all(|known| known.number() != share.number()) {
            self.0.push(share);
        }
        let Some(first) = self.0.first().filter(|first| self.0.len() >= usize::from(first.threshold)) else {
            return Ok(None);
        };
        let set = first.set;
        let numbered = Zeroizing::new(self.0.iter().map(Share::numbered).collect::<Vec<_>>());
        self.0.clear();
        let joined = Gf256::combine_array(&*numbered).map(Zeroizing::new).map_err(|_| InvalidShare::NoKey)?;
        let key = RootKey::parse(&joined).filter(|key| key.share_set() == set);
        key.map(Some).ok_or(InvalidShare::NoKey)
    }

    /// How many shares are here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many are wanted, as far as those here tell.
    #[must_use]
    pub fn threshold(&self) -> Option<u8> {
        self.0.first().map(Share::threshold)
    }
}

/// Our random source, as the library wants it.
struct Numbers<'e>(&'e dyn Entropy);

impl TryRng for Numbers<'_> {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.0.fill(bytes);
        Ok(())
    }
}

impl TryCryptoRng for Numbers<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    struct SystemEntropy;

    impl Entropy for SystemEntropy {
        fn fill(&self, buffer: &mut [u8]) {
            getrandom::fill(buffer).unwrap();
        }
    }

    fn again(share: &Share) -> Share {
        share.text().parse().unwrap()
    }

    #[test]
    fn any_three_of_five_make_the_key_and_two_do_not() {
        let root = RootKey::fresh(&SystemEntropy);
        let shares = root.split(3, 5, &SystemEntropy).unwrap();
        assert_eq!(shares.iter().map(Share::number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        for a in 0..5 {
            for b in 0..5 {
                for c in 0..5 {
                    let mut held = ShareBox::default();
                    assert!(held.add(again(&shares[a])).unwrap().is_none());
                    assert!(held.add(again(&shares[b])).unwrap().is_none());
                    let key = held.add(again(&shares[c])).unwrap();
                    let apart = a != b && b != c && a != c;
                    assert_eq!(key.map(|key| key.fingerprint()), apart.then(|| root.fingerprint()), "{a} {b} {c}");
                    assert_eq!(held.is_empty(), apart, "they are forgotten once they made the key");
                }
            }
        }
    }

    #[test]
    fn a_typing_error_or_a_stray_share_is_told_at_once() {
        let root = RootKey::fresh(&SystemEntropy);
        let shares = root.split(2, 3, &SystemEntropy).unwrap();
        let text = shares[0].text();
        assert_eq!(text.to_uppercase().parse::<Share>().unwrap().number(), 1);
        for (place, digit) in text.char_indices().filter(|(place, digit)| *place > 3 && *digit != '-') {
            let wrong = if digit == '0' { "1" } else { "0" };
            let typed = format!("{}{wrong}{}", &text[..place], &text[place + 1..]);
            assert_eq!(typed.parse::<Share>().unwrap_err(), InvalidShare::Checksum, "{place}");
        }
        for wrong in ["", "PS1", "PS2-00", &text[1..], &text[..text.len() - 1], &format!("{}0", *text), "PS1-zz"] {
            assert_eq!(wrong.parse::<Share>().unwrap_err(), InvalidShare::Form, "{wrong}");
        }
        let other = RootKey::fresh(&SystemEntropy).split(2, 3, &SystemEntropy).unwrap();
        let mut held = ShareBox::default();
        held.add(again(&shares[0])).unwrap();
        assert_eq!(held.add(again(&other[1])).unwrap_err(), InvalidShare::OtherSet);
        assert_eq!(held.len(), 1);
        let second = root.split(2, 3, &SystemEntropy).unwrap();
        assert_eq!(held.add(again(&second[1])).unwrap_err(), InvalidShare::NoKey, "of two splittings of one key");
        assert!(held.is_empty());
        for (threshold, number) in [(0, 3), (1, 3), (4, 3)] {
            assert!(root.split(threshold, number, &SystemEntropy).is_err());
        }
    }
}
