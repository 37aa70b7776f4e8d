//! Keys that stay: each on a page of its own that is not swapped, where the system allows that, and wiped when dropped.

use std::sync::Once;

use region::LockGuard;
use zeroize::Zeroize;

use super::envelope::Key;

/// A key that stays.
pub type LockedKey = Locked<[u8; 32]>;

/// What stays.
pub struct Locked<T: Wipe> {
    // Let go of before the page, which it is about.
    _lock: Option<LockGuard>,
    page: Box<Page<T>>,
}

/// A whole page: what is locked is let go of by pages, and a neighbour's must not be.
#[repr(C, align(4096))]
struct Page<T>(T);

/// What can be wiped where it is.
pub trait Wipe {
    /// Leaves nothing of it there.
    fn wipe(&mut self);
}

impl Wipe for [u8; 32] {
    fn wipe(&mut self) {
        self.zeroize();
    }
}

impl<T: Wipe> Locked<T> {
    /// Has `fill` write over something empty where it is to stay. Of what leaves traces on the stack, the caller scrubs them.
    pub fn new(empty: T, fill: impl FnOnce(&mut T)) -> Self {
        static TOLD: Once = Once::new();
        let mut page = Box::new(Page(empty));
        let lock = region::lock(&raw const *page, size_of::<Page<T>>());
        if let Err(error) = &lock {
            TOLD.call_once(|| tracing::warn!(%error, "a key may be swapped: the limit of locked memory is too low"));
        }
        fill(&mut page.0);
        Self { _lock: lock.ok(), page }
    }
}

impl From<Key> for LockedKey {
    fn from(key: Key) -> Self {
        Self::new([0; 32], |here| here.copy_from_slice(&*key))
    }
}

impl<T: Wipe> std::ops::Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.page.0
    }
}

impl<T: Wipe> Drop for Locked<T> {
    fn drop(&mut self) {
        self.page.0.wipe();
    }
}

/// Wipes what the calls before left of keys on the stack below. Called by whoever called them.
#[inline(never)]
pub fn scrub_stack() {
    // Whoever might look at all of it must find it zero: so it is written, in the quickest way there is.
    std::hint::black_box(&mut [0_u64; 1024]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much memory of this process is locked, in KiB.
    fn locked() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmLck:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn a_key_that_stays_is_locked_until_it_goes() {
        let before = locked();
        let keys: Vec<LockedKey> = (0..4).map(|n| Key::copy_of(&[n; 32]).into()).collect();
        assert_eq!(*keys[3], [3; 32]);
        let during = locked();
        drop(keys);
        if during == before {
            println!("SKIPPED: no memory can be locked here");
        } else {
            assert!(during >= before + 16, "{before} {during}");
            assert!(locked() < during);
        }
    }
}
