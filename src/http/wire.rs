//! Bodies of requests and answers, as the API documents them.

#![expect(clippy::option_option, reason = "a merge patch tells `null` from absent")]
#![expect(clippy::struct_field_names, reason = "the API's own names")]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::json::{maybe_object, object};
use crate::domain::{Head, Metadata, MetadataText, SecretType, Timestamp, Version, VersionRecord, VersionState};

/// A new version of a secret.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutBody<'a> {
    /// The value: a JSON object of 1 MiB at most.
    #[serde(borrow)]
    #[schema(value_type = Object)]
    pub data: &'a RawValue,
    /// `kv`, `json`, `certificate`, `ssh_key` or `api_key`; as before (or `kv`) where absent.
    pub secret_type: Option<String>,
    /// What may be known of it; as before where absent.
    #[serde(default, deserialize_with = "maybe_object")]
    pub metadata: Option<MetadataBody>,
    /// How to write it.
    #[serde(default, deserialize_with = "object")]
    pub options: PutOptions,
}

/// How to write a version.
#[derive(Deserialize, ToSchema, Default)]
#[serde(deny_unknown_fields)]
pub struct PutOptions {
    /// How many versions to keep, 1 to 1,000; 10 where nobody ever said.
    pub max_versions: Option<u32>,
    /// When the version ends, from now, such as `90d`.
    pub expires_in: Option<String>,
    /// The version that must be the newest; 0: there must be none.
    pub expected_version: Option<i64>,
}

/// What may be known of a secret beside its value.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MetadataBody {
    /// A sentence for people.
    pub description: Option<String>,
    /// Words to search by.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Who answers for it.
    pub owner: Option<String>,
    /// Anything else.
    #[serde(default)]
    pub custom: BTreeMap<String, String>,
}

impl From<MetadataBody> for Metadata {
    fn from(body: MetadataBody) -> Self {
        Self { description: body.description, tags: body.tags, owner: body.owner, custom: body.custom }
    }
}

/// A JSON merge patch (RFC 7396) of the metadata: what is absent stays, what is `null` goes.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MetadataPatch {
    /// A sentence for people.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub description: Option<Option<String>>,
    /// Words to search by; replaced as a whole.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Vec<String>>)]
    pub tags: Option<Option<Vec<String>>>,
    /// Who answers for it.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub owner: Option<Option<String>>,
    /// Anything else; patched entry by entry.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Object>)]
    pub custom: Option<Option<BTreeMap<String, Option<String>>>>,
}

/// Tells `null` from absent.
fn present<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl MetadataPatch {
    /// The metadata with the patch applied.
    #[must_use]
    pub fn apply(&self, before: Metadata) -> Metadata {
        let custom = match &self.custom {
            None => before.custom,
            Some(None) => BTreeMap::new(),
            Some(Some(entries)) => {
                let mut custom = before.custom;
                for (name, value) in entries {
                    match value {
                        Some(value) => drop(custom.insert(name.clone(), value.clone())),
                        None => drop(custom.remove(name)),
                    }
                }
                custom
            }
        };
        Metadata {
            description: self.description.clone().unwrap_or(before.description),
            tags: self.tags.clone().map_or(before.tags, Option::unwrap_or_default),
            owner: self.owner.clone().unwrap_or(before.owner),
            custom,
        }
    }
}

/// A version that was written.
#[derive(Serialize, ToSchema)]
pub struct Written {
    /// The secret's path.
    pub path: String,
    /// The new version.
    #[schema(value_type = i64)]
    pub version: Version,
    /// What it is said to hold.
    #[schema(value_type = String)]
    pub secret_type: SecretType,
    /// When it was written.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it ends.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

/// A secret that was hidden.
#[derive(Serialize, ToSchema)]
pub struct Deleted {
    /// The secret's path.
    pub path: String,
    /// When it was deleted.
    #[schema(value_type = String, format = DateTime)]
    pub deleted_at: Timestamp,
    /// Until when it can be restored.
    #[schema(value_type = String, format = DateTime)]
    pub recoverable_until: Timestamp,
}

/// Which version to write again.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackBody {
    /// The version.
    pub version: i64,
}

/// Which versions to destroy.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DestroyBody {
    /// The versions, 1 to 1,000 of them.
    pub versions: Vec<i64>,
}

/// What was destroyed.
#[derive(Serialize, ToSchema)]
pub struct Destroyed {
    /// The secret's path.
    pub path: String,
    /// The versions whose values and keys are gone.
    #[schema(value_type = Vec<i64>)]
    pub destroyed: Vec<Version>,
}

