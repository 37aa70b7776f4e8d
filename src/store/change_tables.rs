//! Changes of secrets in the store's verbs, over one connection of either database.

use std::sync::Arc;

use super::{
    Change, ChangeRequest, Committed, DamagedRow, EditMetadata, Put, Refusal, StoreError, StoreResult, Witness,
    sql::{Arg, Backend, Columns, head_columns},
    statements::Template,
    tables::{Tables, head, site, whole},
};
use crate::domain::{
    AuditRow, Head, MetadataText, Record, SealedValue, SecretPath, SecretType, TenantId, Timestamp, Version,
    VersionRecord,
};

/// How many versions a secret keeps when nobody said.
const DEFAULT_MAX_VERSIONS: u32 = 10;

pub const FIND_HEADS: Template = (
    3,
    concat!(
        "SELECT wanted.column1, ",
        head_columns!("s"),
        " FROM (VALUES {rows}) AS wanted JOIN secrets AS s ON s.tenant = wanted.column2 AND s.path = wanted.column3"
    ),
);
pub const INSERT_VERSIONS: Template = (
    10,
    "{insert} INTO versions (tenant, path, version, secret_type, created_at, created_by, expires_at,
                             key_generation, wrapped_key, ciphertext)
     SELECT * FROM (VALUES {rows}) AS new
     WHERE EXISTS (SELECT 1 FROM tenant_keys WHERE tenant = new.column1 AND generation = new.column8)
     ON CONFLICT DO NOTHING
     RETURNING tenant, path",
);
pub const PRUNE_VERSIONS: Template = (
    3,
    "DELETE FROM versions WHERE (tenant, path, version) IN (
         SELECT v.tenant, v.path, v.version FROM (VALUES {rows}) AS old
         JOIN versions AS v ON v.tenant = old.column1 AND v.path = old.column2 AND v.version <= old.column3)",
);
pub const KEEP_HEADS: Template = (
    13,
    "{insert} INTO secrets (tenant, path, latest, secret_type, metadata, created_at, created_by,
                            updated_at, updated_by, expires_at, deleted_at, recoverable_until, max_versions)
     VALUES {rows}
     ON CONFLICT (tenant, path) DO UPDATE SET
         latest = excluded.latest, secret_type = excluded.secret_type, metadata = excluded.metadata,
         updated_at = excluded.updated_at, updated_by = excluded.updated_by, expires_at = excluded.expires_at,
         deleted_at = excluded.deleted_at, recoverable_until = excluded.recoverable_until,
         max_versions = excluded.max_versions",
);

/// What became of a change, and its audit row.
pub struct Changed {
    pub outcome: Result<Committed, Refusal>,
    pub row: AuditRow,
    /// Whose secret it is, and the secret with its new version, if it got one, as both are stored now.
    pub written: Option<(TenantId, Arc<Record>)>,
}

/// A change that is over, and the secret with its new version, where that is known.
type Finished = (Result<Committed, Refusal>, Option<Record>);

/// How far a change is.
enum Step {
    Over(Result<Committed, Refusal>),
    /// It is yet to be written, with others.
    Open(Open),
}

/// A secret as it shall be.
struct Open {
    head: Head,
    /// The value of its newest version, where that is new.
    sealed: Option<SealedValue>,
    created: bool,
}

/// Where, by whom and when a change is made.
struct Scene {
    tenant: TenantId,
    path: SecretPath,
    by: Arc<str>,
    at: Timestamp,
}

