//! Who asks.

use std::{collections::BTreeSet, fmt, sync::Arc};

use serde::Serialize;

use super::Timestamp;

/// A tenant's name: `[a-z0-9][a-z0-9_-]{0,62}`. Two tenants never see one another's secrets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// Parses a tenant's name; `None` where the text is outside the grammar.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let first = text.bytes().next()?;
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        let valid = text.len() <= 63 && fits(first) && !matches!(first, b'_' | b'-') && text.bytes().all(fits);
        valid.then(|| Self(text.into()))
    }

    /// The tenant of tokens that name none.
    #[must_use]
    pub fn default_tenant() -> Self {
        Self("default".into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind of principal a subject names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityKind {
    /// A person: `user:…`.
    User,
    /// A program: `sa:…`.
    ServiceAccount,
}

impl IdentityKind {
    /// The kind that a typed subject (`user:…`, `sa:…`) names; `None` where it names none or no one.
    #[must_use]
    pub fn of_subject(subject: &str) -> Option<Self> {
        let (kind, name) = subject.split_once(':')?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@' | b'+' | b'/');
        if name.is_empty() || name.len() > 200 || !name.bytes().all(plain) {
            return None;
        }
        match kind {
            "user" => Some(Self::User),
            "sa" => Some(Self::ServiceAccount),
            _ => None,
        }
    }

    /// The word used in answers and in the audit log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::ServiceAccount => "service_account",
        }
    }
}

/// What a token allows its bearer to ask for. The policies must permit it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Read secret values.
    SecretsRead,
    /// Write secrets and their metadata.
    SecretsWrite,
    /// Delete and destroy.
    SecretsDelete,
    /// List secrets and read their metadata.
    SecretsList,
    /// See the policies in force and test them.
    PoliciesRead,
    /// Reload the policies.
    PoliciesWrite,
    /// Query the audit log.
    AuditRead,
    /// Export the audit log.
    AuditExport,
    /// All of the above.
    Admin,
}

impl Scope {
    /// Every scope with the word that a token uses for it.
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::SecretsRead, "secrets:read"),
        (Self::SecretsWrite, "secrets:write"),
        (Self::SecretsDelete, "secrets:delete"),
        (Self::SecretsList, "secrets:list"),
        (Self::PoliciesRead, "policies:read"),
        (Self::PoliciesWrite, "policies:write"),
        (Self::AuditRead, "audit:read"),
        (Self::AuditExport, "audit:export"),
        (Self::Admin, "admin"),
    ];

    /// The scope that a word names; words of other systems are `None`.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == word).map(|(scope, _)| *scope)
    }

    /// The word that a token uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(scope, _)| *scope == self).map_or("", |(_, name)| name)
    }
}

/// The scopes of one token.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scopes(BTreeSet<Scope>);

impl Scopes {
    /// Whether the scope, or `admin`, is among them.
    #[must_use]
    pub fn permit(&self, scope: Scope) -> bool {
        self.0.contains(&scope) || self.0.contains(&Scope::Admin)
    }

    /// The scopes as words, in a fixed order.
    pub fn words(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|scope| scope.as_str())
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().collect())
    }
}

/// A description of someone, as a policy sees it. By itself it opens nothing: a dry run may invent one.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The typed subject: `user:…` or `sa:…`.
    pub id: Arc<str>,
    /// What the subject's prefix says.
    pub kind: IdentityKind,
    /// The tenant whose secrets the principal may ask for.
    pub tenant: TenantId,
    /// What the token allows.
    pub scopes: Scopes,
    /// The groups that the issuer vouches for.
    pub groups: Vec<String>,
    /// How the principal authenticated (`amr`, RFC 8176).
    pub authentication_methods: Vec<String>,
    /// When the principal authenticated (`auth_time`).
    pub authenticated_at: Option<Timestamp>,
    /// When the token ends.
    pub expires_at: Timestamp,
    /// All verified claims.
    pub claims: serde_json::Value,
}

impl Identity {
    /// When a second factor was last verified: the time of authentication, where its methods include one.
    #[must_use]
    pub fn mfa_verified_at(&self) -> Option<Timestamp> {
        let second = |method: &String| matches!(method.as_str(), "mfa" | "otp" | "hwk" | "fido");
        self.authenticated_at.filter(|_| self.authentication_methods.iter().any(second))
    }
}

/// Somebody whose token was verified.
///
/// INVARIANT: only `auth` makes one (a test reads the sources to see that).
#[derive(Debug, Clone)]
pub struct Principal(Arc<Identity>);

impl Principal {
    /// To be called by the verifier of tokens alone.
    #[must_use]
    pub fn verified(identity: Identity) -> Self {
        Self(Arc::new(identity))
    }

    /// The description that a policy sees.
    #[must_use]
    pub fn identity(&self) -> &Arc<Identity> {
        &self.0
    }
}

impl std::ops::Deref for Principal {
    type Target = Identity;

    fn deref(&self) -> &Identity {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_typed() {
        assert_eq!(IdentityKind::of_subject("sa:checkout"), Some(IdentityKind::ServiceAccount));
        assert_eq!(IdentityKind::of_subject("user:ada@example.org"), Some(IdentityKind::User));
        for subject in ["", "checkout", "user:", "root:x", "user:a b", "user:a\n", "User:a", "user:*", "sa:ä"] {
            assert_eq!(IdentityKind::of_subject(subject), None, "{subject:?}");
        }
    }

    #[test]
    fn tenants_have_a_grammar() {
        assert!(TenantId::parse("team-a_1").is_some());
        for text in ["", "-a", "A", "a/b", "a b", &"a".repeat(64)] {
            assert!(TenantId::parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn admin_permits_everything_and_nothing_permits_nothing() {
        assert!(Scopes::from_iter([Scope::Admin]).permit(Scope::SecretsRead));
        assert!(!Scopes::default().permit(Scope::SecretsRead));
    }
}