/// A secret with its value.
#[derive(Serialize, ToSchema)]
pub struct Secret<'a> {
    /// Its path.
    pub path: &'a str,
    /// The version read.
    #[schema(value_type = i64)]
    pub version: Version,
    /// What it is said to hold.
    #[schema(value_type = String)]
    pub secret_type: SecretType,
    /// The value.
    #[schema(value_type = Object)]
    pub data: &'a RawValue,
    /// What may be known of it.
    #[schema(value_type = MetadataBody)]
    pub metadata: &'a RawValue,
    /// When its first version was written.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: &'a str,
    /// When it was last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// By whom.
    pub updated_by: &'a str,
    /// When the version read ends.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

/// A secret without its value.
#[derive(Serialize, ToSchema)]
pub struct Description {
    /// Its path.
    pub path: String,
    /// The newest version.
    #[schema(value_type = i64)]
    pub version: Version,
    /// What it is said to hold.
    #[schema(value_type = String)]
    pub secret_type: SecretType,
    /// What may be known of it.
    #[schema(value_type = MetadataBody)]
    pub metadata: Metadata,
    /// When its first version was written.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// When it was last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// By whom.
    pub updated_by: String,
    /// When the newest version ends.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

impl From<Head> for Description {
    fn from(head: Head) -> Self {
        Self {
            path: head.path.as_str().to_owned(),
            version: head.latest,
            secret_type: head.secret_type,
            metadata: head.metadata.parse(),
            created_at: head.created_at,
            created_by: head.created_by,
            updated_at: head.updated_at,
            updated_by: head.updated_by,
            expires_at: head.expires_at,
        }
    }
}

/// The versions of a secret, newest first.
#[derive(Serialize, ToSchema)]
pub struct Versions {
    /// The secret's path.
    pub path: String,
    /// Its versions.
    pub versions: Vec<VersionItem>,
}

/// One version of a secret.
#[derive(Serialize, ToSchema)]
pub struct VersionItem {
    /// Its number.
    #[schema(value_type = i64)]
    pub version: Version,
    /// What it is said to hold.
    #[schema(value_type = String)]
    pub secret_type: SecretType,
    /// When it was written.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// When it ends.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// `active`, `expired` or `destroyed`.
    pub state: &'static str,
}

impl VersionItem {
    /// The version as it stands at `now`.
    #[must_use]
    pub fn at(record: VersionRecord, now: Timestamp) -> Self {
        let state = match record.state(now) {
            VersionState::Live => "active",
            VersionState::Expired => "expired",
            VersionState::Destroyed => "destroyed",
        };
        Self {
            version: record.version,
            secret_type: record.secret_type,
            created_at: record.created_at,
            created_by: record.created_by,
            expires_at: record.expires_at,
            state,
        }
    }
}

/// Which version to read.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReadQuery {
    /// The version; the newest where absent.
    pub version: Option<i64>,
}

/// How to delete.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteQuery {
    /// Removes all versions and their keys for good.
    #[serde(default)]
    pub permanent: bool,
}

/// What to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Paths that start with this.
    #[serde(default)]
    pub prefix: String,
    /// Entries on a page: 1 to 1,000, 100 where absent.
    pub limit: Option<usize>,
    /// Where the page before ended.
    pub cursor: Option<String>,
}

/// A page of secrets.
#[derive(Serialize, ToSchema)]
pub struct ListBody {
    /// The secrets that the caller may list, in the order of their paths.
    pub secrets: Vec<ListItem>,
    /// Where the next page begins.
    pub cursor: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}

/// One secret of a page.
#[derive(Serialize, ToSchema)]
pub struct ListItem {
    /// Its path.
    pub path: String,
    /// The newest version.
    #[schema(value_type = i64)]
    pub version: Version,
    /// What it is said to hold.
    #[schema(value_type = String)]
    pub secret_type: SecretType,
    /// When it was last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// Words to search by.
    pub tags: Vec<String>,
}

impl From<Head> for ListItem {
    fn from(head: Head) -> Self {
        Self {
            path: head.path.as_str().to_owned(),
            version: head.latest,
            secret_type: head.secret_type,
            updated_at: head.updated_at,
            tags: head.metadata.parse().tags,
        }
    }
}

/// Secrets to read in one call.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchBody {
    /// 1 to 100 paths; a path given twice is one path.
    pub paths: Vec<String>,
    /// How to read them.
    #[serde(default, deserialize_with = "object")]
    pub options: BatchOptionsBody,
}

