//! The end of old events: removed chain by chain, under a signed tombstone, so that what is left still proves itself.

use std::time::Duration;

use serde_json::json;

use super::{Fault, Vault, within};
use crate::{
    audit::{Note, NoteKind},
    domain::Timestamp,
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
        let mut removed = 0;
        for chain in within(DEADLINE, self.store.chains()).await? {
            let chain = chain.place.chain;
            while let Some((rows, until)) = within(DEADLINE, self.store.audit_cut(chain, cutoff, STEP)).await? {
                let now = self.clock.now();
                let note = self.audit_keys.note(&Note { kind: NoteKind::Removed, head: until, at: now });
                let number = until.place.number;
                let details = json!({ "chain": chain, "until": number, "rows": rows, "before": cutoff });
                let tombstone =
                    Tombstone { until: until.place, note, event: self.own_row(&self.own_context(), ACTION, details) };
                within(DEADLINE, self.store.retain(tombstone)).await?;
                tracing::info!(chain, until = number, rows, "old events were removed from the audit log");
                removed += rows;
            }
        }
        Ok(removed)
    }
}
