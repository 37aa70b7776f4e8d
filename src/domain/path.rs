//! The name of a secret. Owns the one grammar of paths; nothing else in the program reads a path from text.

use std::{fmt, sync::Arc};

/// Longest path, in bytes.
pub const MAX_BYTES: usize = 512;
/// Most segments in a path.
pub const MAX_SEGMENTS: usize = 10;

/// A secret's path: 1 to 10 segments of `[A-Za-z0-9_][A-Za-z0-9._-]*` joined by `/`, 512 bytes at most.
///
/// INVARIANT: the text is exactly what the client wrote. It is never folded, normalised or percent-decoded, so the
/// policy, the store, the associated data of the ciphertext, the audit and the metrics all see the same bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretPath(Arc<str>);

/// Why a text is not a secret path. Says where, never what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPath {
    /// Nothing between the slashes, or nothing at all.
    #[error("a path has no empty segment")]
    EmptySegment,
    /// More than [`MAX_BYTES`].
    #[error("a path has 512 bytes at most")]
    TooLong,
    /// More than [`MAX_SEGMENTS`].
    #[error("a path has 10 segments at most")]
    TooManySegments,
    /// A byte outside the grammar, at this offset.
    #[error("byte {0} of the path is not allowed: segments are [A-Za-z0-9_][A-Za-z0-9._-]*")]
    Byte(usize),
}

impl SecretPath {
    /// Parses a path.
    ///
    /// # Errors
    ///
    /// [`InvalidPath`] for every text outside the grammar.
    pub fn parse(text: &str) -> Result<Self, InvalidPath> {
        if text.len() > MAX_BYTES {
            return Err(InvalidPath::TooLong);
        }
        if text.bytes().filter(|byte| *byte == b'/').count() >= MAX_SEGMENTS {
            return Err(InvalidPath::TooManySegments);
        }
        let mut at_start = true;
        for (offset, byte) in text.bytes().enumerate() {
            match byte {
                b'/' if at_start => return Err(InvalidPath::EmptySegment),
                b'/' => at_start = true,
                _ if is_segment_byte(byte, at_start) => at_start = false,
                _ => return Err(InvalidPath::Byte(offset)),
            }
        }
        if at_start {
            return Err(InvalidPath::EmptySegment);
        }
        Ok(Self(text.into()))
    }

    /// The path as the client wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_segment_byte(byte: u8, first: bool) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || (!first && matches!(byte, b'.' | b'-'))
}

impl fmt::Display for SecretPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SecretPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretPath({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn accepts_the_grammar() {
        for text in ["a", "integrations/salesforce/oauth", "A_b/0.1-x/_", "a/b/c/d/e/f/g/h/i/j"] {
            assert_eq!(SecretPath::parse(text).unwrap().as_str(), text);
        }
        assert!(SecretPath::parse(&"a".repeat(512)).is_ok());
    }

    #[test]
    fn refuses_everything_else() {
        let eleven = ["a"; 11].join("/");
        let long = "a".repeat(513);
        for text in [
            "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.b", "-a", "a b", "a%2fb", "a\0b", "ä", "a\\b", "a?b",
            "a#b", "a;b", "a*", &eleven, &long,
        ] {
            assert!(SecretPath::parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_is_kept_to_the_byte(text in "\\PC{0,40}") {
            if let Ok(path) = SecretPath::parse(&text) {
                prop_assert_eq!(path.as_str(), text.as_str());
                prop_assert!(!text.split('/').any(|segment| segment.is_empty() || segment.starts_with('.')));
            }
        }
    }
}