impl<B: Backend> Tables<'_, B> {
    /// Makes changes of different secrets, at most as many as a statement takes. Who fails alone has written nothing, or
    /// has undone it. The caller appends the others' audit rows and commits, or does neither.
    pub async fn apply(&mut self, requests: Vec<ChangeRequest>) -> StoreResult<Vec<StoreResult<Changed>>> {
        let (scenes, changes): (Vec<_>, Vec<_>) = requests.into_iter().map(Scene::set).unzip();
        if let Some(lock) = B::LOCK_SECRET {
            for scene in &scenes {
                self.execute(lock, &scene.site()).await?;
            }
        }
        let heads = self.heads(scenes.iter().map(|scene| (&scene.tenant, &scene.path))).await?;
        let (mut steps, mut witnesses) = (Vec::with_capacity(scenes.len()), Vec::with_capacity(scenes.len()));
        for ((scene, (change, witness)), before) in scenes.iter().zip(changes).zip(heads) {
            let step = match before {
                Ok(before) => apart(self.change(scene, before, change).await)?,
                Err(damage) => Err(damage.into()),
            };
            steps.push((scene, step));
            witnesses.push(witness);
        }
        let finished = self.finish(steps).await?.into_iter().zip(scenes).zip(witnesses);
        Ok(finished.map(|((finished, scene), witness)| scene.witnessed(finished, witness)).collect())
    }

    /// The secrets at these places, in the order of the question.
    pub async fn heads<'a>(
        &mut self,
        wanted: impl ExactSizeIterator<Item = (&'a TenantId, &'a SecretPath)>,
    ) -> StoreResult<Vec<Result<Option<Head>, DamagedRow>>> {
        let mut heads: Vec<_> = (0..wanted.len()).map(|_| Ok(None)).collect();
        let row = |(place, (tenant, path)): (i64, (&'a TenantId, &'a SecretPath))| {
            [Arg::Int(place), Arg::Text(tenant.as_str()), Arg::Text(path.as_str())]
        };
        let wanted: Vec<_> = (0..).zip(wanted).map(row).collect();
        let place_head = |row: &dyn Columns| {
            let place = usize::try_from(row.int(0)?).ok();
            let slot = place.and_then(|place| heads.get_mut(place)).ok_or(StoreError::Damaged("place"))?;
            *slot = whole(head(row))?.map(Some);
            Ok(())
        };
        self.fetch_rows(&B::statements().find_heads, &wanted, place_head).await?;
        Ok(heads)
    }

    async fn change(&mut self, scene: &Scene, before: Option<Head>, change: Change) -> StoreResult<Step> {
        match change {
            Change::Put(put) => self.put(scene, before, put).await,
            Change::SoftDelete { recoverable_until } => Ok(soft_delete(scene, before, recoverable_until)),
            Change::Restore => Ok(restore(scene, before)),
            Change::Purge => self.purge(scene, before).await.map(Step::Over),
            Change::Destroy(versions) => self.destroy(scene, before, &versions).await,
            Change::EditMetadata(edit) => Ok(edit_metadata(scene, before, edit)),
        }
    }

    async fn put(&mut self, scene: &Scene, before: Option<Head>, put: Put) -> StoreResult<Step> {
        match before {
            Some(head) if head.deleted.is_some_and(|(_, until)| until > scene.at) => {
                Ok(Step::refused(Refusal::Deleted))
            }
            Some(head) if head.deleted.is_some() => self.replace(scene, head, put).await.map(Step::Over),
            other => self.next_version(scene, other, put).await,
        }
    }

    /// Puts a secret where one stood that cannot be restored any more: what is left of that goes, or all stays as it is.
    async fn replace(&mut self, scene: &Scene, gone: Head, put: Put) -> StoreResult<Result<Committed, Refusal>> {
        self.execute("SAVEPOINT gone", &[]).await?;
        self.purge(scene, Some(gone)).await?.ok();
        let done = match self.next_version(scene, None, put).await {
            Ok(step) => self.finish(vec![(scene, Ok(step))]).await,
            Err(error) => Err(error),
        };
        let done =
            done.and_then(|mut done| done.pop().unwrap_or(Err(StoreError::Uncommitted))).map(|(outcome, _)| outcome);
        if done.as_ref().is_err_and(StoreError::is_of_the_database) {
            // The caller has to undo more than this, if the database has not done so.
            return done;
        }
        if !matches!(done, Ok(Ok(_))) {
            self.execute("ROLLBACK TO SAVEPOINT gone", &[]).await?;
        }
        self.execute("RELEASE SAVEPOINT gone", &[]).await?;
        done
    }

    async fn next_version(&mut self, scene: &Scene, before: Option<Head>, put: Put) -> StoreResult<Step> {
        let newest = before.as_ref().map_or(0, |head| head.latest.get());
        if put.expected_version.is_some_and(|expected| expected != newest) {
            return Ok(Step::refused(Refusal::VersionConflict(newest)));
        }
        if let Some(source) = put.source
            && let Some(refusal) = self.source_refusal(scene, before.as_ref(), source).await?
        {
            return Ok(Step::refused(refusal));
        }
        let Some(version) = before.as_ref().map_or(Some(Version::FIRST), |head| head.latest.next()) else {
            return Ok(Step::refused(Refusal::VersionsExhausted));
        };
        let sealed = (put.seal)(version).ok_or(StoreError::Unsealable)?;
        let created = before.is_none();
        let old = before.unwrap_or_else(|| scene.blank_head());
        let head = Head {
            latest: version,
            secret_type: put.secret_type.unwrap_or(old.secret_type),
            metadata: put.metadata.unwrap_or(old.metadata),
            expires_at: put.expires_at,
            max_versions: put.max_versions.unwrap_or(old.max_versions),
            ..old
        }
        .updated(scene);
        Ok(Step::Open(Open { head, sealed: Some(sealed), created }))
    }

    /// Why a value must not be taken from a version: it was purged or destroyed meanwhile.
    async fn source_refusal(
        &mut self,
        scene: &Scene,
        before: Option<&Head>,
        source: Version,
    ) -> StoreResult<Option<Refusal>> {
        if before.is_none() {
            return Ok(Some(Refusal::Absent));
        }
        let versions = self.versions(&scene.tenant, &scene.path).await?;
        let there = versions.iter().any(|record| record.version == source && record.destroyed_at.is_none());
        Ok((!there).then_some(Refusal::VersionAbsent))
    }

    /// Writes what is open.
    async fn finish(&mut self, mut steps: Vec<(&Scene, StoreResult<Step>)>) -> StoreResult<Vec<StoreResult<Finished>>> {
        let versions: Vec<_> = open(&steps).filter_map(Pending::version).collect();
        let place = |row: &dyn Columns| Ok((row.text(0)?.to_owned(), row.text(1)?.to_owned()));
        let inserted = self.fetch_rows(&B::statements().insert_versions, &versions, place).await?;
        for (scene, step) in &mut steps {
            if let Ok(Step::Open(Open { sealed: Some(sealed), .. })) = step
                && !inserted.iter().any(|(tenant, path)| scene.is_at(tenant, path))
            {
                *step = Err(self.why_not_inserted(scene, sealed).await?);
            }
        }
        let beyond: Vec<_> = open(&steps).filter_map(Pending::versions_beyond).collect();
        self.execute_rows(&B::statements().prune_versions, &beyond).await?;
        let heads: Vec<_> = open(&steps).map(Pending::head).collect();
        self.execute_rows(&B::statements().keep_heads, &heads).await?;
        Ok(steps.into_iter().map(|(scene, step)| step.map(|step| step.over(scene))).collect())
    }

    async fn why_not_inserted(&mut self, scene: &Scene, sealed: &SealedValue) -> StoreResult<StoreError> {
        const SQL: &str = "SELECT 1 FROM tenant_keys WHERE tenant = $1 AND generation = $2";
        let generation = Arg::Int(i64::from(sealed.key_generation));
        let kept = self.fetch(SQL, &[Arg::Text(scene.tenant.as_str()), generation], |_| Ok(())).await?;
        // A server that has not heard yet that the generation is gone must not write what nothing could open.
        Ok(if kept.is_empty() { StoreError::RetiredKey } else { StoreError::Damaged("versions beyond the newest") })
    }

    async fn purge(&mut self, scene: &Scene, before: Option<Head>) -> StoreResult<Result<Committed, Refusal>> {
        let Some(head) = before else { return Ok(Err(Refusal::Absent)) };
        self.execute("DELETE FROM versions WHERE tenant = $1 AND path = $2", &scene.site()).await?;
        self.execute("DELETE FROM secrets WHERE tenant = $1 AND path = $2", &scene.site()).await?;
        Ok(Ok(Committed { head, created: false }))
    }

    async fn destroy(&mut self, scene: &Scene, before: Option<Head>, versions: &[Version]) -> StoreResult<Step> {
        const SQL: &str = "UPDATE versions SET destroyed_at = COALESCE(destroyed_at, $4), key_generation = NULL,
                                               wrapped_key = NULL, ciphertext = NULL
                           WHERE tenant = $1 AND path = $2 AND version = $3";
        let Some(head) = before.filter(|head| head.deleted.is_none()) else {
            return Ok(Step::refused(Refusal::Absent));
        };
        let known = self.versions(&scene.tenant, &scene.path).await?;
        if !versions.iter().all(|version| known.iter().any(|record| record.version == *version)) {
            return Ok(Step::refused(Refusal::VersionAbsent));
        }
        let [tenant, path] = scene.site();
        for version in versions {
            self.execute(SQL, &[tenant, path, Arg::Int(version.get()), Arg::Int(scene.at.micros())]).await?;
        }
        Ok(Step::rewritten(head.updated(scene)))
    }
}

