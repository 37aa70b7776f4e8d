//! The service: the one place where store, keys, policies, audit and principals meet. Every access walks one road:
//! look up, decide, open, record, and only then answer.

mod audit_log;
mod keys;
mod listing;
mod policies;
mod reading;
mod retention;
mod rewrap;
mod turnover;
mod writing;

use std::{sync::Arc, time::Duration};

use serde_json::Value;

pub use audit_log::{AuditFilter, AuditPage, ExportReader};
pub use listing::{ListPage, MetadataPage, Wanted};
pub use reading::{Asked, BatchOptions, Found, ReadOutcome, Release};
pub use rewrap::{RewrapOptions, RewrapProgress, RewrapState};
pub use turnover::{KeyRefusal, KeyStatus, Rotated, WhoseKeys};
pub use writing::{PutRequest, field_names};

use crate::{
    audit::{self, AuditKeys, Entry, Event},
    crypto::{CursorBox, Keyring, RootKeySource},
    domain::{
        Action, AuditRow, Clock, Decision, Denial, Entropy, FieldFilter, Identity, InputRead, Principal, Record,
        RequestContext, SecretPath, TenantId, Verdict, Version, request_id,
    },
    policy::{Inquiry, Policies, PolicySet, Subject, Until},
    store::{DamagedRow, SecretStore, StoreError, StoreResult, Stored},
    telemetry::Metrics,
};

/// How long a request waits for the store: for what it reads, for its change, for its audit event to be durable.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long the answer of a readiness check is given again.
const READINESS_LASTS: Duration = Duration::from_secs(1);

/// The vault. One of it serves all requests.
pub struct Vault {
    store: Arc<dyn SecretStore>,
    keyring: Keyring,
    audit_keys: Arc<AuditKeys>,
    cursors: CursorBox,
    policies: Arc<Policies>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    metrics: Arc<Metrics>,
    recoverable_for: Duration,
    fetched: keys::Fetched,
    turnover: turnover::Turnover,
    readiness: tokio::sync::Mutex<Option<(std::time::Instant, Vec<&'static str>)>>,
}

/// What a vault is made of.
pub struct Parts {
    /// Where it keeps things.
    pub store: Arc<dyn SecretStore>,
    /// Its keys.
    pub keyring: Keyring,
    /// The keys of its audit log.
    pub audit_keys: Arc<AuditKeys>,
    /// Its policies.
    pub policies: Arc<Policies>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// What is counted and timed.
    pub metrics: Arc<Metrics>,
    /// How long a deleted secret can be restored.
    pub recoverable_for: Duration,
    /// Where the root key came from, and where the next one is looked for; none where no place is known for it.
    pub root_sources: (RootKeySource, Option<RootKeySource>),
}

/// Who asks, and where and when: what every call of the vault begins with.
#[derive(Clone)]
pub struct Caller {
    /// The principal.
    pub principal: Principal,
    /// The request.
    pub context: RequestContext,
    /// The generation of policies that was in force when it arrived: it decides the whole request.
    pub policies: Arc<PolicySet>,
}

/// Why a call was not done. In the audit log by the time that it is returned, if [`Fault::is_recorded`] says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The policies do not permit it.
    Denied(Denial),
    /// There is no such secret.
    SecretNotFound,
    /// There is no such version.
    VersionNotFound,
    /// `expected_version` does not hold; this is the newest version.
    VersionConflict(i64),
    /// The path is held by a deleted secret that can still be restored.
    SecretExists,
    /// The metadata would be beyond its limits.
    MetadataTooLarge,
    /// The record does not authenticate: altered, moved, or under another key.
    Unreadable,
    /// The text is no path.
    InvalidPath,
    /// The cursor was not made for this question.
    InvalidCursor,
    /// The store, the audit log or a key cannot be had.
    Unavailable,
    /// Keys are not turned.
    Keys(KeyRefusal),
}

impl Fault {
    /// The API's code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Denied(denial) => denial.code.as_str(),
            Self::SecretNotFound => "secret_not_found",
            Self::VersionNotFound => "version_not_found",
            Self::VersionConflict(_) => "version_conflict",
            Self::SecretExists => "secret_exists",
            Self::MetadataTooLarge => "validation_error",
            Self::Unreadable => "unreadable",
            Self::InvalidPath => "invalid_path",
            Self::InvalidCursor => "invalid_cursor",
            Self::Unavailable => "service_unavailable",
            Self::Keys(refusal) => refusal.code(),
        }
    }

    /// Whether the vault has recorded it. What ends a call before anything is decided, the caller has to.
    #[must_use]
    pub const fn is_recorded(&self) -> bool {
        !matches!(self, Self::InvalidCursor | Self::Unavailable | Self::Keys(_))
    }

    /// A sentence for people.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Denied(denial) => denial.message.clone(),
            Self::SecretNotFound => "There is no secret at this path".to_owned(),
            Self::VersionNotFound => "The secret has no such version, or it was destroyed".to_owned(),
            Self::VersionConflict(newest) => format!("expected_version does not hold: the newest version is {newest}"),
            Self::SecretExists => "A deleted secret holds this path: restore it, or delete it permanently".to_owned(),
            Self::MetadataTooLarge => "The metadata would be beyond its limits".to_owned(),
            Self::Unreadable => "The stored record is damaged and cannot be opened".to_owned(),
            Self::InvalidPath => {
                "A path is 1 to 10 segments of [A-Za-z0-9_][A-Za-z0-9._-]* joined by `/`, 512 bytes at most".to_owned()
            }
            Self::InvalidCursor => "The cursor was not made for this question".to_owned(),
            Self::Unavailable => "The vault cannot serve this request now".to_owned(),
            Self::Keys(refusal) => refusal.message(),
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store failed");
        Self::Unavailable
    }
}

