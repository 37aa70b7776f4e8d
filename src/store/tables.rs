//! The tables in the store's verbs, over one connection of either database.

use std::sync::Arc;

use super::{
    Change, ChangeRequest, Committed, DamagedRow, EditMetadata, ListScan, Put, Refusal, StoreError, StoreResult,
    Stored, Wanted,
    sql::{Arg, Backend, Columns, head_columns, version_columns},
};
use crate::domain::{
    AuditRow, Head, MetadataText, Record, SealedValue, SecretPath, SecretType, TenantId, Timestamp, Version,
    VersionRecord,
};

/// How many versions a secret keeps when nobody said.
const DEFAULT_MAX_VERSIONS: u32 = 10;

/// One connection, for the length of a transaction or of one statement.
pub struct Tables<'c, B: Backend>(pub &'c mut B::Connection);

impl<B: Backend> Tables<'_, B> {
    pub(super) async fn fetch(&mut self, sql: &'static str, args: &[Arg<'_>]) -> StoreResult<Vec<B::Row>> {
        B::fetch(self.0, sql, args).await
    }

    pub(super) async fn execute(&mut self, sql: &'static str, args: &[Arg<'_>]) -> StoreResult<u64> {
        B::execute(self.0, sql, args).await
    }

    pub async fn get_many(&mut self, tenant: &TenantId, wanted: &[Wanted]) -> StoreResult<Vec<Stored>> {
        let paths = json_array(wanted.iter().map(|(path, _)| path.as_str()))?;
        let versions = if wanted.iter().any(|(_, version)| version.is_some()) {
            Some(json_array(wanted.iter().map(|(_, version)| version.map(Version::get)))?)
        } else {
            None
        };
        let args = [Arg::Text(tenant.as_str()), Arg::Text(&paths), Arg::MaybeText(versions.as_deref())];
        let mut records: Vec<Stored> = wanted.iter().map(|_| Ok(None)).collect();
        for row in self.fetch(B::GET_MANY, &args).await? {
            let place = usize::try_from(row.int(0)?).map_err(|_| StoreError::Damaged("place"))?;
            let slot = records.get_mut(place).zip(wanted.get(place)).ok_or(StoreError::Damaged("place"))?;
            let (slot, (_, pinned)) = slot;
            *slot = whole(record(&row, *pinned))?.map(|record| Some(Arc::new(record)));
        }
        Ok(records)
    }

    pub async fn list(&mut self, tenant: &TenantId, scan: &ListScan, now: Timestamp) -> StoreResult<Vec<Head>> {
        const SQL: &str = concat!(
            "SELECT 0, ",
            head_columns!("s"),
            " FROM secrets AS s
              WHERE s.tenant = $1 AND s.path >= $2 AND s.path < $3 AND s.path > $4
                AND s.deleted_at IS NULL AND (s.expires_at IS NULL OR s.expires_at > $5)
              ORDER BY s.path LIMIT $6 OFFSET $7"
        );
        // Every byte of a path is below DEL, so this is the first text after all paths with the prefix.
        let end = format!("{}\u{7f}", scan.prefix);
        let limit = scan.limit as usize;
        let mut heads: Vec<Head> = Vec::new();
        // Damaged rows that follow the last whole one.
        let mut passed = 0;
        loop {
            let after = heads.last().map(|head| &head.path).or(scan.after.as_ref());
            let room = limit - heads.len();
            let args = [
                Arg::Text(tenant.as_str()),
                Arg::Text(&scan.prefix),
                Arg::Text(&end),
                Arg::Text(after.map_or("", SecretPath::as_str)),
                Arg::Int(now.micros()),
                Arg::Int(i64::try_from(room).unwrap_or(i64::MAX)),
                Arg::Int(passed),
            ];
            let rows = self.fetch(SQL, &args).await?;
            for row in &rows {
                match whole(head(row))? {
                    Ok(head) => {
                        heads.push(head);
                        passed = 0;
                    }
                    Err(DamagedRow(what)) => {
                        passed += 1;
                        tracing::error!(%tenant, path = ?row.text(1).ok(), what, "ALARM: a damaged secret is not listed");
                    }
                }
            }
            if rows.len() < room || heads.len() == limit {
                return Ok(heads);
            }
        }
    }

    pub async fn head(&mut self, tenant: &TenantId, path: &SecretPath) -> StoreResult<Option<Head>> {
        const SQL: &str =
            concat!("SELECT 0, ", head_columns!("s"), " FROM secrets AS s WHERE s.tenant = $1 AND s.path = $2");
        let rows = self.fetch(SQL, &site(tenant, path)).await?;
        rows.first().map(head).transpose()
    }

    pub async fn versions(&mut self, tenant: &TenantId, path: &SecretPath) -> StoreResult<Vec<VersionRecord>> {
        const SQL: &str = concat!(
            "SELECT ",
            version_columns!("v"),
            " FROM versions AS v WHERE v.tenant = $1 AND v.path = $2 ORDER BY v.version DESC"
        );
        let rows = self.fetch(SQL, &site(tenant, path)).await?;
        let version_of = |row| version(row, 0)?.ok_or(StoreError::Damaged("version"));
        rows.iter().map(version_of).collect()
    }

    /// Makes one change. The caller appends its audit row and commits both, or neither.
    pub async fn apply(&mut self, request: ChangeRequest) -> StoreResult<(Result<Committed, Refusal>, AuditRow)> {
        let ChangeRequest { tenant, path, by, at, change, witness } = request;
        if let Some(lock) = B::LOCK_SECRET {
            self.fetch(lock, &site(&tenant, &path)).await?;
        }
        let scene = Scene { tenant: &tenant, path: &path, by: &by, at };
        // INVARIANT: a change that meets damage has written nothing, or has undone it.
        let outcome = whole(self.change(scene, change).await)?.unwrap_or_else(|DamagedRow(what)| {
            tracing::error!(%tenant, %path, what, "ALARM: a stored record is damaged");
            Err(Refusal::Damaged)
        });
        let row = witness(&outcome);
        Ok((outcome, row))
    }

    async fn change(&mut self, scene: Scene<'_>, change: Change) -> StoreResult<Result<Committed, Refusal>> {
        let before = self.head(scene.tenant, scene.path).await?;
        match change {
            Change::Put(put) => self.put(scene, before, put).await,
            Change::SoftDelete { recoverable_until } => self.soft_delete(scene, before, recoverable_until).await,
            Change::Restore => self.restore(scene, before).await,
            Change::Purge => self.purge(scene, before).await,
            Change::Destroy(versions) => self.destroy(scene, before, &versions).await,
            Change::EditMetadata(edit) => self.edit_metadata(scene, before, edit).await,
        }
    }

    async fn put(
        &mut self,
        scene: Scene<'_>,
        before: Option<Head>,
        put: Put,
    ) -> StoreResult<Result<Committed, Refusal>> {
        match before {
            Some(head) if head.deleted.is_some_and(|(_, until)| until > scene.at) => Ok(Err(Refusal::Deleted)),
            Some(head) if head.deleted.is_some() => self.replace(scene, head, put).await,
            other => self.put_next(scene, other, put).await,
        }
    }

    /// Puts a secret where one stood that cannot be restored any more: what is left of that goes, or all stays as it is.
    async fn replace(&mut self, scene: Scene<'_>, gone: Head, put: Put) -> StoreResult<Result<Committed, Refusal>> {
        self.execute("SAVEPOINT gone", &[]).await?;
        self.purge(scene, Some(gone)).await?.ok();
        let done = self.put_next(scene, None, put).await;
        if matches!(done, Err(StoreError::Database(_))) {
            // The caller has to undo more than this, if the database has not done so.
            return done;
        }
        if !matches!(done, Ok(Ok(_))) {
            self.execute("ROLLBACK TO SAVEPOINT gone", &[]).await?;
        }
        self.execute("RELEASE SAVEPOINT gone", &[]).await?;
        done
    }

    async fn put_next(
        &mut self,
        scene: Scene<'_>,
        before: Option<Head>,
        put: Put,
    ) -> StoreResult<Result<Committed, Refusal>> {
        let newest = before.as_ref().map_or(0, |head| head.latest.get());
        if put.expected_version.is_some_and(|expected| expected != newest) {
            return Ok(Err(Refusal::VersionConflict(newest)));
        }
        if let Some(source) = put.source
            && let Some(refusal) = self.source_refusal(scene, before.as_ref(), source).await?
        {
            return Ok(Err(refusal));
        }
        let Some(version) = before.as_ref().map_or(Some(Version::FIRST), |head| head.latest.next()) else {
            return Ok(Err(Refusal::VersionsExhausted));
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
        self.insert_version(scene, &head, &sealed).await?;
        self.prune(scene, &head).await?;
        Ok(self.keep(scene, head).await?.map(|kept| Committed { created, ..kept }))
    }

    /// Why a value must not be taken from a version: it was purged or destroyed meanwhile.
    async fn source_refusal(
        &mut self,
        scene: Scene<'_>,
        before: Option<&Head>,
        source: Version,
    ) -> StoreResult<Option<Refusal>> {
        if before.is_none() {
            return Ok(Some(Refusal::Absent));
        }
        let versions = self.versions(scene.tenant, scene.path).await?;
        let there = versions.iter().any(|record| record.version == source && record.destroyed_at.is_none());
        Ok((!there).then_some(Refusal::VersionAbsent))
    }

    async fn insert_version(&mut self, scene: Scene<'_>, head: &Head, sealed: &SealedValue) -> StoreResult<()> {
        const SQL: &str =
            "INSERT INTO versions (tenant, path, version, secret_type, created_at, created_by, expires_at,
                                                 key_generation, wrapped_key, ciphertext)
                           SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10
                           WHERE EXISTS (SELECT 1 FROM tenant_keys WHERE tenant = $1 AND generation = $8)
                           ON CONFLICT DO NOTHING";
        let args = [
            Arg::Text(scene.tenant.as_str()),
            Arg::Text(scene.path.as_str()),
            Arg::Int(head.latest.get()),
            Arg::Text(head.secret_type.as_str()),
            Arg::Int(scene.at.micros()),
            Arg::Text(scene.by),
            Arg::MaybeInt(head.expires_at.map(Timestamp::micros)),
            Arg::Int(i64::from(sealed.key_generation)),
            Arg::Blob(&sealed.wrapped_key),
            Arg::Blob(&sealed.ciphertext),
        ];
        if self.execute(SQL, &args).await? == 1 {
            return Ok(());
        }
        let kept = "SELECT 1 FROM tenant_keys WHERE tenant = $1 AND generation = $2";
        let generation = Arg::Int(i64::from(sealed.key_generation));
        let kept = self.fetch(kept, &[Arg::Text(scene.tenant.as_str()), generation]).await?;
        // A server that has not heard yet that the generation is gone must not write what nothing could open.
        Err(if kept.is_empty() { StoreError::RetiredKey } else { StoreError::Damaged("versions beyond the newest") })
    }

    async fn prune(&mut self, scene: Scene<'_>, head: &Head) -> StoreResult<()> {
        const SQL: &str = "DELETE FROM versions WHERE tenant = $1 AND path = $2 AND version <= $3";
        let last_to_go = head.latest.get() - i64::from(head.max_versions);
        if last_to_go < 1 {
            return Ok(());
        }
        let [tenant, path] = site(scene.tenant, scene.path);
        self.execute(SQL, &[tenant, path, Arg::Int(last_to_go)]).await.map(drop)
    }

    async fn soft_delete(
        &mut self,
        scene: Scene<'_>,
        before: Option<Head>,
        recoverable_until: Timestamp,
    ) -> StoreResult<Result<Committed, Refusal>> {
        match before.filter(|head| head.deleted.is_none()) {
            Some(head) => self.keep(scene, Head { deleted: Some((scene.at, recoverable_until)), ..head }).await,
            None => Ok(Err(Refusal::Absent)),
        }
    }

    async fn restore(&mut self, scene: Scene<'_>, before: Option<Head>) -> StoreResult<Result<Committed, Refusal>> {
        match before.filter(|head| head.deleted.is_some_and(|(_, until)| until > scene.at)) {
            Some(head) => self.keep(scene, Head { deleted: None, ..head }.updated(scene)).await,
            None => Ok(Err(Refusal::Absent)),
        }
    }

    async fn purge(&mut self, scene: Scene<'_>, before: Option<Head>) -> StoreResult<Result<Committed, Refusal>> {
        let Some(head) = before else { return Ok(Err(Refusal::Absent)) };
        let site = site(scene.tenant, scene.path);
        self.execute("DELETE FROM versions WHERE tenant = $1 AND path = $2", &site).await?;
        self.execute("DELETE FROM secrets WHERE tenant = $1 AND path = $2", &site).await?;
        Ok(Ok(Committed { head, created: false }))
    }

    async fn destroy(
        &mut self,
        scene: Scene<'_>,
        before: Option<Head>,
        versions: &[Version],
    ) -> StoreResult<Result<Committed, Refusal>> {
        const SQL: &str = "UPDATE versions SET destroyed_at = COALESCE(destroyed_at, $4), key_generation = NULL,
                                               wrapped_key = NULL, ciphertext = NULL
                           WHERE tenant = $1 AND path = $2 AND version = $3";
        let Some(head) = before.filter(|head| head.deleted.is_none()) else { return Ok(Err(Refusal::Absent)) };
        let known = self.versions(scene.tenant, scene.path).await?;
        if !versions.iter().all(|version| known.iter().any(|record| record.version == *version)) {
            return Ok(Err(Refusal::VersionAbsent));
        }
        let [tenant, path] = site(scene.tenant, scene.path);
        for version in versions {
            self.execute(SQL, &[tenant, path, Arg::Int(version.get()), Arg::Int(scene.at.micros())]).await?;
        }
        self.keep(scene, head.updated(scene)).await
    }

    async fn edit_metadata(
        &mut self,
        scene: Scene<'_>,
        before: Option<Head>,
        edit: EditMetadata,
    ) -> StoreResult<Result<Committed, Refusal>> {
        let Some(head) = before.filter(|head| head.is_live(scene.at)) else { return Ok(Err(Refusal::Absent)) };
        match edit(&head.metadata) {
            Some(metadata) => self.keep(scene, Head { metadata, ..head }.updated(scene)).await,
            None => Ok(Err(Refusal::MetadataTooLarge)),
        }
    }

    async fn keep(&mut self, scene: Scene<'_>, head: Head) -> StoreResult<Result<Committed, Refusal>> {
        const SQL: &str = "INSERT INTO secrets (tenant, path, latest, secret_type, metadata, created_at, created_by,
                                  updated_at, updated_by, expires_at, deleted_at, recoverable_until, max_versions)
                           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
                           ON CONFLICT (tenant, path) DO UPDATE SET
                                  latest = excluded.latest, secret_type = excluded.secret_type,
                                  metadata = excluded.metadata, updated_at = excluded.updated_at,
                                  updated_by = excluded.updated_by, expires_at = excluded.expires_at,
                                  deleted_at = excluded.deleted_at, recoverable_until = excluded.recoverable_until,
                                  max_versions = excluded.max_versions";
        let args = [
            Arg::Text(scene.tenant.as_str()),
            Arg::Text(scene.path.as_str()),
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
        ];
        self.execute(SQL, &args).await?;
        Ok(Ok(Committed { head, created: false }))
    }
}