fn soft_delete(scene: &Scene, before: Option<Head>, recoverable_until: Timestamp) -> Step {
    match before.filter(|head| head.deleted.is_none()) {
        Some(head) => Step::rewritten(Head { deleted: Some((scene.at, recoverable_until)), ..head }),
        None => Step::refused(Refusal::Absent),
    }
}

fn restore(scene: &Scene, before: Option<Head>) -> Step {
    match before.filter(|head| head.deleted.is_some_and(|(_, until)| until > scene.at)) {
        Some(head) => Step::rewritten(Head { deleted: None, ..head }.updated(scene)),
        None => Step::refused(Refusal::Absent),
    }
}

fn edit_metadata(scene: &Scene, before: Option<Head>, edit: EditMetadata) -> Step {
    let Some(head) = before.filter(|head| head.is_live(scene.at)) else { return Step::refused(Refusal::Absent) };
    match edit(&head.metadata) {
        Some(metadata) => Step::rewritten(Head { metadata, ..head }.updated(scene)),
        None => Step::refused(Refusal::MetadataTooLarge),
    }
}

/// What is yet to be written.
fn open<'s>(steps: &'s [(&Scene, StoreResult<Step>)]) -> impl Iterator<Item = Pending<'s>> {
    steps.iter().filter_map(|(scene, step)| match step {
        Ok(Step::Open(open)) => Some(Pending { scene, open }),
        _ => None,
    })
}

