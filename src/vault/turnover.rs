//! Turning keys: a tenant's new generation, and a new root key. What is done and its audit event are one transaction.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::{Caller, Fault, RewrapProgress, Vault, within};
use crate::{
    audit,
    crypto::{RootKey, RootKeySource},
    domain::{AuditRow, GenerationUse, RequestContext, TenantId, hex},
    store::{KeyChange, KeyChangeRequest, KeyWitness, RewrapAll, StoreError, StoreResult},
};

/// How long a change of many keys may take, or a count of all records.
pub(super) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Why keys are not turned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyRefusal {
    /// The root key was replaced through another server.
    OtherRoot,
    /// The next root key cannot be had.
    NoNextRoot(String),
    /// The next root key is the present one.
    SameRoot,
    /// Keys are being turned already.
    Busy,
    /// The tenant has no keys.
    NoKeys,
    /// The caller's tenant may not do this.
    OtherTenant,
}

impl KeyRefusal {
    /// The API's code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::OtherRoot => "service_unavailable",
            Self::NoNextRoot(_) | Self::SameRoot => "root_key_rejected",
            Self::Busy => "keys_busy",
            Self::NoKeys => "not_found",
            Self::OtherTenant => "access_denied",
        }
    }

    /// A sentence for people.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::OtherRoot => {
                "The root key was replaced through another server, and this one still holds the old one: \
                                give it the new one and start it anew"
                    .to_owned()
            }
            Self::NoNextRoot(problem) => format!("There is no next root key: {problem}"),
            Self::SameRoot => "The next root key is the present one".to_owned(),
            Self::Busy => "Keys are being turned at this moment: try again when that is done".to_owned(),
            Self::NoKeys => "The tenant has no keys: they are made when it first writes".to_owned(),
            Self::OtherTenant => "Only an administrator of the tenant `default` may do this".to_owned(),
        }
    }
}

/// Whose keys are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhoseKeys {
    /// One tenant's.
    Of(TenantId),
    /// Every tenant's.
    All,
}

/// A tenant's new generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// The tenant.
    pub tenant: TenantId,
    /// The generation that new values are sealed under.
    pub generation: u32,
}

/// How the keys stand.
pub struct KeyStatus {
    /// The generations, by tenant.
    pub generations: Vec<GenerationUse>,
    /// The root key's fingerprint, and the kind of place that it came from; for the default tenant alone.
    pub root: Option<(String, &'static str)>,
    /// Whether this server's root key is the vault's: not so after it was replaced through another server.
    pub root_is_current: bool,
    /// The last re-wrapping, if there was one since the start.
    pub rewrap: Option<RewrapProgress>,
}

/// What turning keys needs to remember.
pub(super) struct Turnover {
    pub(super) source: RootKeySource,
    pub(super) next: Option<RootKeySource>,
    /// Held while keys are turned: two at once would stand in each other's way.
    pub(super) turn: tokio::sync::Mutex<()>,
    pub(super) rewrap: Mutex<Option<RewrapProgress>>,
}

impl Turnover {
    pub(super) fn new((source, next): (RootKeySource, Option<RootKeySource>)) -> Self {
        Self { source, next, turn: tokio::sync::Mutex::default(), rewrap: Mutex::default() }
    }
}

impl Vault {
    /// How the keys stand: of every tenant for the default tenant, of its own for another.
    ///
    /// # Errors
    ///
    /// [`Fault::Unavailable`] where the store does not say, or the look cannot be recorded.
    pub async fn key_status(&self, caller: &Caller) -> Result<KeyStatus, Fault> {
        let tenant = &caller.principal.tenant;
        let whole = *tenant == TenantId::default_tenant();
        let generations = within(PATIENCE, self.store.generations((!whole).then_some(tenant))).await?;
        let own = self.keyring.root().fingerprint();
        let kept = within(PATIENCE, self.store.root_fingerprint(&own)).await?;
        let rewrap = self.rewrap_progress().filter(|progress| whole || progress.whose == WhoseKeys::Of(tenant.clone()));
        Ok(KeyStatus {
            generations,
            root: whole.then(|| (hex(&own), self.turnover.source.kind())),
            root_is_current: kept == own,
            rewrap,
        })
    }

    /// Makes a new generation of keys. New values are sealed under it at once.
    ///
    /// # Errors
    ///
    /// [`Fault::Keys`] and [`Fault::Unavailable`]; tenants before the one that failed have their new generation.
    pub async fn rotate_keys(&self, caller: &Caller, whose: &WhoseKeys) -> Result<Vec<Rotated>, Fault> {
        may_turn(caller, whose)?;
        let _turn = self.turnover.turn.try_lock().map_err(|_| Fault::Keys(KeyRefusal::Busy))?;
        let mut rotated = Vec::new();
        for tenant in self.tenants(whose).await? {
            rotated.push(self.rotate_tenant(caller, tenant).await?);
        }
        Ok(rotated)
    }

    async fn rotate_tenant(&self, caller: &Caller, tenant: TenantId) -> Result<Rotated, Fault> {
        if !self.fetch_keys(&tenant).await? {
            return Err(Fault::Keys(KeyRefusal::NoKeys));
        }
        let generation = self.keyring.newest(&tenant).unwrap_or(0).checked_add(1).ok_or(Fault::Unavailable)?;
        let key = self.keyring.fresh_tenant_key(&tenant, generation).map_err(|_| Fault::Unavailable)?;
        let change = KeyChange::Add { tenant: tenant.clone(), key, root: self.keyring.root().fingerprint() };
        let details = json!({ "tenant": tenant.as_str(), "generation": generation });
        let row = self.key_event(Some(caller), &caller.context, "rotate_keys", details);
        // Where another server was faster, the generation is its, and new all the same.
        self.change_keys(caller, change, Box::new(|_| row)).await?;
        self.fetch_keys(&tenant).await?;
        tracing::info!(%tenant, generation, "the tenant's keys have a new generation");
        Ok(Rotated { tenant, generation })
    }

