//! Reading the audit log.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use serde_json::json;

use super::{Caller, Fault, Vault, listing::question, within};
use crate::{
    audit::{self, LogEntry, unpack},
    domain::{AuditOrder, AuditPlace, AuditScan, Scope, TenantId, Timestamp},
    store::Logged,
};

/// How many rows are fetched at a time.
const CHUNK: u32 = 200;
/// How long a chunk may take: rare rows of a long log are not found at once.
const DEADLINE: Duration = Duration::from_secs(10);

/// The audit's word for an export.
const EXPORT: &str = "export_audit_log";

/// Which events are wanted. Every condition that is given must hold.
#[derive(Debug, Default, Clone)]
pub struct AuditFilter {
    /// Not before.
    pub from: Option<Timestamp>,
    /// Before.
    pub to: Option<Timestamp>,
    /// Of one of these actions; of all where none are named.
    pub actions: Vec<String>,
    /// Of this principal.
    pub identity_id: Option<String>,
    /// Of this kind of principal.
    pub identity_type: Option<String>,
    /// About paths that start with this.
    pub path_prefix: Option<String>,
    /// Permitted and done, or not.
    pub success: Option<bool>,
    /// From this address.
    pub source_ip: Option<String>,
    /// Of this request.
    pub request_id: Option<String>,
}

/// A page of the audit log.
pub struct AuditPage {
    /// The events, newest first.
    pub entries: Vec<LogEntry>,
    /// Where the next page begins; none at the end.
    pub cursor: Option<String>,
}

impl AuditFilter {
    fn accepts(&self, entry: &LogEntry) -> bool {
        let prefixed =
            |prefix: &String| entry.secret_path.as_ref().is_some_and(|path| path.starts_with(prefix.as_str()));
        (self.actions.is_empty() || self.actions.contains(&entry.action))
            && self.path_prefix.as_ref().is_none_or(prefixed)
            && self.success.is_none_or(|success| entry.success == success)
    }

    fn scan(&self, caller: &Caller) -> AuditScan {
        let tenant = &caller.principal.tenant;
        AuditScan {
            tenant: Some(tenant.clone()),
            // Events of nobody belong to the vault as a whole: to its administrators.
            with_untenanted: *tenant == TenantId::default_tenant() && caller.principal.scopes.permit(Scope::Admin),
            from: self.from,
            to: self.to,
            identity_id: self.identity_id.clone(),
            identity_type: self.identity_type.clone(),
            source_ip: self.source_ip.clone(),
            request_id: self.request_id.clone(),
            order: AuditOrder::NewestFirst,
            start: None,
        }
    }
}

/// Where a reading of the log stands: a row's time and place, and an event within it.
type Position = (Timestamp, AuditPlace, usize);

