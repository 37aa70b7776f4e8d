//! Cursors: where a listing stopped, sealed, since a hidden secret's name may be in it.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use super::{
    envelope::{Key, SALT, decrypt, encrypt, single_use_key},
    locked::{LockedKey, scrub_stack},
};
use crate::domain::Entropy;

/// Seals and opens cursors.
pub struct CursorBox {
    key: LockedKey,
    entropy: Arc<dyn Entropy>,
}

impl CursorBox {
    pub(super) fn new(key: Key, entropy: Arc<dyn Entropy>) -> Self {
        Self { key: key.into(), entropy }
    }

    /// A cursor that opens for the same question alone; `question` names who asks what.
    #[must_use]
    pub fn seal(&self, question: &str, position: &str) -> String {
        let mut sealed = vec![0; SALT];
        self.entropy.fill(&mut sealed);
        let mut key = Zeroizing::new([0; 32]);
        single_use_key(&mut key, &self.key, &sealed, question.as_bytes());
        let mut body = position.as_bytes().to_vec();
        // INVARIANT: a position is far below the cipher's limit of 64 GiB, so sealing cannot fail.
        let encrypted = encrypt(&key, question.as_bytes(), &mut body);
        debug_assert!(encrypted.is_ok());
        scrub_stack();
        sealed.append(&mut body);
        BASE64_URL_SAFE_NO_PAD.encode(sealed)
    }

    /// The position in a cursor; `None` where it was forged, altered, or made for another question.
    #[must_use]
    pub fn open(&self, question: &str, cursor: &str) -> Option<String> {
        let sealed = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (salt, body) = sealed.split_at_checked(SALT)?;
        let mut key = Zeroizing::new([0; 32]);
        single_use_key(&mut key, &self.key, salt, question.as_bytes());
        let mut body = body.to_vec();
        let position = decrypt(&key, question.as_bytes(), &mut body).map(|position| position.to_vec());
        scrub_stack();
        String::from_utf8(position.ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Zeros;

    impl Entropy for Zeros {
        fn fill(&self, _: &mut [u8]) {}
    }

    #[test]
    fn a_cursor_serves_its_own_question_and_hides_the_position() {
        let cursors = CursorBox::new(Key::copy_of(&[3; 32]), Arc::new(Zeros));
        let cursor = cursors.seal("list sa:a", "hidden/name");
        assert_eq!(cursors.open("list sa:a", &cursor).as_deref(), Some("hidden/name"));
        assert_eq!(cursors.open("list sa:b", &cursor), None);
        for forged in ["", "AAAA", &cursor[1..], &format!("{cursor}A")] {
            assert_eq!(cursors.open("list sa:a", forged), None);
        }
        let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(&cursor).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("hidden"));
        bytes[40] ^= 1;
        assert_eq!(cursors.open("list sa:a", &BASE64_URL_SAFE_NO_PAD.encode(bytes)), None);
    }
}