/// Where, by whom and when a change is made.
#[derive(Clone, Copy)]
struct Scene<'a> {
    tenant: &'a TenantId,
    path: &'a SecretPath,
    by: &'a str,
    at: Timestamp,
}

impl Scene<'_> {
    /// A secret that is about to get its first version.
    fn blank_head(self) -> Head {
        Head {
            path: self.path.clone(),
            latest: Version::FIRST,
            secret_type: SecretType::default(),
            metadata: MetadataText::default(),
            created_at: self.at,
            created_by: self.by.to_owned(),
            updated_at: self.at,
            updated_by: self.by.to_owned(),
            expires_at: None,
            deleted: None,
            max_versions: DEFAULT_MAX_VERSIONS,
        }
    }
}

impl Head {
    fn updated(self, scene: Scene<'_>) -> Self {
        Self { updated_at: scene.at, updated_by: scene.by.to_owned(), ..self }
    }
}

fn site<'a>(tenant: &'a TenantId, path: &'a SecretPath) -> [Arg<'a>; 2] {
    [Arg::Text(tenant.as_str()), Arg::Text(path.as_str())]
}

fn json_array<T: serde::Serialize>(items: impl Iterator<Item = T>) -> StoreResult<String> {
    serde_json::to_string(&items.collect::<Vec<_>>()).map_err(|_| StoreError::Damaged("question"))
}

