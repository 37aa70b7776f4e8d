//! Moves data keys under the newest generation of their tenant's keys, while the vault serves. No value is touched.
//!
//! What is left to do is what the store still has under an older generation, so a re-wrapping that was cut off is begun
//! again and goes on where it was.

use std::sync::{Arc, PoisonError};

use serde_json::json;

use super::{
    Caller, Fault, KeyRefusal, Vault, WhoseKeys,
    turnover::{PATIENCE, may_turn},
    within,
};
use crate::{
    domain::{TenantId, Timestamp, WrappedDataKey, WrappedKey},
    store::{KeyChange, KeyChangeRequest},
};

/// How many keys one transaction moves: few enough that no writer waits long behind it.
const BATCH: u32 = 256;

/// What is wanted besides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RewrapOptions {
    /// Whether to remove the generations that wrap nothing any more.
    pub drop_unused: bool,
}

/// How far a re-wrapping is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RewrapProgress {
    /// Whose keys.
    pub whose: WhoseKeys,
    /// How it stands.
    pub state: RewrapState,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// How many data keys were under older generations when it began.
    pub total: u64,
    /// How many were moved.
    pub moved: u64,
    /// How many could not be opened: they stay as they are, and so does their generation.
    pub unreadable: u64,
    /// How many generations were removed.
    pub dropped: u64,
}

/// How a re-wrapping stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RewrapState {
    /// At work.
    Running,
    /// Nothing is left that can be moved.
    Done,
    /// The store failed, or the server was sealed. Beginning again goes on from there.
    Stopped,
}

impl RewrapState {
    /// The API's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Stopped => "stopped",
        }
    }
}

impl Vault {
    /// Begins to move data keys under the newest generation, and answers at once.
    ///
    /// # Errors
    ///
    /// [`Fault::Keys`] where it is under way already, or not the caller's to ask for; [`Fault::Unavailable`].
    pub async fn rewrap_keys(
        self: &Arc<Self>,
        caller: &Caller,
        whose: WhoseKeys,
        options: RewrapOptions,
    ) -> Result<RewrapProgress, Fault> {
        may_turn(caller, &whose)?;
        let tenants = self.tenants(&whose).await?;
        let mut total = 0;
        for tenant in &tenants {
            total += self.stale_records(tenant).await?;
        }
        let started_at = self.clock.now();
        let progress = RewrapProgress {
            whose,
            state: RewrapState::Running,
            started_at,
            finished_at: None,
            total,
            moved: 0,
            unreadable: 0,
            dropped: 0,
        };
        self.begin(&progress)?;
        let details = json!({ "whose": word(&progress.whose), "stale": total, "drop_unused": options.drop_unused });
        let row = self.key_event(Some(caller), &caller.context, "rewrap_keys", details);
        if let Err(fault) = self.append(&caller.context, row).await {
            self.advance(|progress| progress.state = RewrapState::Stopped);
            return Err(fault);
        }
        tokio::spawn(Arc::clone(self).rewrap_all(tenants, options));
        Ok(progress)
    }

