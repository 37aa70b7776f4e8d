//! Cursors: what was sealed opens for its own question, in its own spelling, and nothing else opens at all.

#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use portcullis::{
    crypto::{CursorBox, RootKey},
    server::SystemEntropy,
};

static CURSORS: LazyLock<CursorBox> = LazyLock::new(under_a_fresh_key);
/// Never seals: the fuzzer sees what is compared, and would soon hand back what was sealed for it before.
static STRANGER: LazyLock<CursorBox> = LazyLock::new(under_a_fresh_key);

fn under_a_fresh_key() -> CursorBox {
    let directory = tempfile::tempdir().unwrap();
    let root = RootKey::load_or_create(&directory.path().join("root.key"), &SystemEntropy).unwrap().0;
    root.cursor_box(Arc::new(SystemEntropy))
}

fuzz_target!(|input: (&str, &str, u16, u8)| {
    let (question, text, at, byte) = input;
    assert_eq!(STRANGER.open(question, text), None, "nobody sealed this");
    let cursor = CURSORS.seal(question, text);
    assert_eq!(CURSORS.open(question, &cursor).as_deref(), Some(text));
    assert_eq!(CURSORS.open(&format!("{question}."), &cursor), None, "another question");
    assert_eq!(STRANGER.open(question, &cursor), None, "another key");
    let mut other = cursor.clone().into_bytes();
    let at = usize::from(at) % other.len();
    other[at] = byte & 0x7f;
    let other = String::from_utf8(other).unwrap();
    assert_eq!(CURSORS.open(question, &other).is_some(), other == cursor, "a cursor has one spelling");
});
