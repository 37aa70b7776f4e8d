//! Patterns: a pattern and, on the next line, a path. The quick matcher agrees with one that tries everything.

#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::domain::PathPattern;

/// What tries everything is not to be asked about more than this.
const LONGEST: usize = 48;

fuzz_target!(|text: &str| {
    let (pattern, path) = text.split_once('\n').unwrap_or((text, "a"));
    let Ok(parsed) = PathPattern::parse(pattern) else { return };
    assert_eq!(parsed.as_str(), pattern);
    assert_eq!(PathPattern::parse(parsed.as_str()).as_ref(), Ok(&parsed));
    let matches = parsed.matches(path);
    if parsed.is_literal() {
        assert_eq!(matches, pattern == path);
    }
    if matches {
        assert!(path.starts_with(parsed.literal_prefix()), "{pattern} {path}");
    }
    if pattern.len() + path.len() <= LONGEST {
        let (pattern, path): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), path.split('/').collect());
        assert_eq!(matches, tries_everything(&pattern, &path), "{pattern:?} {path:?}");
    }
});

fn tries_everything(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        (["**", rest @ ..], _) => (0..=path.len()).any(|skipped| tries_everything(rest, &path[skipped..])),
        ([one, rest @ ..], [segment, others @ ..]) => {
            within_a_segment(one.as_bytes(), segment.as_bytes()) && tries_everything(rest, others)
        }
        _ => false,
    }
}

fn within_a_segment(glob: &[u8], text: &[u8]) -> bool {
    match (glob, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|skipped| within_a_segment(rest, &text[skipped..])),
        ([one, rest @ ..], [byte, others @ ..]) => (*one == b'?' || one == byte) && within_a_segment(rest, others),
        _ => false,
    }
}
