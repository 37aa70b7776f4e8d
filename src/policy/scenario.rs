//! A decision to be tried: who asks, from where and when, for what, and what is there. The command line, the dry run of
//! the API, the test vectors and the replay of the audit log all describe it with this one piece.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::host::{Inquiry, Subject};
use crate::domain::{
    Action, Head, Identity, IdentityKind, Metadata, MetadataText, ReceiptSlot, Record, RequestContext, Scope, Scopes,
    SecretPath, SecretType, TenantId, Timestamp, Version, VersionRecord,
};

/// Who created a secret of which nobody says it: none of those who ask, so that "the creator may" is never met by chance.
const CREATOR: &str = "user:creator";

/// A decision to be tried, as it is written down.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// `read`, `write`, `delete`, `list` or `admin`.
    #[serde(default = "read")]
    pub action: String,
    /// The path.
    pub path: String,
    /// Who asks.
    #[serde(default)]
    pub principal: PrincipalFacts,
    /// Where and when.
    #[serde(default)]
    pub context: ContextFacts,
    /// What is there.
    #[serde(default)]
    pub secret: SecretFacts,
    /// Names of the top-level fields that would be written.
    #[serde(default)]
    pub written_fields: Vec<String>,
}

fn read() -> String {
    Action::Read.as_str().to_owned()
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrincipalFacts {
    /// `user:…` or `sa:…`.
    pub id: String,
    /// Their tenant.
    pub tenant: String,
    /// The groups that their issuer vouches for.
    pub groups: Vec<String>,
    /// What their token allows.
    pub scopes: Vec<String>,
    /// The claims of their token; `sub` is their id where it is not among them.
    pub claims: Map<String, Value>,
    /// When they authenticated.
    pub authenticated_at: Option<Timestamp>,
    /// How (RFC 8176).
    pub authentication_methods: Vec<String>,
}

impl Default for PrincipalFacts {
    fn default() -> Self {
        Self {
            id: "user:test".to_owned(),
            tenant: TenantId::default_tenant().to_string(),
            groups: Vec::new(),
            scopes: Vec::new(),
            claims: Map::new(),
            authenticated_at: None,
            authentication_methods: Vec::new(),
        }
    }
}

/// Where and when they ask.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContextFacts {
    /// When.
    pub now: Option<Timestamp>,
    /// From which address.
    pub source_ip: Option<IpAddr>,
}

/// What is known of the secret at the path. Where nothing is said there is one, without tags or owner.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecretFacts {
    /// Whether there is one; where nothing is said, unless its time is over. `false` with other facts is a secret that
    /// was deleted and can still be restored: policies see what is known of it.
    pub exists: Option<bool>,
    /// `kv`, `json`, `certificate`, `ssh_key` or `api_key`.
    pub secret_type: Option<String>,
    /// The version asked for, or the newest.
    pub version: Option<i64>,
    /// Who answers for it.
    pub owner: Option<String>,
    /// Words to search by.
    pub tags: Vec<String>,
    /// Anything else.
    pub custom: BTreeMap<String, String>,
    /// Who wrote its first version.
    pub created_by: Option<String>,
    /// When.
    pub created_at: Option<Timestamp>,
    /// When its newest version or its metadata was written.
    pub updated_at: Option<Timestamp>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
}

impl SecretFacts {
    /// There is no secret.
    #[must_use]
    pub fn absent() -> Self {
        Self { exists: Some(false), ..Self::default() }
    }
}

/// What a scenario must have otherwise. Repeats nothing that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// The field, such as `principal.id`.
    pub field: &'static str,
    /// What it must be.
    pub wanted: &'static str,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.wanted)
    }
}

/// Keeps the problem where there is no value.
struct Problems(Vec<Problem>);

impl Problems {
    fn unless<T>(&mut self, value: Option<T>, field: &'static str, wanted: &'static str) -> Option<T> {
        if value.is_none() {
            self.0.push(Problem { field, wanted });
        }
        value
    }
}

impl Scenario {
    /// What the policies are asked, at `now` where the scenario names no instant.
    ///
    /// # Errors
    ///
    /// Every problem.
    pub fn pose(&self, now: Timestamp) -> Result<(Inquiry, Subject, Action), Vec<Problem>> {
        let now = self.context.now.unwrap_or(now);
        let mut problems = Problems(Vec::new());
        let wanted = "read, write, delete, list or admin is wanted";
        let action = problems.unless(Action::parse(&self.action), "action", wanted);
        let wanted = "1 to 10 segments of [A-Za-z0-9_][A-Za-z0-9._-]* joined by `/`, 512 bytes at most, are wanted";
        let path = problems.unless(SecretPath::parse(&self.path).ok(), "path", wanted);
        let identity = self.principal.identity(now, &mut problems);
        let description = self.secret.describe(&mut problems);
        match (action, path, identity, description) {
            (Some(action), Some(path), Some(identity), Some(description)) if problems.0.is_empty() => {
                let inquiry = Inquiry { identity: Arc::new(identity), context: self.context.at(now) };
                let secret = self.secret.is_known().then(|| Arc::new(self.secret.record(&path, description, now)));
                let written_fields = self.written_fields.as_slice().into();
                Ok((inquiry, Subject { path, secret, written_fields }, action))
            }
            _ => Err(problems.0),
        }
    }
}

