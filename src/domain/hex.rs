//! Bytes as people compare them.

use std::fmt::Write;

/// The bytes in lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // INVARIANT: writing to a string does not fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}
