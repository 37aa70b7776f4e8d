//! The tables in the store's verbs, over one connection of either database.

use std::sync::Arc;

use super::{
    DamagedRow, ListScan, StoreError, StoreResult, Stored, Wanted,
    known::Known,
    sql::{Arg, Backend, Columns, head_columns, version_columns},
    statements::ManyRows,
};
use crate::domain::{
    Head, MaskedKey, MetadataText, Record, SealedValue, SecretPath, SecretType, TenantId, Timestamp, Version,
    VersionRecord,
};

/// One connection, for the length of a transaction or of one statement.
pub struct Tables<'c, B: Backend>(pub &'c mut B::Connection);

/// What was found at a path.
pub struct Found {
    pub stored: Stored,
    /// The database's stamp on it, if it was read anew.
    pub stamp: Option<Box<str>>,
}

impl Found {
    /// What is to be answered unless the database says otherwise.
    fn known(known: Option<Known>) -> Self {
        Self { stored: Ok(known.map(|known| known.record)), stamp: None }
    }
}

impl<B: Backend> Tables<'_, B> {
    pub(super) async fn fetch<T: Send>(
        &mut self,
        sql: &'static str,
        args: &[Arg<'_>],
        read: impl FnMut(&dyn Columns) -> StoreResult<T> + Send,
    ) -> StoreResult<Vec<T>> {
        B::fetch(self.0, sql, args, read).await
    }

    /// What is read of a statement's first row.
    pub(super) async fn fetch_first<T: Send>(
        &mut self,
        sql: &'static str,
        args: &[Arg<'_>],
        read: impl FnMut(&dyn Columns) -> StoreResult<T> + Send,
    ) -> StoreResult<Option<T>> {
        Ok(self.fetch(sql, args, read).await?.into_iter().next())
    }

    pub(super) async fn execute(&mut self, sql: &'static str, args: &[Arg<'_>]) -> StoreResult<u64> {
        B::execute(self.0, sql, args).await
    }

    /// What a statement answers to these rows; nothing where there are none.
    pub(super) async fn fetch_rows<T: Send, const WIDTH: usize>(
        &mut self,
        statement: &'static ManyRows,
        rows: &[[Arg<'_>; WIDTH]],
        read: impl FnMut(&dyn Columns) -> StoreResult<T> + Send,
    ) -> StoreResult<Vec<T>> {
        if rows.is_empty() {
            Ok(Vec::new())
        } else {
            self.fetch(statement.over(rows.len())?, rows.as_flattened(), read).await
        }
    }

    /// How many rows a statement changed for these; none where there are none.
    pub(super) async fn execute_rows<const WIDTH: usize>(
        &mut self,
        statement: &'static ManyRows,
        rows: &[[Arg<'_>; WIDTH]],
    ) -> StoreResult<u64> {
        if rows.is_empty() { Ok(0) } else { self.execute(statement.over(rows.len())?, rows.as_flattened()).await }
    }

    /// What is stored. What is known of it is not read anew, where the database says that it still is so.
    pub async fn get_many(
        &mut self,
        tenant: &TenantId,
        wanted: &[Wanted],
        known: Vec<Option<Known>>,
    ) -> StoreResult<Vec<Found>> {
        let paths = json_array(wanted.iter().map(|(path, _)| Some(path.as_str())))?;
        let versions = json_array(wanted.iter().map(|(_, version)| version.map(Version::get)))?;
        let stamps = json_array(known.iter().map(|known| known.as_ref().map(|known| &known.stamp)))?;
        let mut args =
            vec![Arg::Text(tenant.as_str()), Arg::MaybeText(paths.as_deref()), Arg::MaybeText(versions.as_deref())];
        if B::IS_SHARED {
            args.push(Arg::MaybeText(stamps.as_deref()));
        }
        let mut known = known.into_iter();
        let mut answers: Vec<Found> = wanted.iter().map(|_| Found::known(known.next().flatten())).collect();
        let place_answer = |row: &dyn Columns| {
            let place = row.int(0)?;
            let is_gone = place < 0;
            let place = usize::try_from(if is_gone { !place } else { place });
            let place = place.map_err(|_| StoreError::Damaged("place"))?;
            let slot = answers.get_mut(place).zip(wanted.get(place)).ok_or(StoreError::Damaged("place"))?;
            let (slot, (_, pinned)) = slot;
            let stored =
                if is_gone { Ok(None) } else { whole(record(row, *pinned))?.map(|record| Some(Arc::new(record))) };
            let stamp = if B::IS_SHARED { row.maybe_text(22)?.map(Into::into) } else { None };
            *slot = Found { stored, stamp };
            Ok(())
        };
        self.fetch(B::GET_MANY, &args, place_answer).await?;
        Ok(answers)
    }

    pub async fn list(&mut self, tenant: &TenantId, scan: &ListScan, now: Timestamp) -> StoreResult<Vec<Arc<Record>>> {
        // The limit is a sum, since SQLite prepares a statement anew each time where it is a parameter.
        const SQL: &str = concat!(
            "SELECT 0, ",
            head_columns!("s"),
            " FROM secrets AS s
              WHERE s.tenant = $1 AND s.path >= $2 AND s.path < $3 AND s.path > $4
                AND s.deleted_at IS NULL AND (s.expires_at IS NULL OR s.expires_at > $5)
              ORDER BY s.path LIMIT 0 + $6 OFFSET $7"
        );
        // Every byte of a path is below DEL, so this is the first text after all paths with the prefix.
        let end = format!("{}\u{7f}", scan.prefix);
        let limit = scan.limit as usize;
        let mut records: Vec<Arc<Record>> = Vec::new();
        // Damaged rows that follow the last whole one.
        let mut passed = 0;
        loop {
            let after = records.last().map(|record| &record.head.path).or(scan.after.as_ref());
            let room = limit - records.len();
            let args = [
                Arg::Text(tenant.as_str()),
                Arg::Text(&scan.prefix),
                Arg::Text(&end),
                Arg::Text(after.map_or("", SecretPath::as_str)),
                Arg::Int(now.micros()),
                Arg::Int(i64::try_from(room).unwrap_or(i64::MAX)),
                Arg::Int(passed),
            ];
            let described = |row: &dyn Columns| {
                let head = whole(head(row))?;
                if let Err(DamagedRow(what)) = head {
                    tracing::error!(%tenant, path = ?row.text(1).ok(), what, "ALARM: a damaged secret is not listed");
                }
                Ok(head.map(|head| Arc::new(Record { head, version: None })))
            };
            let rows = self.fetch(SQL, &args, described).await?;
            let exhausted = rows.len() < room;
            for row in rows {
                match row {
                    Ok(record) => {
                        records.push(record);
                        passed = 0;
                    }
                    Err(_) => passed += 1,
                }
            }
            if exhausted || records.len() == limit {
                return Ok(records);
            }
        }
    }

    /// A secret and all its versions. The caller sees to it that both are of one moment.
    pub async fn head_and_versions(
        &mut self,
        tenant: &TenantId,
        path: &SecretPath,
    ) -> StoreResult<Option<(Head, Vec<VersionRecord>)>> {
        let head = self.heads([(tenant, path)].into_iter()).await?.pop().unwrap_or(Ok(None));
        let Some(head) = head? else { return Ok(None) };
        Ok(Some((head, self.versions(tenant, path).await?)))
    }

    pub async fn versions(&mut self, tenant: &TenantId, path: &SecretPath) -> StoreResult<Vec<VersionRecord>> {
        const SQL: &str = concat!(
            "SELECT ",
            version_columns!("v"),
            " FROM versions AS v WHERE v.tenant = $1 AND v.path = $2 ORDER BY v.version DESC"
        );
        let version_of = |row: &dyn Columns| version(row, 0)?.ok_or(StoreError::Damaged("version"));
        self.fetch(SQL, &site(tenant, path), version_of).await
    }
}

pub(super) fn site<'a>(tenant: &'a TenantId, path: &'a SecretPath) -> [Arg<'a>; 2] {
    [Arg::Text(tenant.as_str()), Arg::Text(path.as_str())]
}

/// None where it would hold nothing but nulls.
fn json_array<T: serde::Serialize>(items: impl Iterator<Item = Option<T>>) -> StoreResult<Option<String>> {
    let items: Vec<_> = items.collect();
    if items.iter().all(Option::is_none) {
        return Ok(None);
    }
    serde_json::to_string(&items).map(Some).map_err(|_| StoreError::Damaged("question"))
}

/// Tells damage, which concerns one row, from the failures that concern the whole statement.
pub(super) fn whole<T>(result: StoreResult<T>) -> StoreResult<Result<T, DamagedRow>> {
    match result {
        Err(StoreError::Damaged(what)) => Ok(Err(DamagedRow(what))),
        other => other.map(Ok),
    }
}

/// Columns 1 to 12: the secret; 13 to 18: the version; 19 to 21: its value.
fn record(row: &dyn Columns, pinned: Option<Version>) -> StoreResult<Record> {
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

/// Columns 1 to 12.
pub(super) fn head(row: &dyn Columns) -> StoreResult<Head> {
    let deleted = row.maybe_int(10)?.zip(row.maybe_int(11)?);
    Ok(Head {
        path: SecretPath::parse(row.text(1)?).map_err(|_| StoreError::Damaged("path"))?,
        latest: Version::new(row.int(2)?).ok_or(StoreError::Damaged("latest"))?,
        secret_type: secret_type(row.text(3)?)?,
        metadata: MetadataText::from_store(row.text(4)?.to_owned()).ok_or(StoreError::Damaged("metadata"))?,
        created_at: Timestamp::from_micros(row.int(5)?),
        created_by: row.text(6)?.to_owned(),
        updated_at: Timestamp::from_micros(row.int(7)?),
        updated_by: row.text(8)?.to_owned(),
        expires_at: row.maybe_int(9)?.map(Timestamp::from_micros),
        deleted: deleted.map(|(at, until)| (Timestamp::from_micros(at), Timestamp::from_micros(until))),
        max_versions: narrow(row.int(12)?)?,
    })
}

fn version(row: &dyn Columns, first: usize) -> StoreResult<Option<VersionRecord>> {
    let Some(number) = row.maybe_int(first)? else { return Ok(None) };
    // A version that ends before it begins would be taken for one that is over.
    if row.maybe_int(first + 4)?.is_some_and(|end| row.int(first + 2).is_ok_and(|begin| end < begin)) {
        return Err(StoreError::Damaged("expires_at"));
    }
    Ok(Some(VersionRecord {
        version: Version::new(number).ok_or(StoreError::Damaged("version"))?,
        secret_type: secret_type(row.text(first + 1)?)?,
        created_at: Timestamp::from_micros(row.int(first + 2)?),
        created_by: row.text(first + 3)?.to_owned(),
        expires_at: row.maybe_int(first + 4)?.map(Timestamp::from_micros),
        destroyed_at: row.maybe_int(first + 5)?.map(Timestamp::from_micros),
        sealed: None,
    }))
}

fn sealed(row: &dyn Columns) -> StoreResult<Option<SealedValue>> {
    let (Some(generation), Some(wrapped_key), Some(ciphertext)) =
        (row.maybe_int(19)?, row.maybe_blob(20)?, row.maybe_blob(21)?)
    else {
        return Ok(None);
    };
    let (wrapped_key, ciphertext) = (wrapped_key.to_vec(), ciphertext.to_vec());
    let (key_generation, masked_key) = (narrow(generation)?, MaskedKey::default());
    Ok(Some(SealedValue { key_generation, wrapped_key, ciphertext, masked_key }))
}

fn secret_type(word: &str) -> StoreResult<SecretType> {
    SecretType::parse(word).ok_or(StoreError::Damaged("secret_type"))
}

pub(super) fn narrow(number: i64) -> StoreResult<u32> {
    u32::try_from(number).map_err(|_| StoreError::Damaged("number"))
}

pub(super) fn count(number: i64) -> StoreResult<u64> {
    u64::try_from(number).map_err(|_| StoreError::Damaged("count"))
}
