//! Signed notes about a chain: text that anyone may keep, and that nobody can make up.

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::domain::{AuditPlace, ChainHead, Link, Timestamp};

/// What every signature covers first, so that it is good for nothing else.
const LABEL: &[u8] = b"portcullis-v1 audit note\n";

/// What a note says of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoteKind {
    /// The chain had come there: receipts and checkpoints.
    Reached,
    /// What stood up to there was removed on purpose: tombstones.
    Removed,
}

impl NoteKind {
    const fn word(self) -> &'static str {
        match self {
            Self::Reached => "reached1",
            Self::Removed => "removed1",
        }
    }
}

/// A note: `kind.chain.number.microseconds.link.signature`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// What it says.
    pub kind: NoteKind,
    /// Of which row.
    pub head: ChainHead,
    /// When it was said.
    pub at: Timestamp,
}

impl Note {
    /// The note as text, with its signature.
    #[must_use]
    pub fn sign(&self, key: &SigningKey) -> String {
        let mut text = self.unsigned();
        let signature = key.sign(&covered(&text));
        text.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(signature.to_bytes(), &mut text);
        text
    }

    /// The note that a text is; `None` where it is none, or was not signed by this key.
    #[must_use]
    pub fn verify(text: &str, key: &VerifyingKey) -> Option<Self> {
        let (unsigned, signature) = text.rsplit_once('.')?;
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?;
        let note = Self::parse(unsigned)?;
        key.verify_strict(&covered(unsigned), &Signature::from_slice(&signature).ok()?).ok()?;
        Some(note)
    }

    /// What a text says that has a note's parts, whoever signed it; a line that was cut short has not.
    #[must_use]
    pub fn unverified(text: &str) -> Option<Self> {
        let (unsigned, signature) = text.rsplit_once('.')?;
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?;
        Self::parse(unsigned).filter(|_| signature.len() == 64)
    }

    fn unsigned(&self) -> String {
        let ChainHead { place: AuditPlace { chain, number }, link } = self.head;
        let link = BASE64_URL_SAFE_NO_PAD.encode(link.0);
        format!("{}.{chain}.{number}.{}.{link}", self.kind.word(), self.at.micros())
    }

    fn parse(unsigned: &str) -> Option<Self> {
        let mut parts = unsigned.split('.');
        let mut next = || parts.next();
        let word = next()?;
        let kind = [NoteKind::Reached, NoteKind::Removed].into_iter().find(|kind| kind.word() == word)?;
        let place = AuditPlace { chain: next()?.parse().ok()?, number: next()?.parse().ok()? };
        let at = Timestamp::from_micros(next()?.parse().ok()?);
        let link = Link(BASE64_URL_SAFE_NO_PAD.decode(next()?).ok()?.try_into().ok()?);
        let note = Self { kind, head: ChainHead { place, link }, at };
        // One note has one text: a number has no second spelling.
        (note.unsigned() == unsigned).then_some(note)
    }
}

/// What tombstones stand for.
#[derive(Debug, Clone, Default)]
pub struct Removed {
    /// The last row that was removed of each chain.
    pub until: BTreeMap<u32, ChainHead>,
    /// How many of the texts are no tombstones of this vault.
    pub forged: usize,
}

impl Removed {
    /// Reads the tombstones that were signed by this key. The furthest of a chain holds: what is before it went with it.
    #[must_use]
    pub fn read(tombstones: &[String], key: &VerifyingKey) -> Self {
        let mut removed = Self::default();
        for text in tombstones {
            let Some(note) = Note::verify(text, key).filter(|note| note.kind == NoteKind::Removed) else {
                removed.forged += 1;
                continue;
            };
            let known = removed.until.entry(note.head.place.chain).or_insert(note.head);
            if known.place < note.head.place {
                *known = note.head;
            }
        }
        removed
    }
}

fn covered(unsigned: &str) -> Vec<u8> {
    [LABEL, unsigned.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(kind: NoteKind) -> Note {
        let head = ChainHead { place: AuditPlace { chain: 2, number: 17 }, link: Link([9; 32]) };
        Note { kind, head, at: Timestamp::from_micros(5) }
    }

    #[test]
    fn a_note_is_what_was_signed() {
        let key = SigningKey::from_bytes(&[1; 32]);
        for kind in [NoteKind::Reached, NoteKind::Removed] {
            let text = note(kind).sign(&key);
            assert!(text.is_ascii() && text.len() < 200, "{text}");
            assert_eq!(Note::verify(&text, &key.verifying_key()), Some(note(kind)));
            assert_eq!(Note::verify(&text, &SigningKey::from_bytes(&[2; 32]).verifying_key()), None);
        }
    }

    #[test]
    fn no_character_of_a_note_can_be_changed() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let text = note(NoteKind::Reached).sign(&key);
        for at in 0..text.len() {
            for bit in 0..7 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let altered = String::from_utf8(bytes).unwrap();
                assert_eq!(Note::verify(&altered, &key.verifying_key()), None, "{altered}");
            }
        }
        let removed = text.replace("reached1", "removed1");
        assert_eq!(Note::verify(&removed, &key.verifying_key()), None, "a receipt is no tombstone");
        let padded = text.replace(".17.", ".017.");
        assert_eq!(Note::verify(&padded, &key.verifying_key()), None);
        for text in ["", ".", "reached1", "reached1.1.1.1.AAAA.AAAA"] {
            assert_eq!(Note::verify(text, &key.verifying_key()), None);
        }
    }
}