    /// Replaces the root key by the one that is found at the place for the next. Answers its fingerprint.
    ///
    /// What is derived from the old one (the key of the server's own tokens, of cursors, of what is kept of the policies)
    /// serves on until the server starts anew.
    ///
    /// # Errors
    ///
    /// [`Fault::Keys`] and [`Fault::Unavailable`]: then the old one is the vault's.
    pub async fn rotate_root(self: &Arc<Self>, caller: &Caller) -> Result<String, Fault> {
        may_turn(caller, &WhoseKeys::All)?;
        let _turn = self.turnover.turn.try_lock().map_err(|_| Fault::Keys(KeyRefusal::Busy))?;
        let next = Arc::new(self.next_root().await?);
        let (from, to) = (self.keyring.root().fingerprint(), next.fingerprint());
        if from == to {
            return Err(Fault::Keys(KeyRefusal::SameRoot));
        }
        let details = json!({ "from": hex(&from), "to": hex(&to) });
        let row = self.key_event(Some(caller), &caller.context, "rotate_root_key", details);
        let change = KeyChange::ReplaceRoot { from, to: to.clone(), rewrap: self.rewrap_under(Arc::clone(&next)) };
        if let Err(fault) = self.change_keys(caller, change, Box::new(|_| row)).await {
            // What was not answered in time may have been done all the same.
            let kept = within(PATIENCE, self.store.root_fingerprint(&to)).await;
            if kept.ok().as_ref() != Some(&to) {
                return Err(fault);
            }
        }
        self.keyring.replace_root(next);
        tracing::warn!(fingerprint = hex(&to), "the root key was replaced: make the new one the configured one");
        Ok(hex(&to))
    }

    /// Puts on record that the server is about to be sealed.
    ///
    /// # Errors
    ///
    /// [`Fault::Keys`] where the caller may not ask for it; [`Fault::Unavailable`] where it cannot be recorded.
    pub async fn record_sealing(&self, caller: &Caller) -> Result<(), Fault> {
        may_turn(caller, &WhoseKeys::All)?;
        self.append(&caller.context, self.key_event(Some(caller), &caller.context, "seal", json!({}))).await
    }

    /// Puts on record that the server was unsealed, before it serves.
    ///
    /// # Errors
    ///
    /// [`Fault::Unavailable`] where it cannot be recorded.
    pub async fn record_unsealing(&self) -> Result<(), Fault> {
        self.record_own("unseal", json!({})).await
    }

    async fn next_root(&self) -> Result<RootKey, Fault> {
        let refused = |problem: String| Fault::Keys(KeyRefusal::NoNextRoot(problem));
        let source = self.turnover.next.clone().ok_or_else(|| refused("[root_key.next] names no place".to_owned()))?;
        // It may ask a program, or hash a passphrase.
        let loading = tokio::task::spawn_blocking(move || RootKey::load(&source));
        let loaded = loading.await.map_err(|error| refused(error.to_string()))?;
        loaded.map_err(|error| refused(error.to_string()))
    }

    fn rewrap_under(self: &Arc<Self>, next: Arc<RootKey>) -> RewrapAll {
        let vault = Arc::clone(self);
        Box::new(move |stock| {
            let again = vault.keyring.rewrap_stock(&next, stock);
            again.inspect_err(|error| tracing::error!(%error, "ALARM: a key does not open under the root key")).ok()
        })
    }

    async fn change_keys(&self, caller: &Caller, change: KeyChange, witness: KeyWitness) -> Result<u64, Fault> {
        let request = KeyChangeRequest { change, witness: Some(witness) };
        let (changed, receipt) = refused(within(PATIENCE, self.store.change_keys(request)).await)?;
        caller.context.receipt.put(receipt);
        Ok(changed)
    }

    /// The tenants meant, of all that have keys.
    pub(super) async fn tenants(&self, whose: &WhoseKeys) -> Result<Vec<TenantId>, Fault> {
        if let WhoseKeys::Of(tenant) = whose {
            return Ok(vec![tenant.clone()]);
        }
        let generations = within(PATIENCE, self.store.generations(None)).await?;
        let mut tenants: Vec<TenantId> = generations.into_iter().map(|generation| generation.tenant).collect();
        tenants.dedup();
        Ok(tenants)
    }

    pub(super) fn key_event(
        &self,
        caller: Option<&Caller>,
        context: &RequestContext,
        action: &'static str,
        details: Value,
    ) -> AuditRow {
        let identity = caller.map(|caller| &**caller.principal.identity());
        self.system_row(identity, context, action, audit::OK, details)
    }
}

/// A tenant's administrator turns its own tenant's keys; the default tenant's anyone's.
pub(super) fn may_turn(caller: &Caller, whose: &WhoseKeys) -> Result<(), Fault> {
    let own = &caller.principal.tenant;
    let allowed = *own == TenantId::default_tenant() || *whose == WhoseKeys::Of(own.clone());
    if allowed { Ok(()) } else { Err(Fault::Keys(KeyRefusal::OtherTenant)) }
}

/// Tells the caller where another server has replaced the root key.
fn refused<T>(result: StoreResult<T>) -> Result<T, Fault> {
    match result {
        Err(StoreError::OtherRoot) => {
            tracing::error!("{}", StoreError::OtherRoot);
            Err(Fault::Keys(KeyRefusal::OtherRoot))
        }
        other => Ok(other?),
    }
}
