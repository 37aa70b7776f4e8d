//! The end of old events: removed chain by chain, under a signed tombstone, so that what is left still proves itself.

use std::time::Duration;

use serde_json::json;

use super::{Fault, Vault, within};
use crate::{
    audit::{Note, NoteKind, Removed},
    domain::{AuditPlace, ChainHead, Timestamp},
    store::Tombstone,
};

/// The audit's word for it.
const ACTION: &str = "remove_old_events";
/// How many rows one transaction removes: few enough that nobody waits for it.
const STEP: u32 = 2_000;
/// How long a step may take.
const DEADLINE: Duration = Duration::from_secs(10);

impl Vault {
    /// Removes the events from before an instant, but for the last of each chain. Answers how many rows went.
    ///
    /// # Errors
    ///
    /// [`Fault::Unavailable`]; what is gone by then has its tombstone.
    pub async fn remove_events_before(&self, cutoff: Timestamp) -> Result<u64, Fault> {
        let tombstones = within(DEADLINE, self.store.tombstones()).await?;
        let gone = Removed::read(&tombstones, &self.audit_keys.verifying_key()).until;
        let mut removed = 0;
        for chain in within(DEADLINE, self.store.chains()).await? {
            let mut begin = gone.get(&chain).copied().unwrap_or(ChainHead::origin(chain));
            while let Some(until) = self.old_rows(begin, cutoff).await? {
                let rows = until.place.number.abs_diff(begin.place.number);
                self.remove_rows(until, rows, cutoff).await?;
                removed += rows;
                begin = until;
            }
        }
        Ok(removed)
    }

    /// The last of the old rows that follow `begin`, a step of them at most; none where there is none to go. Each was
    /// held against what it hangs from: a tombstone is not signed for rows that somebody else made old, or removed.
    async fn old_rows(&self, begin: ChainHead, cutoff: Timestamp) -> Result<Option<ChainHead>, Fault> {
        let rows = within(DEADLINE, self.store.audit_chain(begin.place, STEP + 1)).await?;
        let (mut before, mut old) = (begin, begin);
        for row in rows {
            if row.as_ref().is_ok_and(|row| row.place.chain != begin.place.chain) {
                break;
            }
            // It is not the last of its chain: something follows.
            old = before;
            if row.as_ref().is_ok_and(|row| row.row.at >= cutoff) {
                break;
            }
            let place = AuditPlace { number: before.place.number + 1, ..begin.place };
            let whole = row.ok().filter(|row| row.place == place).and_then(|row| {
                let link = self.audit_keys.link(&before, &row.row);
                (row.link == link.0).then_some(link)
            });
            let Some(link) = whole else {
                tracing::error!(%place, "ALARM: the audit log was altered; nothing is removed from there on");
                return Ok(None);
            };
            before = ChainHead { place, link };
        }
        Ok((old != begin).then_some(old))
    }

    async fn remove_rows(&self, until: ChainHead, rows: u64, cutoff: Timestamp) -> Result<(), Fault> {
        let AuditPlace { chain, number } = until.place;
        let note = self.audit_keys.note(&Note { kind: NoteKind::Removed, head: until, at: self.clock.now() });
        let details = json!({ "chain": chain, "until": number, "rows": rows, "before": cutoff });
        let event = self.own_row(&self.own_context(), ACTION, details);
        within(DEADLINE, self.store.retain(Tombstone { until: until.place, note, event })).await?;
        tracing::info!(chain, until = number, rows, "old events were removed from the audit log");
        Ok(())
    }
}