impl PrincipalFacts {
    fn identity(&self, now: Timestamp, problems: &mut Problems) -> Option<Identity> {
        let wanted = "user:NAME or sa:NAME is wanted";
        let kind = problems.unless(IdentityKind::of_subject(&self.id), "principal.id", wanted);
        let wanted = "[a-z0-9][a-z0-9_-]*, 63 bytes at most, is wanted";
        let tenant = problems.unless(TenantId::parse(&self.tenant), "principal.tenant", wanted);
        let scopes: Option<Scopes> = self.scopes.iter().map(|word| Scope::parse(word)).collect();
        let wanted = "scopes such as secrets:read are wanted";
        let scopes = problems.unless(scopes, "principal.scopes", wanted);
        let mut claims = self.claims.clone();
        claims.entry("sub").or_insert_with(|| self.id.as_str().into());
        Some(Identity {
            id: self.id.as_str().into(),
            kind: kind?,
            tenant: tenant?,
            scopes: scopes?,
            groups: self.groups.clone(),
            authentication_methods: self.authentication_methods.clone(),
            authenticated_at: self.authenticated_at,
            expires_at: now,
            claims: Value::Object(claims),
        })
    }
}

impl ContextFacts {
    fn at(&self, now: Timestamp) -> RequestContext {
        let source_ip = self.source_ip.map(|ip| ip.to_canonical());
        RequestContext {
            request_id: "scenario".into(),
            now,
            source_ip,
            user_agent: None,
            receipt: ReceiptSlot::default(),
        }
    }
}

/// The parts of [`SecretFacts`] that have a form of their own.
struct Description {
    secret_type: SecretType,
    version: Version,
    metadata: MetadataText,
}

impl SecretFacts {
    /// Whether there is anything to be known: a secret, or what is left of one.
    fn is_known(&self) -> bool {
        *self != Self::absent()
    }

    fn describe(&self, problems: &mut Problems) -> Option<Description> {
        let secret_type = self.secret_type.as_deref().map_or(Some(SecretType::default()), SecretType::parse);
        let wanted = "kv, json, certificate, ssh_key or api_key is wanted";
        let secret_type = problems.unless(secret_type, "secret.secret_type", wanted);
        let version = self.version.map_or(Some(Version::FIRST), Version::new);
        let version = problems.unless(version, "secret.version", "a whole number from 1 is wanted");
        let metadata = Metadata {
            description: None,
            tags: self.tags.clone(),
            owner: self.owner.clone(),
            custom: self.custom.clone(),
        };
        for broken in metadata.check().err().into_iter().flatten() {
            let field = match broken.field {
                "metadata.tags" => "secret.tags",
                "metadata.owner" => "secret.owner",
                _ => "secret.custom",
            };
            problems.0.push(Problem { field, wanted: broken.limit });
        }
        Some(Description { secret_type: secret_type?, version: version?, metadata: MetadataText::from(&metadata) })
    }

