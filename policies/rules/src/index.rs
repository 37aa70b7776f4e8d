//! Finds the rules that could match a path without looking at the others. Never decides that a rule matches: a hit is
//! a candidate, and the pattern has the last word.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    ops::Range,
};

use crate::settings::{Actions, Policy};

/// Rules by the literal segments that their pattern begins with (`a/b/*/c`: `a/b`).
#[derive(Default)]
pub struct Index {
    /// By [`PrefixKey`], where in `entries` the rules of that prefix are.
    buckets: HashMap<u64, Range<usize>, BuildHasherDefault<AlreadyHashed>>,
    /// Sorted by prefix, then policy, then rule.
    entries: Vec<Entry>,
}

/// One rule in the index, with as much of it as most lookups need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The position of its policy in the settings.
    pub policy: usize,
    /// The position of the rule among the rules of all policies.
    pub rule: usize,
    /// What it is about.
    pub actions: Actions,
}

impl Index {
    /// Sorts the rules of these policies by prefix.
    #[must_use]
    pub fn new(policies: &[Policy]) -> Self {
        let rules =
            policies.iter().enumerate().flat_map(|(at, policy)| policy.rules.iter().map(move |rule| (at, rule)));
        let mut keyed: Vec<(u64, Entry)> = rules
            .enumerate()
            .map(|(rule, (policy, settings))| {
                (key_of_pattern(settings.pattern.as_str()), Entry { policy, rule, actions: settings.actions })
            })
            .collect();
        keyed.sort_unstable();
        let mut start = 0;
        let buckets = keyed.chunk_by(|(a, _), (b, _)| a == b).filter_map(|chunk| {
            let range = start..start + chunk.len();
            start = range.end;
            chunk.first().map(|(key, _)| (*key, range))
        });
        Self { buckets: buckets.collect(), entries: keyed.iter().map(|(_, entry)| *entry).collect() }
    }

    /// The candidates for a path: for each of its leading segments, the rules whose literal prefix ends there.
    pub fn buckets(&self, path: &str) -> impl Iterator<Item = &[Entry]> {
        let of_key = |key| self.buckets.get(&key).and_then(|range| self.entries.get(range.clone()));
        keys_of_path(path).filter_map(of_key)
    }
}

/// A set of policies, by position.
#[derive(Debug, Clone, Default)]
pub struct PolicySet {
    words: Vec<u64>,
}

impl PolicySet {
    /// Adds a policy.
    pub fn insert(&mut self, policy: usize) {
        let word = policy / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        if let Some(bits) = self.words.get_mut(word) {
            *bits |= 1 << (policy % 64);
        }
    }

    /// Whether the policy is in the set.
    #[must_use]
    pub fn contains(&self, policy: usize) -> bool {
        self.words.get(policy / 64).is_some_and(|bits| bits & (1 << (policy % 64)) != 0)
    }

    /// How many policies are in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.iter().map(|bits| bits.count_ones() as usize).sum()
    }

    /// Whether no policy is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|bits| *bits == 0)
    }

    /// The policies in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        let members = |(word, bits): (usize, u64)| {
            let next = |bits: &u64| Some(bits & bits.wrapping_sub(1)).filter(|rest| *rest != 0);
            let first = Some(bits).filter(|bits| *bits != 0);
            std::iter::successors(first, next).map(move |bits| word * 64 + bits.trailing_zeros() as usize)
        };
        self.words.iter().copied().enumerate().flat_map(members)
    }
}

/// FNV-1a over the bytes of a prefix, so that one pass over a path yields the key of each of its prefixes. Two prefixes
/// with one key cost a pattern match, never a wrong answer.
#[derive(Clone, Copy)]
struct PrefixKey(u64);

impl PrefixKey {
    const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    fn then(self, byte: u8) -> Self {
        Self((self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    }
}

/// The key of the empty prefix, and of each run of whole leading segments.
fn keys_of_path(path: &str) -> impl Iterator<Item = u64> {
    let bytes = path.bytes().chain(std::iter::once(b'/'));
    let before_each = bytes.scan(PrefixKey::EMPTY, |key, byte| {
        let before = *key;
        *key = before.then(byte);
        Some((byte, before.0))
    });
    let prefixes = before_each.filter(|(byte, _)| *byte == b'/').map(|(_, key)| key);
    std::iter::once(PrefixKey::EMPTY.0).chain(prefixes)
}

fn key_of_pattern(pattern: &str) -> u64 {
    let literal = |segment: &&str| !segment.contains(['*', '?']);
    let count = pattern.split('/').take_while(literal).count();
    keys_of_path(pattern).nth(count).unwrap_or(PrefixKey::EMPTY.0)
}

/// Passes a [`PrefixKey`] through.
#[derive(Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| PrefixKey(hash).then(*byte).0);
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_found_under_every_path_that_it_matches() {
        for (pattern, path) in [
            ("**", "a"),
            ("**/z", "a/b/z"),
            ("a/**", "a"),
            ("a/**", "a/b/c"),
            ("a/b", "a/b"),
            ("a/b*", "a/bc"),
            ("a/?/c", "a/b/c"),
            ("a/b/**/z", "a/b/z"),
        ] {
            let key = key_of_pattern(pattern);
            assert!(keys_of_path(path).any(|of_path| of_path == key), "{pattern} {path}");
        }
    }

    #[test]
    fn prefixes_are_whole_segments() {
        assert_eq!(key_of_pattern("a/b*"), key_of_pattern("a/**"));
        assert!(keys_of_path("ab/c").all(|key| key != key_of_pattern("a/**")));
        assert_eq!(keys_of_path("a/b/c").count(), 4);
    }

    #[test]
    fn a_policy_set_holds_what_was_inserted() {
        let mut set = PolicySet::default();
        assert!(set.is_empty());
        for policy in [200, 0, 63, 64, 63] {
            set.insert(policy);
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 200]);
        assert_eq!(set.len(), 4);
        assert!(set.contains(63) && !set.contains(1) && !set.contains(10_000));
    }
}