impl Vault {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let cursors = parts.keyring.root().cursor_box(Arc::clone(&parts.entropy));
        Self {
            store: parts.store,
            keyring: parts.keyring,
            audit_keys: parts.audit_keys,
            cursors,
            policies: parts.policies,
            clock: parts.clock,
            entropy: parts.entropy,
            metrics: parts.metrics,
            recoverable_for: parts.recoverable_for,
            fetched: keys::Fetched::default(),
            turnover: turnover::Turnover::new(parts.root_sources),
            readiness: tokio::sync::Mutex::new(None),
        }
    }

    /// The policies.
    #[must_use]
    pub fn policies(&self) -> &Arc<Policies> {
        &self.policies
    }

    /// The checks that fail: of `database`, `audit`, `keys`, `checkpoints` and `policies`. Asked in earnest once a second at most, so
    /// that whoever asks without a token cannot make the vault work.
    pub async fn failing(&self) -> Vec<&'static str> {
        let mut known = self.readiness.lock().await;
        match &*known {
            Some((at, failing)) if at.elapsed() < READINESS_LASTS => failing.clone(),
            _ => {
                let failing = self.check().await;
                *known = Some((std::time::Instant::now(), failing.clone()));
                failing
            }
        }
    }

    async fn check(&self) -> Vec<&'static str> {
        let mut failing = Vec::new();
        if let Err(error) = within(DEADLINE, self.store.ready()).await {
            tracing::error!(%error, "not ready");
            failing.extend(["database", "audit"]);
        } else if self.ensure_keys(&TenantId::default_tenant()).await.is_err() {
            failing.push("keys");
        }
        if self.metrics.checkpoints_fail() {
            failing.push("checkpoints");
        }
        if self.policies.current().modules.is_empty() {
            failing.push("policies");
        }
        failing
    }

    /// Records what became of a request that reached none of the vault's other calls: it was refused before, or it asks
    /// for no secret.
    ///
    /// # Errors
    ///
    /// [`Fault::Unavailable`] where it cannot be recorded.
    pub async fn record_request(
        &self,
        principal: Option<&Principal>,
        context: &RequestContext,
        action: &'static str,
        path: Option<SecretPath>,
        code: &'static str,
    ) -> Result<(), Fault> {
        let row = audit::pack(Entry {
            identity: principal.map(|who| &**who.identity()),
            events: vec![Event { path, ..Event::of(code) }],
            ..Entry::new(context, action, self.elapsed(context))
        });
        self.append(context, row).await
    }

    /// Records something that a caller did, or had done, to no secret.
    async fn record_system(
        &self,
        caller: &Caller,
        action: &'static str,
        code: &'static str,
        details: Value,
    ) -> Result<(), Fault> {
        let identity = Some(&**caller.principal.identity());
        self.append(&caller.context, self.system_row(identity, &caller.context, action, code, details)).await
    }

    /// Records something that the vault did by itself.
    ///
    /// # Errors
    ///
    /// [`Fault::Unavailable`] where it cannot be recorded.
    pub async fn record_own(&self, action: &'static str, details: Value) -> Result<(), Fault> {
        let context = self.own_context();
        self.append(&context, self.own_row(&context, action, details)).await
    }

    /// Where what the server does by itself comes from.
    fn own_context(&self) -> RequestContext {
        let now = self.clock.now();
        RequestContext::own(request_id(&*self.entropy, now), now)
    }

    fn own_row(&self, context: &RequestContext, action: &'static str, details: Value) -> AuditRow {
        self.system_row(None, context, action, audit::OK, details)
    }

    fn system_row(
        &self,
        identity: Option<&Identity>,
        context: &RequestContext,
        action: &'static str,
        code: &'static str,
        details: Value,
    ) -> AuditRow {
        audit::pack(Entry {
            identity,
            events: vec![Event::of(code)],
            details: Some(details),
            ..Entry::new(context, action, self.elapsed(context))
        })
    }

    /// Records what became of some paths. Nothing of them may leave before this returns.
    async fn record(&self, caller: &Caller, account: Account) -> Result<(), Fault> {
        self.append(&caller.context, self.row(caller, account)).await
    }

    fn row(&self, caller: &Caller, account: Account) -> AuditRow {
        let context = &caller.context;
        audit::pack(Entry {
            identity: Some(caller.principal.identity()),
            generation: Some(caller.policies.generation),
            policies: Some(&caller.policies.digest),
            batch_size: account.batch_size,
            inputs: account.inputs,
            events: account.events,
            ..Entry::new(context, account.action.as_str(), self.elapsed(context))
        })
    }

    /// Puts a row on record. The receipt goes to whoever answers the request.
    async fn append(&self, context: &RequestContext, row: AuditRow) -> Result<(), Fault> {
        let timer = std::time::Instant::now();
        let appended = within(DEADLINE, self.store.append(row)).await;
        self.metrics.audit_commit(timer.elapsed(), appended.is_ok());
        let receipt = appended.map_err(|error| {
            tracing::error!(%error, "the audit log cannot be written: nothing is released");
            Fault::Unavailable
        })?;
        context.receipt.put(receipt);
        Ok(())
    }

    /// Looks secrets up: one statement, one snapshot.
    async fn look_up(&self, tenant: &TenantId, wanted: &[(SecretPath, Option<Version>)]) -> Result<Vec<LookUp>, Fault> {
        let timer = std::time::Instant::now();
        let found = within(DEADLINE, self.store.get_many(tenant, wanted)).await;
        self.metrics.store_read(timer.elapsed());
        let whole = |(stored, (path, _)): (Stored, &(SecretPath, _))| {
            stored.map_err(|DamagedRow(what)| self.damaged(tenant, path, what))
        };
        Ok(found?.into_iter().zip(wanted).map(whole).collect())
    }

    /// Looks secrets up, and makes sure that their keys are here.
    async fn look_up_to_open(
        &self,
        tenant: &TenantId,
        wanted: &[(SecretPath, Option<Version>)],
    ) -> Result<Vec<LookUp>, Fault> {
        let found = self.look_up(tenant, wanted).await?;
        let records = found.iter().filter_map(|found| found.as_ref().ok()?.as_deref());
        self.ensure_keys_of(tenant, records).await?;
        Ok(found)
    }

    async fn look_up_one(
        &self,
        tenant: &TenantId,
        path: &SecretPath,
        version: Option<Version>,
    ) -> Result<LookUp, Fault> {
        Ok(self.look_up(tenant, &[(path.clone(), version)]).await?.pop().unwrap_or(Ok(None)))
    }

    /// What is stored of a secret is not what was written.
    fn damaged(&self, tenant: &TenantId, path: &SecretPath, what: &str) -> Fault {
        self.metrics.unreadable_record();
        tracing::error!(%tenant, %path, what, "ALARM: a stored record is damaged");
        Fault::Unreadable
    }

    /// Decides about some paths, in their order. With the decisions comes what the policies asked about the request.
    async fn decide_all(
        &self,
        caller: &Caller,
        action: Action,
        subjects: Vec<Subject>,
        until: Until,
    ) -> Result<(Vec<Decision>, Vec<InputRead>), Fault> {
        let inquiry = Inquiry { identity: Arc::clone(caller.principal.identity()), context: caller.context.clone() };
        self.policies.decide(&caller.policies, inquiry, action, subjects, until).await.map_err(|error| {
            tracing::error!(%error, "the access is denied");
            Fault::Unavailable
        })
    }

    /// Decides about one path.
    async fn decide_one(
        &self,
        caller: &Caller,
        action: Action,
        subject: Subject,
    ) -> Result<(Decision, Vec<InputRead>), Fault> {
        let (mut decisions, inputs) = self.decide_all(caller, action, vec![subject], Until::End).await?;
        Ok((decisions.pop().ok_or(Fault::Unavailable)?, inputs))
    }

    fn elapsed(&self, context: &RequestContext) -> Duration {
        self.clock.now().since(context.now)
    }
}

/// What a decision lets be touched, or the refusal that it is.
fn permission(decision: &Decision) -> Result<&FieldFilter, Fault> {
    match &decision.verdict {
        Verdict::Allow(filter) => Ok(filter),
        Verdict::Deny(denial) => Err(Fault::Denied(denial.clone())),
    }
}

/// What was found at a path: a record, nothing, or [`Fault::Unreadable`].
type LookUp = Result<Option<Arc<Record>>, Fault>;

/// Waits for the store, but not forever.
async fn within<T>(deadline: Duration, work: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
    tokio::time::timeout(deadline, work).await.unwrap_or(Err(StoreError::Late))
}

/// What there is to record of a request.
struct Account {
    action: Action,
    batch_size: Option<usize>,
    inputs: Vec<InputRead>,
    events: Vec<Event>,
}

impl Account {
    fn of_one(action: Action, path: SecretPath, code: &'static str, decided: (Decision, Vec<InputRead>)) -> Self {
        let (decision, inputs) = decided;
        let event = Event { path: Some(path), version: None, code, decision: Some(decision) };
        Self { action, batch_size: None, inputs, events: vec![event] }
    }
}