impl Vault {
    /// The events of the caller's tenant that match, newest first.
    ///
    /// # Errors
    ///
    /// [`Fault::InvalidCursor`], [`Fault::Unavailable`].
    pub async fn audit_log(
        &self,
        caller: &Caller,
        filter: &AuditFilter,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<AuditPage, Fault> {
        let question = question(caller, "audit", &[&format!("{filter:?}")]);
        let before = cursor.map(|cursor| self.audit_position(&question, cursor)).transpose()?;
        let mut scan = filter.scan(caller);
        scan.start = before.map(|(at, place, _)| (at, place));
        let mut entries: Vec<LogEntry> = Vec::new();
        loop {
            let (mut found, more) = self.audit_chunk(&mut scan, filter).await?;
            found.retain(|entry| before.is_none_or(|before| entry.position < before));
            // One more than fits tells whether there is another page.
            entries.extend(found.into_iter().take(limit + 1 - entries.len()));
            if entries.len() > limit {
                entries.truncate(limit);
                let cursor = entries.last().map(|last| {
                    let (at, AuditPlace { chain, number }, index) = last.position;
                    self.cursors.seal(&question, &format!("{}/{chain}/{number}/{index}", at.micros()))
                });
                return Ok(AuditPage { entries, cursor });
            }
            if !more {
                return Ok(AuditPage { entries, cursor: None });
            }
        }
    }

    /// All events of the caller's tenant that match, oldest first. That somebody wants them is on record before.
    ///
    /// # Errors
    ///
    /// [`Fault::Unavailable`].
    pub async fn export(self: &Arc<Self>, caller: &Caller, filter: AuditFilter) -> Result<ExportReader, Fault> {
        let mut scan = AuditScan { order: AuditOrder::OldestFirst, ..filter.scan(caller) };
        // What comes after this request is none of it: the export of its own export would have no end.
        scan.to = Some(scan.to.map_or(caller.context.now, |to| to.min(caller.context.now)));
        let details = json!({ "from": scan.from, "to": scan.to });
        self.record_system(caller, EXPORT, audit::OK, details).await?;
        Ok(ExportReader { vault: Arc::downgrade(self), scan: Some(scan), filter })
    }

    /// Reads the next rows of a scan, and moves its start behind them. False where there are no more.
    async fn audit_chunk(&self, scan: &mut AuditScan, filter: &AuditFilter) -> Result<(Vec<LogEntry>, bool), Fault> {
        let rows = within(DEADLINE, self.store.audit_rows(scan, CHUNK)).await?;
        let entries = rows.iter().flat_map(|row| entries_of(row, scan.order)).filter(|entry| filter.accepts(entry));
        let entries = entries.collect();
        let Some(last) = rows.last() else { return Ok((entries, false)) };
        let (at, mut place) = match last {
            Ok(row) => (row.row.at, row.place),
            Err(damaged) => (damaged.at, damaged.place),
        };
        place.number += if scan.order == AuditOrder::NewestFirst { -1 } else { 1 };
        scan.start = Some((at, place));
        Ok((entries, rows.len() == CHUNK as usize))
    }

    fn audit_position(&self, question: &str, cursor: &str) -> Result<Position, Fault> {
        let position = self.cursors.open(question, cursor).ok_or(Fault::InvalidCursor)?;
        let mut numbers = position.split('/').map(str::parse::<i64>);
        let mut next = || numbers.next().and_then(Result::ok).ok_or(Fault::InvalidCursor);
        let at = Timestamp::from_micros(next()?);
        let chain = u32::try_from(next()?).map_err(|_| Fault::InvalidCursor)?;
        let place = AuditPlace { chain, number: next()? };
        Ok((at, place, usize::try_from(next()?).map_err(|_| Fault::InvalidCursor)?))
    }
}

/// Reads the events of an export.
pub struct ExportReader {
    /// Not held between two looks: a client that takes its time must not keep the keys of a vault that is sealed.
    vault: Weak<Vault>,
    /// Where to read on; none at the end.
    scan: Option<AuditScan>,
    filter: AuditFilter,
}

impl ExportReader {
    /// The next events, which are some; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`Fault::Unavailable`].
    pub async fn next(&mut self) -> Result<Option<Vec<LogEntry>>, Fault> {
        while let Some(mut scan) = self.scan.take() {
            let vault = self.vault.upgrade().ok_or(Fault::Unavailable)?;
            let (entries, more) = vault.audit_chunk(&mut scan, &self.filter).await?;
            self.scan = more.then_some(scan);
            if !entries.is_empty() {
                return Ok(Some(entries));
            }
        }
        Ok(None)
    }
}

/// A row's events in the order of the scan.
fn entries_of(row: &Logged, order: AuditOrder) -> Vec<LogEntry> {
    let entries = row.as_ref().map_err(|damaged| damaged.place).and_then(|row| unpack(row).ok_or(row.place));
    let mut entries = entries.unwrap_or_else(|place| {
        tracing::error!(%place, "ALARM: a row of the audit log cannot be read");
        Vec::new()
    });
    if order == AuditOrder::NewestFirst {
        entries.reverse();
    }
    entries
}
