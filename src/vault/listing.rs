//! What may be known of secrets without their values. Each entry is put to the policies; those denied are not shown.

use std::sync::Arc;

use super::{Account, Caller, DEADLINE, Fault, LookUp, Vault, permission, within};
use crate::{
    audit::{self, Event},
    domain::{Action, Head, PathPattern, Record, SecretPath, Timestamp, VersionRecord},
    policy::{Subject, Until},
    store::{ListScan, StoreError},
};

/// How many entries are looked up, decided and recorded at a time.
const CHUNK: u32 = 500;
/// What a position begins with where a page of a batch of metadata ended within its names. No path begins so.
const NAMES_DONE: char = '#';

/// A page of a listing.
pub struct ListPage {
    /// The secrets, in the order of their paths.
    pub secrets: Vec<Arc<Record>>,
    /// Where the next page begins; none at the end.
    pub cursor: Option<String>,
}

/// One entry of a batch of metadata as it was asked for.
pub enum Wanted {
    /// This path.
    Path(SecretPath),
    /// All paths that match.
    Pattern(PathPattern),
    /// The text of no path.
    Invalid(String),
}

/// The entries of a batch of metadata by their kind.
#[derive(Default)]
struct Sorted {
    named: Vec<SecretPath>,
    patterns: Vec<PathPattern>,
    errors: Vec<(String, Fault)>,
}

impl FromIterator<Wanted> for Sorted {
    fn from_iter<I: IntoIterator<Item = Wanted>>(wanted: I) -> Self {
        let mut sorted = Self::default();
        for one in wanted {
            match one {
                Wanted::Path(path) => sorted.named.push(path),
                Wanted::Pattern(pattern) => sorted.patterns.push(pattern),
                Wanted::Invalid(text) => sorted.errors.push((text, Fault::InvalidPath)),
            }
        }
        sorted
    }
}

/// A page of a batch of metadata.
pub struct MetadataPage {
    /// The secrets, in the order of their paths.
    pub found: Vec<Arc<Record>>,
    /// What was asked for by name and cannot be shown.
    pub errors: Vec<(String, Fault)>,
    /// Where the next page begins; none at the end.
    pub cursor: Option<String>,
}

impl MetadataPage {
    /// What was asked for by name comes where its path belongs.
    fn in_order(mut self) -> Self {
        self.found.sort_by(|one, other| one.head.path.cmp(&other.head.path));
        self
    }
}

/// A walk through the store in the order of paths.
struct Walk<'a> {
    /// Prefixes, in order, none within another.
    prefixes: Vec<String>,
    /// Which of the paths met are wanted.
    accepts: &'a (dyn Fn(&SecretPath) -> bool + Sync),
    /// The path before which nothing is left to look at.
    after: Option<SecretPath>,
    limit: usize,
    /// What the caller may list, so far.
    shown: Vec<Arc<Record>>,
}

impl Vault {
    /// A secret's description.
    ///
    /// # Errors
    ///
    /// [`Fault`], recorded.
    pub async fn metadata(&self, caller: &Caller, path: SecretPath) -> Result<Head, Fault> {
        let found = self.look_up_one(&caller.principal.tenant, &path, None).await?;
        let record = self.describe(caller, path, found, |record| live(record, caller.context.now)).await?;
        Ok(record.head.clone())
    }

    /// A secret and all its versions, newest first.
    ///
    /// # Errors
    ///
    /// [`Fault`], recorded.
    pub async fn versions(&self, caller: &Caller, path: SecretPath) -> Result<Vec<VersionRecord>, Fault> {
        let undeleted = |record: Option<Arc<Record>>| {
            record.filter(|record| record.head.deleted.is_none()).ok_or(Fault::SecretNotFound)
        };
        let tenant = &caller.principal.tenant;
        let (found, versions) = match within(DEADLINE, self.store.versions(tenant, &path)).await {
            Ok(Some((head, versions))) => {
                let newest = versions.first().cloned();
                (Ok(Some(Arc::new(Record { head, version: newest }))), versions)
            }
            Ok(None) => (Ok(None), Vec::new()),
            Err(StoreError::Damaged(what)) => (Err(self.damaged(tenant, &path, what)), Vec::new()),
            Err(error) => return Err(error.into()),
        };
        self.describe(caller, path, found, undeleted).await?;
        Ok(versions)
    }

