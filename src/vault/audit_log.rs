//! Reading the audit log.

use std::time::Duration;

use super::{Caller, Fault, Vault, listing::question, within};
use crate::{
    audit::{LogEntry, unpack},
    domain::{AuditScan, AuditSequence, Scope, StoredAuditRow, TenantId, Timestamp},
};

/// How many rows are fetched at a time.
const CHUNK: u32 = 200;
/// How long a chunk may take: rare rows of a long log are not found at once.
const DEADLINE: Duration = Duration::from_secs(10);

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
            not_after: None,
        }
    }
}

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
        scan.not_after = before.map(|(sequence, _)| sequence);
        let mut entries: Vec<LogEntry> = Vec::new();
        loop {
            let rows = within(DEADLINE, self.store.audit_rows(&scan, CHUNK)).await?;
            let wanted = rows
                .iter()
                .flat_map(entries_of)
                .filter(|entry| before.is_none_or(|before| entry.position < before) && filter.accepts(entry));
            // One more than fits tells whether there is another page.
            entries.extend(wanted.take(limit + 1 - entries.len()));
            if entries.len() > limit {
                entries.truncate(limit);
                let cursor = entries.last().map(|last| {
                    let (sequence, index) = last.position;
                    self.cursors.seal(&question, &format!("{sequence}/{index}"))
                });
                return Ok(AuditPage { entries, cursor });
            }
            match rows.last() {
                Some(last) if rows.len() == CHUNK as usize => scan.not_after = Some(last.sequence - 1),
                _ => return Ok(AuditPage { entries, cursor: None }),
            }
        }
    }

    fn audit_position(&self, question: &str, cursor: &str) -> Result<(AuditSequence, usize), Fault> {
        let position = self.cursors.open(question, cursor).ok_or(Fault::InvalidCursor)?;
        let (sequence, index) = position.split_once('/').ok_or(Fault::InvalidCursor)?;
        let sequence = sequence.parse().map_err(|_| Fault::InvalidCursor)?;
        Ok((sequence, index.parse().map_err(|_| Fault::InvalidCursor)?))
    }
}

fn entries_of(row: &StoredAuditRow) -> Vec<LogEntry> {
    unpack(row).unwrap_or_else(|| {
        tracing::error!(sequence = row.sequence, "ALARM: a row of the audit log cannot be read");
        Vec::new()
    })
}
