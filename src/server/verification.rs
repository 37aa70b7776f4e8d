//! Reading a whole audit log for a verifier, past a server that may be at work.

use std::sync::Arc;

use crate::{
    audit::{AuditKeys, Evidence, Report, Verifier},
    domain::AuditPlace,
    store::{SecretStore, StoreResult},
};

/// How many rows are read at a time.
const CHUNK: u32 = 4_096;
/// How often chains that others know more of are read on.
const CATCH_UP: usize = 10;

/// Reads a whole log and holds it against the evidence.
///
/// # Errors
///
/// Where the store cannot be read.
pub async fn verify_log(store: &dyn SecretStore, keys: &Arc<AuditKeys>, evidence: &[Evidence]) -> StoreResult<Report> {
    loop {
        let tombstones = store.tombstones().await?;
        let report = read_all(store, Verifier::new(Arc::clone(keys), &tombstones, evidence)).await?;
        // Old rows that were removed while the log was read are no gap: it is read again.
        if store.tombstones().await? == tombstones {
            return Ok(report);
        }
    }
}

async fn read_all(store: &dyn SecretStore, mut verifier: Verifier) -> StoreResult<Report> {
    read_on(store, &mut verifier, AuditPlace { chain: 0, number: 0 }, None).await?;
    // Where several servers are at work, a chain that was read last knows more of one that was read first.
    for _ in 0..CATCH_UP {
        for place in verifier.behind() {
            read_on(store, &mut verifier, place, Some(place.chain)).await?;
        }
    }
    verifier.misplaced(store.misplaced_audit_rows().await?);
    Ok(verifier.finish())
}

/// Reads from behind a place to the end; of one chain, or of all.
async fn read_on(
    store: &dyn SecretStore,
    verifier: &mut Verifier,
    mut after: AuditPlace,
    chain: Option<u32>,
) -> StoreResult<()> {
    loop {
        let rows = store.audit_chain(after, CHUNK).await?;
        if rows.is_empty() {
            return Ok(());
        }
        for row in rows {
            let place = row.as_ref().map_or_else(|damaged| damaged.place, |row| row.place);
            if chain.is_some_and(|chain| chain != place.chain) {
                return Ok(());
            }
            match row {
                Ok(row) => verifier.row(&row),
                Err(damaged) => verifier.damaged_row(damaged.place),
            }
            after = place;
        }
    }
}