/// Tells damage, which concerns one row, from the failures that concern the whole statement.
fn whole<T>(result: StoreResult<T>) -> StoreResult<Result<T, DamagedRow>> {
    match result {
        Err(StoreError::Damaged(what)) => Ok(Err(DamagedRow(what))),
        other => other.map(Ok),
    }
}

/// Columns 0: place; 1 to 12: the secret; 13 to 18: the version; 19 to 21: its value.
fn record(row: &impl Columns, pinned: Option<Version>) -> StoreResult<Record> {
    let head = head(row)?;
    match version(row, 13)? {
        // In a damaged file, what is found under a key need not have it.
        Some(version) if version.version != pinned.unwrap_or(head.latest) => Err(StoreError::Damaged("version")),
        Some(version) => {
            let sealed = sealed(row)?;
            // What is destroyed has no value; what has none was destroyed.
            if version.destroyed_at.is_none() != sealed.is_some() {
                return Err(StoreError::Damaged("destroyed_at"));
            }
            Ok(Record { head, version: Some(VersionRecord { sealed, ..version }) })
        }
        None if pinned.is_some() => Ok(Record { head, version: None }),
        // A secret always has its newest version, if only as a destroyed one.
        None => Err(StoreError::Damaged("latest")),
    }
}

fn head(row: &impl Columns) -> StoreResult<Head> {
    let deleted = row.maybe_int(10)?.zip(row.maybe_int(11)?);
    Ok(Head {
        path: SecretPath::parse(&row.text(1)?).map_err(|_| StoreError::Damaged("path"))?,
        latest: Version::new(row.int(2)?).ok_or(StoreError::Damaged("latest"))?,
        secret_type: secret_type(&row.text(3)?)?,
        metadata: MetadataText::from_store(row.text(4)?).ok_or(StoreError::Damaged("metadata"))?,
        created_at: Timestamp::from_micros(row.int(5)?),
        created_by: row.text(6)?,
        updated_at: Timestamp::from_micros(row.int(7)?),
        updated_by: row.text(8)?,
        expires_at: row.maybe_int(9)?.map(Timestamp::from_micros),
        deleted: deleted.map(|(at, until)| (Timestamp::from_micros(at), Timestamp::from_micros(until))),
        max_versions: narrow(row.int(12)?)?,
    })
}