    async fn describe(
        &self,
        caller: &Caller,
        path: SecretPath,
        found: LookUp,
        present: impl FnOnce(Option<Arc<Record>>) -> Result<Arc<Record>, Fault>,
    ) -> Result<Arc<Record>, Fault> {
        let subject = Subject::at(path.clone(), found.clone().unwrap_or_default());
        let (decision, inputs) = self.decide_one(caller, Action::List, subject).await?;
        let outcome = permission(&decision).and_then(|_| found.and_then(present));
        let code = outcome.as_ref().map_or_else(Fault::code, |_| audit::OK);
        self.record(caller, Account::of_one(Action::List, path, code, (decision, inputs))).await?;
        outcome
    }

    /// The secrets below a prefix that the caller may list.
    ///
    /// # Errors
    ///
    /// [`Fault::InvalidCursor`], [`Fault::Unavailable`].
    pub async fn list(
        &self,
        caller: &Caller,
        prefix: String,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<ListPage, Fault> {
        let question = question(caller, "list", &[&prefix]);
        let after = self.position(&question, cursor)?;
        let walk = Walk { prefixes: vec![prefix], accepts: &|_| true, after, limit, shown: Vec::new() };
        let (secrets, last) = self.walk(caller, walk).await?;
        Ok(ListPage { secrets, cursor: last.map(|path| self.cursors.seal(&question, path.as_str())) })
    }

    /// Descriptions of paths and of all that matches patterns. What is named and denied or absent is an error; what
    /// only matches and is denied is not shown.
    ///
    /// # Errors
    ///
    /// [`Fault::InvalidCursor`], [`Fault::Unavailable`].
    pub async fn batch_metadata(
        &self,
        caller: &Caller,
        wanted: Vec<Wanted>,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<MetadataPage, Fault> {
        let Sorted { named, patterns, errors } = wanted.into_iter().collect();
        let texts: Vec<&str> =
            named.iter().map(SecretPath::as_str).chain(patterns.iter().map(PathPattern::as_str)).collect();
        let question = question(caller, "batch_metadata", &texts);
        let (done, after) = self.metadata_position(&question, cursor, named.len())?;
        let errors = if cursor.is_none() { errors } else { Vec::new() };
        let mut page = MetadataPage { found: Vec::new(), errors, cursor: None };
        let turn: Vec<SecretPath> = named.iter().skip(done).take(limit).cloned().collect();
        self.named(caller, &turn, &mut page).await?;
        let (done, limit) = (done + turn.len(), limit.saturating_sub(page.found.len()));
        if done < named.len() || (limit == 0 && !patterns.is_empty()) {
            page.cursor = Some(self.cursors.seal(&question, &format!("{NAMES_DONE}{done}")));
            return Ok(page.in_order());
        }
        let accepts =
            |path: &SecretPath| !named.contains(path) && patterns.iter().any(|pattern| pattern.matches(path.as_str()));
        let walk = Walk { prefixes: disjoint_prefixes(&patterns), accepts: &accepts, after, limit, shown: Vec::new() };
        let (matching, last) = self.walk(caller, walk).await?;
        page.found.extend(matching);
        page.cursor = last.map(|path| self.cursors.seal(&question, path.as_str()));
        Ok(page.in_order())
    }

    /// The paths that were asked for by name.
    async fn named(&self, caller: &Caller, paths: &[SecretPath], page: &mut MetadataPage) -> Result<(), Fault> {
        if paths.is_empty() && page.errors.is_empty() {
            return Ok(());
        }
        let wanted: Vec<_> = paths.iter().map(|path| (path.clone(), None)).collect();
        let records = self.look_up(&caller.principal.tenant, &wanted).await?;
        let mut events: Vec<Event> = page
            .errors
            .iter()
            .map(|(_, fault)| Event { path: None, version: None, code: fault.code(), decision: None })
            .collect();
        let subject =
            |(path, found): (&SecretPath, &LookUp)| Subject::at(path.clone(), found.clone().unwrap_or_default());
        let subjects = paths.iter().zip(&records).map(subject).collect();
        let (decisions, inputs) = self.decide_all(caller, Action::List, subjects, Until::End).await?;
        for ((path, found), decision) in paths.iter().zip(records).zip(decisions) {
            let outcome = permission(&decision).and_then(|_| found.and_then(|record| live(record, caller.context.now)));
            let code = outcome.as_ref().map_or_else(Fault::code, |_| audit::OK);
            events.push(Event { path: Some(path.clone()), version: None, code, decision: Some(decision) });
            match outcome {
                Ok(record) => page.found.push(record),
                Err(fault) => page.errors.push((path.as_str().to_owned(), fault)),
            }
        }
        let size = Some(events.len());
        self.record(caller, Account { action: Action::List, batch_size: size, inputs, events }).await
    }

    /// Collects what the caller may list, and where to go on: none at the end.
    async fn walk(&self, caller: &Caller, mut walk: Walk<'_>) -> Result<(Vec<Arc<Record>>, Option<SecretPath>), Fault> {
        for prefix in std::mem::take(&mut walk.prefixes) {
            loop {
                if walk.shown.len() >= walk.limit {
                    return Ok((walk.shown, walk.after));
                }
                let scan = ListScan { prefix: prefix.clone(), after: walk.after.clone(), limit: CHUNK };
                let listing = self.store.list(&caller.principal.tenant, &scan, caller.context.now);
                let records = within(DEADLINE, listing).await?;
                let exhausted = records.len() < CHUNK as usize;
                if self.sift(caller, records, &mut walk).await? {
                    return Ok((walk.shown, walk.after));
                }
                if exhausted {
                    break;
                }
            }
        }
        Ok((walk.shown, None))
    }

    /// Decides about a chunk until there is no more room. True where entries are left.
    async fn sift(&self, caller: &Caller, mut records: Vec<Arc<Record>>, walk: &mut Walk<'_>) -> Result<bool, Fault> {
        let last = records.last().map(|record| record.head.path.clone());
        records.retain(|record| (walk.accepts)(&record.head.path));
        let subject = |record: &Arc<Record>| Subject::at(record.head.path.clone(), Some(Arc::clone(record)));
        let room = Until::Allowed(walk.limit.saturating_sub(walk.shown.len()));
        let (decisions, inputs) =
            self.decide_all(caller, Action::List, records.iter().map(subject).collect(), room).await?;
        let rest = decisions.len() < records.len();
        let mut events = Vec::with_capacity(decisions.len());
        for (record, decision) in records.into_iter().zip(decisions) {
            let path = Some(record.head.path.clone());
            let code = match permission(&decision) {
                Ok(_) => {
                    walk.shown.push(record);
                    audit::OK
                }
                Err(fault) => fault.code(),
            };
            events.push(Event { path, version: None, code, decision: Some(decision) });
        }
        let looked_at = if rest { events.last().and_then(|event| event.path.clone()) } else { last };
        walk.after = looked_at.or(walk.after.take());
        if !events.is_empty() {
            self.record(caller, Account { action: Action::List, batch_size: None, inputs, events }).await?;
        }
        Ok(rest)
    }

    /// How many of the names are done with, and after which path to go on with the patterns.
    fn metadata_position(
        &self,
        question: &str,
        cursor: Option<&str>,
        names: usize,
    ) -> Result<(usize, Option<SecretPath>), Fault> {
        let Some(cursor) = cursor else { return Ok((0, None)) };
        let position = self.cursors.open(question, cursor).ok_or(Fault::InvalidCursor)?;
        if let Some(done) = position.strip_prefix(NAMES_DONE) {
            return done.parse().map(|done| (done, None)).map_err(|_| Fault::InvalidCursor);
        }
        SecretPath::parse(&position).map(|after| (names, Some(after))).map_err(|_| Fault::InvalidCursor)
    }

    fn position(&self, question: &str, cursor: Option<&str>) -> Result<Option<SecretPath>, Fault> {
        let Some(cursor) = cursor else { return Ok(None) };
        let position = self.cursors.open(question, cursor).ok_or(Fault::InvalidCursor)?;
        SecretPath::parse(&position).map(Some).map_err(|_| Fault::InvalidCursor)
    }
}

fn live(record: Option<Arc<Record>>, now: Timestamp) -> Result<Arc<Record>, Fault> {
    record.filter(|record| record.head.is_live(now)).ok_or(Fault::SecretNotFound)
}

/// Who asks what: a cursor serves the question that it was made for.
pub(super) fn question(caller: &Caller, kind: &str, parts: &[&str]) -> String {
    let mut question = format!("{kind}\n{}\n{}", caller.principal.tenant, caller.principal.id);
    for part in parts {
        question.push('\n');
        question.push_str(part);
    }
    question
}

/// Where to look for what matches, in order, with no place visited twice.
fn disjoint_prefixes(patterns: &[PathPattern]) -> Vec<String> {
    let mut prefixes: Vec<&str> = patterns.iter().map(PathPattern::literal_prefix).collect();
    prefixes.sort_unstable();
    let mut disjoint: Vec<String> = Vec::new();
    for prefix in prefixes {
        if !disjoint.last().is_some_and(|kept| prefix.starts_with(kept.as_str())) {
            disjoint.push(prefix.to_owned());
        }
    }
    disjoint
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_within_others_are_dropped() {
        let patterns: Vec<_> =
            ["b/*", "a/x/*", "a/*", "a/y", "c*"].iter().map(|text| PathPattern::parse(text).unwrap()).collect();
        assert_eq!(disjoint_prefixes(&patterns), ["a/", "b/", "c"]);
    }
}
