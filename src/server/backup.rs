//! Backups of a vault in SQLite, and the way back: checks first, changes last.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{StartError, SystemEntropy, kept_audit_keys, second_place::lost_rows, verification::verify_log};
use crate::{
    audit::{CheckpointFile, Problem},
    config::Config,
    crypto::{Keyring, RootKey},
    domain::{TenantId, hex},
    store::{Holdings, Restoring, SecretStore, SqliteStore, StoreError, StoreResult},
};

/// Why there is no backup, or why one was not put back. What was there before still is.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each is the error that it carries")]
pub enum BackupError {
    #[error(
        "the vault is in PostgreSQL: back it up with pg_dump or a physical backup, restore it with PostgreSQL's own means, \
         and run `portcullis audit verify` afterwards"
    )]
    Postgres,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] StartError),
    #[error("there is no root key's fingerprint in it: it is no backup of a vault that was ever started")]
    NeverStarted,
    #[error("its audit log is not what this vault wrote: {}", told(.0))]
    Audit(Vec<Problem>),
    #[error("the keys of tenant {0} do not open with the root key")]
    TenantKeys(TenantId),
    #[error("the checkpoints in {} cannot be read: {}", .0.display(), .1)]
    Checkpoints(PathBuf, std::io::Error),
}

fn told(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Copies the vault into a new file, and tells what is in that. It takes no key.
///
/// # Errors
///
/// [`BackupError`]; there is no file then.
pub async fn back_up(config: &Config, to: &Path) -> Result<Holdings, BackupError> {
    refuse_postgres(config)?;
    SqliteStore::back_up(&config.store.data_dir, to).await?;
    let holdings = holdings_of(to).await;
    if holdings.is_err() {
        fs::remove_file(to).ok();
    }
    Ok(holdings?)
}

async fn holdings_of(backup: &Path) -> StoreResult<Holdings> {
    let copy = SqliteStore::open_backup(backup).await?;
    let holdings = copy.holdings().await;
    copy.close().await;
    holdings
}

/// What was put back.
pub struct Restored {
    /// What is in it.
    pub holdings: Holdings,
    /// What the checkpoint file says that is not in it: that is newer.
    pub lost: Vec<Problem>,
    /// Where the database is now that was there before.
    pub aside: Option<PathBuf>,
}

/// Puts a backup into the data directory, if it is whole and this root key's.
///
/// # Errors
///
/// [`BackupError`]; the data directory is as it was then.
pub async fn restore(config: &Config, root: RootKey, from: &Path, replace: bool) -> Result<Restored, BackupError> {
    refuse_postgres(config)?;
    let restoring = Restoring::begin(&config.store.data_dir, from, replace)?;
    let copy = restoring.open().await?;
    let checked = check(config, root, &copy).await;
    copy.close().await;
    let (holdings, lost) = checked?;
    Ok(Restored { holdings, lost, aside: restoring.finish()? })
}

fn refuse_postgres(config: &Config) -> Result<(), BackupError> {
    config.store.database_url.as_ref().map_or(Ok(()), |_| Err(BackupError::Postgres))
}

async fn check(config: &Config, root: RootKey, copy: &SqliteStore) -> Result<(Holdings, Vec<Problem>), BackupError> {
    let holdings = copy.holdings().await?;
    let kept = holdings.root.as_ref().ok_or(BackupError::NeverStarted)?;
    if *kept != root.fingerprint() {
        return Err(StartError::WrongRootKey { given: hex(&root.fingerprint()), kept: hex(kept) }.into());
    }
    let keyring = Keyring::new(root, Arc::new(SystemEntropy));
    let keys = Arc::new(kept_audit_keys(copy, &keyring).await?);
    let report = verify_log(copy, &keys, &[]).await?;
    if !(report.integrity && report.completeness) {
        return Err(BackupError::Audit(report.problems));
    }
    let mut tenants: Vec<TenantId> = copy.generations(None).await?.into_iter().map(|used| used.tenant).collect();
    tenants.dedup();
    for tenant in tenants {
        let wrapped = copy.tenant_keys(&tenant).await?;
        keyring.take_in(&tenant, &wrapped).map_err(|_| BackupError::TenantKeys(tenant))?;
    }
    let file = CheckpointFile::new(config.checkpoint_file());
    let newer = file.read().map_err(|error| BackupError::Checkpoints(file.path().to_owned(), error))?;
    Ok((holdings, lost_rows(copy, &keys, &newer).await?))
}
