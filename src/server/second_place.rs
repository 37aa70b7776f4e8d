//! Checkpoints in a second place: held against the database at the start, kept up to date while the server runs.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;

use super::Checkpoints;
use crate::{
    audit::{AuditKeys, CheckpointFile, Evidence, Note, Problem, Removed},
    domain::{AuditPlace, ChainHead},
    store::{SecretStore, StoreResult},
    telemetry::Metrics,
};

/// How often a checkpoint is written down there at most. What clients hold receipts for is proven without it.
const EVERY: Duration = Duration::from_secs(10);

/// What the second place proves to be missing from the database: rows that were there once.
///
/// # Errors
///
/// Where the store cannot be read.
pub async fn lost_rows(store: &dyn SecretStore, keys: &AuditKeys, evidence: &[Evidence]) -> StoreResult<Vec<Problem>> {
    let removed = Removed::read(&store.tombstones().await?, &keys.verifying_key()).until;
    let mut problems = Vec::new();
    for (head, origin) in newest(evidence, keys) {
        let ChainHead { place: AuditPlace { chain, number }, link } = head;
        if removed.get(&chain).is_some_and(|until| until.place.number >= number) {
            continue;
        }
        let before = AuditPlace { chain, number: number - 1 };
        let found = store.audit_chain(before, 1).await?.pop();
        match found.and_then(Result::ok).filter(|row| row.place == head.place) {
            Some(row) if row.link == link.0 => (),
            Some(_) => problems.push(Problem::Rewritten { chain, number, origin }),
            None => {
                let last = store.chain_head(chain).await?.place.number;
                problems.push(Problem::CutOff { chain, last, reached: number, origin });
            }
        }
    }
    Ok(problems)
}

/// The newest genuine note of each chain, which is enough: what is before it hangs from it. Thousands of older ones are
/// not verified for that.
fn newest(evidence: &[Evidence], keys: &AuditKeys) -> Vec<(ChainHead, String)> {
    let mut claimed: Vec<(Note, &Evidence)> =
        evidence.iter().filter_map(|shown| Some((Note::unverified(&shown.note)?, shown))).collect();
    claimed.sort_by_key(|(note, _)| (note.head.place.chain, -note.head.place.number));
    let key = keys.verifying_key();
    let mut newest: Vec<(ChainHead, String)> = Vec::new();
    for (claim, shown) in claimed {
        let known = newest.last().is_some_and(|(head, _)| head.place.chain == claim.head.place.chain);
        if !known && Note::verify(&shown.note, &key).is_some() {
            newest.push((claim.head, shown.origin.clone()));
        }
    }
    newest
}

/// Where checkpoints are written down, and where they come from.
#[derive(Clone)]
pub struct SecondPlace {
    file: CheckpointFile,
    checkpoints: Checkpoints,
    metrics: Arc<Metrics>,
}

impl SecondPlace {
    /// The second place for these checkpoints.
    pub fn new(path: PathBuf, checkpoints: Checkpoints, metrics: Arc<Metrics>) -> Self {
        Self { file: CheckpointFile::new(path), checkpoints, metrics }
    }

    /// Writes checkpoints down as they become durable, until the server stops.
    pub async fn keep(mut self, stop: CancellationToken) {
        while let Some(Ok(())) = stop.run_until_cancelled(self.checkpoints.changed()).await {
            self.checkpoints.mark_unchanged();
            self.write_down().await;
            stop.run_until_cancelled(sleep(EVERY)).await;
        }
    }

    /// Writes the newest checkpoint down. A second place that cannot be written stops nothing: the log itself is whole
    /// without it.
    pub async fn write_down(&self) {
        let Some(newest) = self.checkpoints.borrow().clone() else { return };
        let file = self.file.clone();
        let written = spawn_blocking(move || file.append(&newest)).await.unwrap_or_else(|error| Err(error.into()));
        if let Err(error) = &written {
            let path = self.file.path().display();
            tracing::error!(%path, %error, "ALARM: checkpoints of the audit log cannot be written down");
        }
        self.metrics.checkpoint_kept(written.is_ok());
    }
}