/// How to read a batch.
#[derive(Deserialize, ToSchema, Default)]
#[serde(deny_unknown_fields)]
pub struct BatchOptionsBody {
    /// Adds metadata and times to each result.
    #[serde(default)]
    pub include_metadata: bool,
    /// The first failing path ends the batch with its own status.
    #[serde(default)]
    pub fail_fast: bool,
    /// The version to read of every path.
    pub version: Option<i64>,
    /// The version to read of single paths; wins over `version`.
    #[serde(default)]
    pub versions: BTreeMap<String, i64>,
}

/// A batch's answer.
#[derive(Serialize, ToSchema)]
pub struct BatchReply<'a> {
    /// What was read, by path, in the order of the request.
    #[schema(value_type = BTreeMap<String, BatchSecret>)]
    pub secrets: Ordered<'a, BatchSecret<'a>>,
    /// What was not, by path.
    #[schema(value_type = BTreeMap<String, BatchError>)]
    pub errors: Ordered<'a, BatchError>,
    /// How many were read.
    pub retrieved: usize,
    /// How many were not.
    pub failed: usize,
}

/// One secret of a batch.
#[derive(Serialize, ToSchema)]
pub struct BatchSecret<'a> {
    /// The value.
    #[schema(value_type = Object)]
    pub data: &'a RawValue,
    /// The version read.
    #[schema(value_type = i64)]
    pub version: Version,
    /// What it is said to hold.
    #[schema(value_type = String)]
    pub secret_type: SecretType,
    /// With `include_metadata`.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub more: Option<BatchSecretMore<'a>>,
}

/// What `include_metadata` adds.
#[derive(Serialize, ToSchema)]
pub struct BatchSecretMore<'a> {
    /// What may be known of it.
    #[schema(value_type = MetadataBody)]
    pub metadata: &'a RawValue,
    /// When its first version was written.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// When the version read ends.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

/// Why one path of a batch failed.
#[derive(Serialize, ToSchema)]
pub struct BatchError {
    /// A stable word for machines.
    pub code: &'static str,
    /// A sentence for people.
    pub message: String,
    /// The policy's own reason, where it is none of the API's codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<serde_json::Value>,
}

/// Descriptions to read in one call.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchMetadataBody {
    /// 1 to 100 paths or patterns.
    pub paths: Vec<String>,
    /// Whether patterns become the paths that match.
    #[serde(default)]
    pub expand_wildcards: bool,
    /// How to page.
    #[serde(default, deserialize_with = "object")]
    pub options: PageOptions,
}

/// How to page.
#[derive(Deserialize, ToSchema, Default)]
#[serde(deny_unknown_fields)]
pub struct PageOptions {
    /// Results on a page: 1 to 1,000, 1,000 where absent.
    pub limit: Option<usize>,
    /// Where the page before ended.
    pub cursor: Option<String>,
}

/// A batch of descriptions.
#[derive(Serialize, ToSchema)]
pub struct BatchMetadataReply<'a> {
    /// What was found, by path.
    #[schema(value_type = BTreeMap<String, BatchDescription>)]
    pub metadata: Ordered<'a, Described<'a>>,
    /// What was named and cannot be shown, by path.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, BatchError>,
    /// Where the next page begins.
    pub cursor: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}

/// One description of a batch.
#[derive(Serialize, ToSchema)]
pub struct BatchDescription {
    /// The newest version.
    #[schema(value_type = i64)]
    pub version: Version,
    /// What it is said to hold.
    #[schema(value_type = String)]
    pub secret_type: SecretType,
    /// When its first version was written.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// When the newest version ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// Description, tags, owner and custom entries, where there are any.
    #[serde(flatten)]
    #[schema(value_type = MetadataBody)]
    pub metadata: Metadata,
}

/// A [`BatchDescription`] that is made when it is written.
pub struct Described<'a>(pub &'a Head);

impl Serialize for Described<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(head) = self;
        let description = BatchDescription {
            version: head.latest,
            secret_type: head.secret_type,
            created_at: head.created_at,
            updated_at: head.updated_at,
            expires_at: head.expires_at,
            metadata: head.metadata.parse(),
        };
        description.serialize(serializer)
    }
}

/// A JSON object in the order of its entries.
pub struct Ordered<'a, T>(pub Vec<(&'a str, T)>);

impl<T: Serialize> Serialize for Ordered<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// The stored metadata as it stands, or `null` where it was damaged.
#[must_use]
pub fn raw_metadata(metadata: &MetadataText) -> &RawValue {
    serde_json::from_str(metadata.as_str()).unwrap_or(RawValue::NULL)
}