fn version(row: &impl Columns, first: usize) -> StoreResult<Option<VersionRecord>> {
    let Some(number) = row.maybe_int(first)? else { return Ok(None) };
    // A version that ends before it begins would be taken for one that is over.
    if row.maybe_int(first + 4)?.is_some_and(|end| row.int(first + 2).is_ok_and(|begin| end < begin)) {
        return Err(StoreError::Damaged("expires_at"));
    }
    Ok(Some(VersionRecord {
        version: Version::new(number).ok_or(StoreError::Damaged("version"))?,
        secret_type: secret_type(&row.text(first + 1)?)?,
        created_at: Timestamp::from_micros(row.int(first + 2)?),
        created_by: row.text(first + 3)?,
        expires_at: row.maybe_int(first + 4)?.map(Timestamp::from_micros),
        destroyed_at: row.maybe_int(first + 5)?.map(Timestamp::from_micros),
        sealed: None,
    }))
}

fn sealed(row: &impl Columns) -> StoreResult<Option<SealedValue>> {
    let (Some(generation), Some(wrapped_key), Some(ciphertext)) =
        (row.maybe_int(19)?, row.maybe_blob(20)?, row.maybe_blob(21)?)
    else {
        return Ok(None);
    };
    Ok(Some(SealedValue { key_generation: narrow(generation)?, wrapped_key, ciphertext }))
}

fn secret_type(word: &str) -> StoreResult<SecretType> {
    SecretType::parse(word).ok_or(StoreError::Damaged("secret_type"))
}

pub(super) fn narrow(number: i64) -> StoreResult<u32> {
    u32::try_from(number).map_err(|_| StoreError::Damaged("number"))
}