    fn record(&self, path: &SecretPath, description: Description, now: Timestamp) -> Record {
        let Description { secret_type, version, metadata } = description;
        let created_at = self.created_at.unwrap_or(now);
        let created_by = self.created_by.clone().unwrap_or_else(|| CREATOR.to_owned());
        let lives = self.exists.unwrap_or_else(|| self.expires_at.is_none_or(|end| end > now));
        let head = Head {
            path: path.clone(),
            latest: version,
            secret_type,
            metadata,
            created_at,
            created_by: created_by.clone(),
            updated_at: self.updated_at.unwrap_or(created_at),
            updated_by: created_by.clone(),
            // The version ends; whether the secret as a whole is there was said apart.
            expires_at: None,
            deleted: (!lives).then_some((now, now)),
            max_versions: 1,
        };
        let version = VersionRecord {
            version,
            secret_type,
            created_at,
            created_by,
            expires_at: self.expires_at,
            destroyed_at: None,
            sealed: None,
        };
        Record { head, version: Some(version) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

    fn posed(text: &str) -> Result<(Inquiry, Subject, Action), Vec<String>> {
        let scenario: Scenario = toml::from_str(text).map_err(|error| vec![error.message().to_owned()])?;
        scenario.pose(NOW).map_err(|problems| problems.iter().map(Problem::to_string).collect())
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let (inquiry, subject, action) = posed("path = \"a/b\"").unwrap();
        assert_eq!((action, subject.path.as_str(), subject.written_fields.len()), (Action::Read, "a/b", 0));
        assert_eq!((&*inquiry.identity.id, inquiry.identity.tenant.as_str()), ("user:test", "default"));
        assert_eq!((inquiry.context.now, inquiry.context.source_ip), (NOW, None));
        assert_eq!(inquiry.identity.claims, serde_json::json!({"sub": "user:test"}));
        let record = subject.secret.unwrap();
        assert!(record.head.is_live(NOW) && record.head.created_by == CREATOR);
        assert_eq!(record.head.metadata, MetadataText::default());
    }

    #[test]
    fn everything_can_be_said() {
        let (inquiry, subject, action) = posed(
            r#"
            action = "write"
            path = "a"
            principal = { id = "sa:x", tenant = "t", groups = ["g"], scopes = ["admin"], claims = { sub = "s", n = [1] }, authenticated_at = "2026-03-02T09:00:00Z", authentication_methods = ["mfa"] }
            context = { now = "2026-03-02T09:30:00Z", source_ip = "::ffff:10.0.0.1" }
            secret = { secret_type = "json", version = 7, owner = "o", tags = ["t"], custom = { k = "v" }, created_by = "user:c", created_at = "2026-01-01T00:00:00Z", updated_at = "2026-01-02T00:00:00Z", expires_at = "2027-01-01T00:00:00Z" }
            written_fields = ["f"]
            "#,
        )
        .unwrap();
        assert_eq!(
            (action, &*inquiry.identity.id, inquiry.identity.kind),
            (Action::Write, "sa:x", IdentityKind::ServiceAccount)
        );
        assert_eq!(inquiry.identity.claims, serde_json::json!({"sub": "s", "n": [1]}));
        assert_eq!(inquiry.context.source_ip, Some([10, 0, 0, 1].into()), "as the server sees callers");
        let record = subject.secret.unwrap();
        let version = record.version.as_ref().unwrap();
        assert_eq!((version.version.get(), version.secret_type), (7, SecretType::Json));
        assert_eq!(version.expires_at.unwrap().to_string(), "2027-01-01T00:00:00.000000Z");
        assert_eq!(record.head.metadata.parse().custom["k"], "v");
        assert_eq!(&*subject.written_fields, ["f"]);
    }

    #[test]
    fn a_secret_is_there_or_was_there_or_never_was() {
        let lives = |facts: &str| {
            let (_, subject, _) = posed(&format!("path = \"a\"\nsecret = {{ {facts} }}")).unwrap();
            subject.secret.map(|record| record.head.is_live(NOW))
        };
        assert_eq!(lives(""), Some(true));
        assert_eq!(lives("exists = false"), None);
        assert_eq!(lives("exists = false, tags = [\"t\"]"), Some(false));
        assert_eq!(lives("expires_at = \"2020-01-01T00:00:00Z\""), Some(false));
        assert_eq!(lives("exists = true, expires_at = \"2020-01-01T00:00:00Z\""), Some(true));
    }

    #[test]
    fn every_problem_is_named_and_nothing_repeated() {
        let problems = posed(
            r#"
            action = "canary"
            path = "a//canary"
            principal = { id = "canary", tenant = "Canary", scopes = ["canary"] }
            secret = { secret_type = "canary", version = 0, tags = [""], owner = "canary\n", custom = { "canary\n" = "v" } }
            "#,
        )
        .unwrap_err();
        let fields: Vec<_> = problems.iter().map(|problem| problem.split(": ").next().unwrap()).collect();
        let expected = "action path principal.id principal.tenant principal.scopes secret.secret_type secret.version \
                        secret.tags secret.owner secret.custom";
        assert_eq!(fields.join(" "), expected);
        assert!(!problems.concat().contains("anary"), "{problems:?}");
        for unknown in
            ["actions = []", "principal = { name = \"x\" }", "context = { time = \"x\" }", "secret = { tag = 1 }"]
        {
            let key = unknown.rsplit(['{', ' ']).nth(3).unwrap_or(unknown);
            assert!(posed(&format!("path = \"a\"\n{unknown}")).unwrap_err()[0].contains("unknown field"), "{key}");
        }
        assert!(posed("path = \"a\"\ncontext = { now = \"yesterday\" }").unwrap_err()[0].contains("RFC 3339"));
    }
}
