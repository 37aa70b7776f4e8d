//! A secret's value and what may be known about it.

use std::{collections::BTreeMap, fmt, num::NonZeroU32};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A version's number: 1, 2, …
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(NonZeroU32);

impl Version {
    /// The first version of every secret.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// From a stored or sent number; `None` outside 1 to 2³¹ − 1 (a signed column must hold it).
    #[must_use]
    pub fn new(number: i64) -> Option<Self> {
        let number = i32::try_from(number).ok()?;
        NonZeroU32::new(u32::try_from(number).ok()?).map(Self)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> i64 {
        i64::from(self.0.get())
    }

    /// The version after this one; `None` at the end of the numbers.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        Self::new(self.get() + 1)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a secret is said to hold; a hint only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum SecretType {
    /// Names and values.
    #[default]
    Kv,
    /// Any JSON object.
    Json,
    /// A certificate with its key.
    Certificate,
    /// A key pair for SSH.
    SshKey,
    /// A key for an API.
    ApiKey,
}

impl SecretType {
    const WORDS: [(Self, &'static str); 5] = [
        (Self::Kv, "kv"),
        (Self::Json, "json"),
        (Self::Certificate, "certificate"),
        (Self::SshKey, "ssh_key"),
        (Self::ApiKey, "api_key"),
    ];

    /// The type that a word names.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(_, name)| *name == word).map(|(kind, _)| *kind)
    }

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }
}

/// Largest value, in bytes of JSON. The API refuses more, and so do the keys: no road leads a longer one to the store.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;

/// The value of a secret: a JSON object as text, wiped from memory when dropped.
///
/// INVARIANT: it has no `Display`, no `Serialize`, no `Clone`, and its `Debug` tells nothing.
pub struct SecretValue(Zeroizing<Vec<u8>>);

impl SecretValue {
    /// Takes over the bytes of a JSON object.
    #[must_use]
    pub fn new(json: Zeroizing<Vec<u8>>) -> Self {
        Self(json)
    }

    /// The value itself. Every call is a place to look at in a review.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(…)")
    }
}

/// What is known of a secret beside its value: not secret, searchable.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// A sentence for people; 1,024 bytes at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Words to search by; 50 at most, of 128 bytes each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Who answers for it; 256 bytes at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Anything else; 50 entries at most, names of 128 bytes and values of 1,024.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub custom: BTreeMap<String, String>,
}

/// A limit of [`Metadata`] that does not hold: the field, and the limit in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {limit}")]
pub struct InvalidMetadata {
    /// The field.
    pub field: &'static str,
    /// What it must be.
    pub limit: &'static str,
}

impl Metadata {
    /// What the custom entries must be.
    pub const CUSTOM_LIMIT: &str = "50 entries at most, names of 128 bytes and values of 1,024 bytes at most";

    /// Checks the limits that the fields document.
    ///
    /// # Errors
    ///
    /// Every limit that does not hold.
    pub fn check(&self) -> Result<(), Vec<InvalidMetadata>> {
        let within = |text: &String, most: usize| text.len() <= most && !text.chars().any(char::is_control);
        let checks = [
            (
                self.description.as_ref().is_none_or(|text| text.len() <= 1_024),
                "metadata.description",
                "1,024 bytes at most",
            ),
            (
                self.tags.len() <= 50 && self.tags.iter().all(|tag| !tag.is_empty() && within(tag, 128)),
                "metadata.tags",
                "50 at most, each of 1 to 128 bytes without control characters",
            ),
            (self.owner.as_ref().is_none_or(|owner| within(owner, 256)), "metadata.owner", "256 bytes at most"),
            (
                self.custom.len() <= 50 && self.custom.iter().all(|(k, v)| within(k, 128) && v.len() <= 1_024),
                "metadata.custom",
                Self::CUSTOM_LIMIT,
            ),
        ];
        let broken: Vec<_> = checks
            .into_iter()
            .filter(|(holds, ..)| !holds)
            .map(|(_, field, limit)| InvalidMetadata { field, limit })
            .collect();
        if broken.is_empty() { Ok(()) } else { Err(broken) }
    }
}

/// Metadata without a field, as text.
const NO_METADATA: &str = "{}";

/// [`Metadata`] as the JSON text that the store keeps: read many times, taken apart rarely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataText(String);

impl MetadataText {
    /// Takes over a text that the store kept; `None` where it is no metadata (the store is not trusted to be intact).
    #[must_use]
    pub fn from_store(text: String) -> Option<Self> {
        (text == NO_METADATA || serde_json::from_str::<Metadata>(&text).is_ok()).then_some(Self(text))
    }

    /// The JSON text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The fields.
    #[must_use]
    pub fn parse(&self) -> Metadata {
        // INVARIANT: the text is metadata: both ways to make one see to it.
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

impl Default for MetadataText {
    fn default() -> Self {
        Self(NO_METADATA.to_owned())
    }
}

impl From<&Metadata> for MetadataText {
    fn from(metadata: &Metadata) -> Self {
        serde_json::to_string(metadata).map(Self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_start_at_one() {
        assert_eq!(Version::new(0), None);
        assert_eq!(Version::new(-1), None);
        assert_eq!(Version::new(i64::from(i32::MAX)).unwrap().next(), None);
        assert_eq!(Version::FIRST.next().unwrap().get(), 2);
    }

    #[test]
    fn a_value_tells_nothing() {
        let value = SecretValue::new(Zeroizing::new(b"{\"k\":\"hunter2\"}".to_vec()));
        assert_eq!(format!("{value:?}"), "SecretValue(…)");
    }

    #[test]
    fn metadata_names_each_broken_limit() {
        let metadata = Metadata {
            description: Some("x".repeat(1_025)),
            tags: vec![String::new()],
            owner: Some("o".into()),
            custom: BTreeMap::from([("k".into(), "v".repeat(1_025))]),
        };
        let broken: Vec<_> = metadata.check().unwrap_err().into_iter().map(|b| b.field).collect();
        assert_eq!(broken, ["metadata.description", "metadata.tags", "metadata.custom"]);
    }
}
