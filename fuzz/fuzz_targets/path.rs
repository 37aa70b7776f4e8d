//! Paths: the parser agrees with the grammar as it is written in the documentation, and changes nothing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::domain::SecretPath;

fuzz_target!(|text: &str| {
    let parsed = SecretPath::parse(text);
    assert_eq!(parsed.is_ok(), fits(text), "{text:?}");
    if let Ok(path) = parsed {
        assert_eq!(path.as_str(), text);
        assert_eq!(path.to_string(), text);
        assert_eq!(SecretPath::parse(path.as_str()), Ok(path));
    }
});

/// 1 to 10 segments of `[A-Za-z0-9_][A-Za-z0-9._-]*`, 512 bytes at most.
fn fits(text: &str) -> bool {
    let first = |c: char| c == '_' || c.is_ascii_alphanumeric();
    let later = |c: char| first(c) || c == '.' || c == '-';
    let segment = |text: &str| text.starts_with(first) && text.chars().all(later);
    text.len() <= 512 && text.split('/').count() <= 10 && text.split('/').all(segment)
}