/// A secret that is yet to be written, as rows.
#[derive(Clone, Copy)]
struct Pending<'s> {
    scene: &'s Scene,
    open: &'s Open,
}

impl<'s> Pending<'s> {
    /// Its new version, if it has one.
    fn version(self) -> Option<[Arg<'s>; INSERT_VERSIONS.0]> {
        let Self { scene, open: Open { head, sealed, .. } } = self;
        let sealed = sealed.as_ref()?;
        let [tenant, path] = scene.site();
        Some([
            tenant,
            path,
            Arg::Int(head.latest.get()),
            Arg::Text(head.secret_type.as_str()),
            Arg::Int(scene.at.micros()),
            Arg::Text(&scene.by),
            Arg::MaybeInt(head.expires_at.map(Timestamp::micros)),
            Arg::Int(i64::from(sealed.key_generation)),
            Arg::Blob(&sealed.wrapped_key),
            Arg::Blob(&sealed.ciphertext),
        ])
    }

    /// The last of the versions beyond the number to keep, where one is added.
    fn versions_beyond(self) -> Option<[Arg<'s>; PRUNE_VERSIONS.0]> {
        let Self { scene, open: Open { head, sealed, .. } } = self;
        let last = head.latest.get() - i64::from(head.max_versions);
        let [tenant, path] = scene.site();
        (sealed.is_some() && last >= 1).then_some([tenant, path, Arg::Int(last)])
    }