    /// How far the last re-wrapping is.
    pub(super) fn rewrap_progress(&self) -> Option<RewrapProgress> {
        self.turnover.rewrap.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends a re-wrapping after the batch that it is at.
    pub fn stop_rewrapping(&self) {
        self.advance(|progress| {
            if progress.state == RewrapState::Running {
                progress.state = RewrapState::Stopped;
            }
        });
    }

    fn begin(&self, progress: &RewrapProgress) -> Result<(), Fault> {
        let mut last = self.turnover.rewrap.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_some_and(|last| last.finished_at.is_none() && last.state == RewrapState::Running) {
            return Err(Fault::Keys(KeyRefusal::Busy));
        }
        *last = Some(progress.clone());
        Ok(())
    }

    fn advance(&self, step: impl FnOnce(&mut RewrapProgress)) {
        let mut last = self.turnover.rewrap.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(progress) = last.as_mut() {
            step(progress);
        }
    }

    fn is_stopped(&self) -> bool {
        self.rewrap_progress().is_none_or(|progress| progress.state != RewrapState::Running)
    }

    async fn rewrap_all(self: Arc<Self>, tenants: Vec<TenantId>, options: RewrapOptions) {
        let mut ended = Ok(());
        for tenant in &tenants {
            ended = self.rewrap_tenant(tenant, options).await;
            if ended.is_err() || self.is_stopped() {
                break;
            }
        }
        let now = self.clock.now();
        self.advance(|progress| {
            let whole = ended.is_ok() && progress.state == RewrapState::Running;
            progress.state = if whole { RewrapState::Done } else { RewrapState::Stopped };
            progress.finished_at = Some(now);
        });
        let Some(RewrapProgress { whose, state, moved, unreadable, dropped, .. }) = self.rewrap_progress() else {
            return;
        };
        let state = state.as_str();
        tracing::info!(whose = word(&whose), state, moved, unreadable, dropped, "the data keys were re-wrapped");
        let details = json!({ "whose": word(&whose), "state": state, "moved": moved, "unreadable": unreadable,
                              "dropped": dropped });
        let context = self.own_context();
        self.append(&context, self.key_event(None, &context, "rewrap_keys", details)).await.ok();
    }

    /// Walks over the tenant's records until nothing is left that could be moved: writers on other servers may have used the
    /// generation before while the first walk passed.
    async fn rewrap_tenant(&self, tenant: &TenantId, options: RewrapOptions) -> Result<(), Fault> {
        self.fetch_keys(tenant).await?;
        let mut unreadable = 0;
        while !self.is_stopped() && self.stale_records(tenant).await? > unreadable {
            let (moved, failed) = self.rewrap_once(tenant).await?;
            unreadable = failed;
            if moved == 0 {
                break;
            }
        }
        self.advance(|progress| progress.unreadable += unreadable);
        if options.drop_unused && !self.is_stopped() {
            let change = KeyChange::DropUnused(tenant.clone());
            let request = KeyChangeRequest { change, witness: None };
            let (dropped, _) = within(PATIENCE, self.store.change_keys(request)).await?;
            self.advance(|progress| progress.dropped += dropped);
            self.fetch_keys(tenant).await?;
        }
        Ok(())
    }

    /// Walks over the tenant's records once; answers how many keys were moved, and how many do not open.
    async fn rewrap_once(&self, tenant: &TenantId) -> Result<(u64, u64), Fault> {
        let (mut moved, mut unreadable) = (0, 0);
        let mut after: Option<WrappedDataKey> = None;
        let newest = self.keyring.newest(tenant).unwrap_or(0);
        while !self.is_stopped() {
            let stale = within(PATIENCE, self.store.stale_keys(tenant, newest, after.as_ref(), BATCH)).await?;
            let Some(last) = stale.last().cloned() else { break };
            after = Some(last);
            let keys: Vec<_> =
                stale.into_iter().filter_map(|old| self.rewrapped(tenant, old, &mut unreadable)).collect();
            let change = KeyChange::Rewrap { tenant: tenant.clone(), keys };
            let (batch, _) =
                within(PATIENCE, self.store.change_keys(KeyChangeRequest { change, witness: None })).await?;
            moved += batch;
            self.advance(|progress| progress.moved += batch);
        }
        Ok((moved, unreadable))
    }

    fn rewrapped(
        &self,
        tenant: &TenantId,
        old: WrappedDataKey,
        unreadable: &mut u64,
    ) -> Option<(WrappedDataKey, WrappedKey)> {
        match self.keyring.rewrap(tenant, &old) {
            Ok(new) => Some((old, new)),
            Err(error) => {
                *unreadable += 1;
                tracing::error!(%tenant, path = %old.path, version = %old.version, %error, "ALARM: a data key does not open");
                None
            }
        }
    }

    async fn stale_records(&self, tenant: &TenantId) -> Result<u64, Fault> {
        if !self.fetch_keys(tenant).await? {
            return Err(Fault::Keys(KeyRefusal::NoKeys));
        }
        let newest = self.keyring.newest(tenant).unwrap_or(0);
        let generations = within(PATIENCE, self.store.generations(Some(tenant))).await?;
        Ok(generations.iter().filter(|one| one.generation < newest).map(|one| one.records).sum())
    }
}

fn word(whose: &WhoseKeys) -> &str {
    match whose {
        WhoseKeys::Of(tenant) => tenant.as_str(),
        WhoseKeys::All => "all",
    }
}