    fn head(self) -> [Arg<'s>; KEEP_HEADS.0] {
        let Self { scene, open: Open { head, .. } } = self;
        let [tenant, path] = scene.site();
        [
            tenant,
            path,
            Arg::Int(head.latest.get()),
            Arg::Text(head.secret_type.as_str()),
            Arg::Text(head.metadata.as_str()),
            Arg::Int(head.created_at.micros()),
            Arg::Text(&head.created_by),
            Arg::Int(head.updated_at.micros()),
            Arg::Text(&head.updated_by),
            Arg::MaybeInt(head.expires_at.map(Timestamp::micros)),
            Arg::MaybeInt(head.deleted.map(|(at, _)| at.micros())),
            Arg::MaybeInt(head.deleted.map(|(_, until)| until.micros())),
            Arg::Int(i64::from(head.max_versions)),
        ]
    }
}

impl Step {
    fn refused(refusal: Refusal) -> Self {
        Self::Over(Err(refusal))
    }

    fn rewritten(head: Head) -> Self {
        Self::Open(Open { head, sealed: None, created: false })
    }

    /// What was open is written.
    fn over(self, scene: &Scene) -> Finished {
        match self {
            Self::Over(outcome) => (outcome, None),
            Self::Open(Open { head, sealed, created }) => {
                let record = sealed.map(|sealed| scene.record(head.clone(), sealed));
                (Ok(Committed { head, created }), record)
            }
        }
    }
}

impl Scene {
    fn set(request: ChangeRequest) -> (Self, (Change, Witness)) {
        let ChangeRequest { tenant, path, by, at, change, witness } = request;
        (Self { tenant, path, by, at }, (change, witness))
    }

    fn site(&self) -> [Arg<'_>; 2] {
        site(&self.tenant, &self.path)
    }

    fn is_at(&self, tenant: &str, path: &str) -> bool {
        self.tenant.as_str() == tenant && self.path.as_str() == path
    }

    /// A secret that is about to get its first version.
    fn blank_head(&self) -> Head {
        Head {
            path: self.path.clone(),
            latest: Version::FIRST,
            secret_type: SecretType::default(),
            metadata: MetadataText::default(),
            created_at: self.at,
            created_by: self.by.to_string(),
            updated_at: self.at,
            updated_by: self.by.to_string(),
            expires_at: None,
            deleted: None,
            max_versions: DEFAULT_MAX_VERSIONS,
        }
    }

    /// The secret with the version that it gets here.
    fn record(&self, head: Head, sealed: SealedValue) -> Record {
        let version = VersionRecord {
            version: head.latest,
            secret_type: head.secret_type,
            created_at: self.at,
            created_by: self.by.to_string(),
            expires_at: head.expires_at,
            destroyed_at: None,
            sealed: Some(sealed),
        };
        Record { head, version: Some(version) }
    }

    /// A change that meets damage is refused, and that is on record like any other refusal.
    fn witnessed(self, finished: StoreResult<Finished>, witness: Witness) -> StoreResult<Changed> {
        let (outcome, record) = whole(finished)?.unwrap_or_else(|DamagedRow(what)| {
            tracing::error!(tenant = %self.tenant, path = %self.path, what, "ALARM: a stored record is damaged");
            (Err(Refusal::Damaged), None)
        });
        let row = witness(&outcome);
        Ok(Changed { outcome, row, written: record.map(|record| (self.tenant, Arc::new(record))) })
    }
}

impl Head {
    fn updated(self, scene: &Scene) -> Self {
        Self { updated_at: scene.at, updated_by: scene.by.to_string(), ..self }
    }
}

/// Tells what fails one change from what fails the transaction: the database alone does that.
fn apart<T>(result: StoreResult<T>) -> StoreResult<StoreResult<T>> {
    match result {
        Err(error) if error.is_of_the_database() => Err(error),
        other => Ok(other),
    }
}
