//! The tables of keys in the store's verbs, over one connection of either database.

use super::{
    KeyChange, StoreError, StoreResult,
    sql::{Arg, Backend, Columns},
    tables::{Tables, count, narrow},
};
use crate::domain::{GenerationUse, KeyStock, SecretPath, TenantId, Version, WrappedDataKey, WrappedKey};

/// The root key's fingerprint.
pub const ROOT: &str = "SELECT fingerprint FROM root_key WHERE id = 1";
/// How many records of the tenants from `$1` to `$2` there are under each generation. One that is not kept is counted too:
/// it is damage that an operator must see.
const GENERATIONS: &str = "SELECT tenant, generation, CAST(SUM(records) AS BIGINT) FROM (
                               SELECT tenant, generation, 0 AS records FROM tenant_keys
                               WHERE tenant BETWEEN $1 AND $2
                               UNION ALL
                               SELECT tenant, key_generation, COUNT(*) FROM versions
                               WHERE tenant BETWEEN $1 AND $2 AND key_generation IS NOT NULL
                               GROUP BY tenant, key_generation) AS uses
                           GROUP BY tenant, generation ORDER BY tenant, generation";
/// Removes a tenant's generations that nothing is under any more.
const DROP_UNUSED: &str = "DELETE FROM tenant_keys WHERE tenant = $1
                             AND generation < (SELECT MAX(generation) FROM tenant_keys WHERE tenant = $1)
                             AND NOT EXISTS (SELECT 1 FROM versions
                                             WHERE versions.tenant = tenant_keys.tenant
                                               AND versions.key_generation = tenant_keys.generation)";
/// What the names of all tenants are between.
const ALL_TENANTS: (&str, &str) = ("", "\u{7f}");

impl<B: Backend> Tables<'_, B> {
    pub async fn tenant_keys(&mut self, tenant: &TenantId) -> StoreResult<Vec<WrappedKey>> {
        const SQL: &str = "SELECT generation, wrapped FROM tenant_keys WHERE tenant = $1 ORDER BY generation";
        self.fetch(SQL, &[Arg::Text(tenant.as_str())], |row| wrapped_key(row, 0)).await
    }

    pub async fn root_fingerprint(&mut self, fingerprint: &[u8]) -> StoreResult<Vec<u8>> {
        const KEEP: &str = "INSERT INTO root_key (id, fingerprint) VALUES (1, $1) ON CONFLICT (id) DO NOTHING";
        self.execute(KEEP, &[Arg::Blob(fingerprint)]).await?;
        self.kept_fingerprint(ROOT).await
    }

    pub async fn vault_key(&mut self, root: &[u8], name: &str, wrapped: &[u8]) -> StoreResult<Vec<u8>> {
        const KEEP: &str = "INSERT INTO vault_keys (name, wrapped) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
        self.hold_root(root).await?;
        self.execute(KEEP, &[Arg::Text(name), Arg::Blob(wrapped)]).await?;
        self.kept_vault_key(name).await?.ok_or(StoreError::Damaged("vault key"))
    }

    pub async fn kept_vault_key(&mut self, name: &str) -> StoreResult<Option<Vec<u8>>> {
        const SQL: &str = "SELECT wrapped FROM vault_keys WHERE name = $1";
        self.fetch_first(SQL, &[Arg::Text(name)], |row| Ok(row.blob(0)?.to_vec())).await
    }

    pub async fn generations(&mut self, tenant: Option<&TenantId>) -> StoreResult<Vec<GenerationUse>> {
        let (first, last) = tenant.map_or(ALL_TENANTS, |tenant| (tenant.as_str(), tenant.as_str()));
        let generation_use = |row: &dyn Columns| {
            Ok(GenerationUse {
                tenant: tenant_of(row.text(0)?)?,
                generation: narrow(row.int(1)?)?,
                records: count(row.int(2)?)?,
            })
        };
        self.fetch(GENERATIONS, &[Arg::Text(first), Arg::Text(last)], generation_use).await
    }

    pub async fn stale_keys(
        &mut self,
        tenant: &TenantId,
        newest: u32,
        after: Option<&WrappedDataKey>,
        limit: u32,
    ) -> StoreResult<Vec<WrappedDataKey>> {
        const SQL: &str = "SELECT path, version, key_generation, wrapped_key FROM versions
                           WHERE tenant = $1 AND key_generation < $2 AND wrapped_key IS NOT NULL
                             AND (path, version) > ($3, $4)
                           ORDER BY path, version LIMIT $5";
        let args = [
            Arg::Text(tenant.as_str()),
            Arg::Int(i64::from(newest)),
            Arg::Text(after.map_or("", |key| key.path.as_str())),
            Arg::Int(after.map_or(0, |key| key.version.get())),
            Arg::Int(i64::from(limit)),
        ];
        let whole = |row: &dyn Columns| {
            let key = data_key(row);
            let alarm = |error: &_| tracing::error!(%tenant, %error, "ALARM: a damaged record keeps its old key");
            Ok(key.inspect_err(alarm).ok())
        };
        Ok(self.fetch(SQL, &args, whole).await?.into_iter().flatten().collect())
    }

    /// Makes one change of keys; answers how many it changed. The caller appends its audit row and commits both.
    pub async fn change_keys(&mut self, change: KeyChange) -> StoreResult<u64> {
        Ok(match change {
            KeyChange::Add { tenant, key, root } => {
                self.hold_root(&root).await?;
                self.add_tenant_key(&tenant, &key).await?
            }
            KeyChange::Rewrap { tenant, keys } => self.rewrap(&tenant, &keys).await?,
            KeyChange::DropUnused(tenant) => self.drop_unused(&tenant).await?,
            KeyChange::ReplaceRoot { from, to, rewrap } => {
                self.move_root(&from, &to).await?;
                let stock = self.stock().await?;
                self.replace_stock(rewrap(stock).ok_or(StoreError::Unsealable)?).await?
            }
        })
    }

    async fn add_tenant_key(&mut self, tenant: &TenantId, key: &WrappedKey) -> StoreResult<u64> {
        const SQL: &str = "INSERT INTO tenant_keys (tenant, generation, wrapped) VALUES ($1, $2, $3)
                           ON CONFLICT (tenant, generation) DO NOTHING";
        let args = [Arg::Text(tenant.as_str()), Arg::Int(i64::from(key.generation)), Arg::Blob(&key.wrapped)];
        self.execute(SQL, &args).await
    }

    /// A value that was written, destroyed or moved meanwhile is passed over: it is not what was read.
    async fn rewrap(&mut self, tenant: &TenantId, keys: &[(WrappedDataKey, WrappedKey)]) -> StoreResult<u64> {
        const SQL: &str = "UPDATE versions SET key_generation = $4, wrapped_key = $5
                           WHERE tenant = $1 AND path = $2 AND version = $3
                             AND key_generation = $6 AND wrapped_key = $7
                             AND EXISTS (SELECT 1 FROM tenant_keys WHERE tenant = $1 AND generation = $4)";
        let mut changed = 0;
        for (old, new) in keys {
            let args = [
                Arg::Text(tenant.as_str()),
                Arg::Text(old.path.as_str()),
                Arg::Int(old.version.get()),
                Arg::Int(i64::from(new.generation)),
                Arg::Blob(&new.wrapped),
                Arg::Int(i64::from(old.key.generation)),
                Arg::Blob(&old.key.wrapped),
            ];
            changed += self.execute(SQL, &args).await?;
        }
        Ok(changed)
    }

    async fn drop_unused(&mut self, tenant: &TenantId) -> StoreResult<u64> {
        if let Some(hold) = B::HOLD_VALUES {
            self.execute(hold, &[]).await?;
        }
        self.execute(DROP_UNUSED, &[Arg::Text(tenant.as_str())]).await
    }

    async fn move_root(&mut self, from: &[u8], to: &[u8]) -> StoreResult<()> {
        const SQL: &str = "UPDATE root_key SET fingerprint = $2 WHERE id = 1 AND fingerprint = $1";
        let moved = self.execute(SQL, &[Arg::Blob(from), Arg::Blob(to)]).await?;
        if moved == 1 { Ok(()) } else { Err(StoreError::OtherRoot) }
    }

    async fn hold_root(&mut self, root: &[u8]) -> StoreResult<()> {
        if self.kept_fingerprint(B::HOLD_ROOT).await? == root { Ok(()) } else { Err(StoreError::OtherRoot) }
    }

    async fn kept_fingerprint(&mut self, sql: &'static str) -> StoreResult<Vec<u8>> {
        let kept = self.fetch_first(sql, &[], |row| Ok(row.blob(0)?.to_vec())).await?;
        kept.ok_or(StoreError::Damaged("fingerprint"))
    }

    async fn stock(&mut self) -> StoreResult<KeyStock> {
        const TENANTS: &str = "SELECT tenant, generation, wrapped FROM tenant_keys";
        const OWN: &str = "SELECT name, wrapped FROM vault_keys";
        let tenant_key = |row: &dyn Columns| Ok((tenant_of(row.text(0)?)?, wrapped_key(row, 1)?));
        let own_key = |row: &dyn Columns| Ok((row.text(0)?.to_owned(), row.blob(1)?.to_vec()));
        Ok(KeyStock { tenants: self.fetch(TENANTS, &[], tenant_key).await?, own: self.fetch(OWN, &[], own_key).await? })
    }

    async fn replace_stock(&mut self, stock: KeyStock) -> StoreResult<u64> {
        const TENANT: &str = "UPDATE tenant_keys SET wrapped = $3 WHERE tenant = $1 AND generation = $2";
        const OWN: &str = "UPDATE vault_keys SET wrapped = $2 WHERE name = $1";
        let mut replaced = 0;
        for (tenant, key) in &stock.tenants {
            let args = [Arg::Text(tenant.as_str()), Arg::Int(i64::from(key.generation)), Arg::Blob(&key.wrapped)];
            replaced += self.execute(TENANT, &args).await?;
        }
        for (name, wrapped) in &stock.own {
            replaced += self.execute(OWN, &[Arg::Text(name), Arg::Blob(wrapped)]).await?;
        }
        Ok(replaced)
    }
}

fn data_key(row: &dyn Columns) -> StoreResult<WrappedDataKey> {
    Ok(WrappedDataKey {
        path: SecretPath::parse(row.text(0)?).map_err(|_| StoreError::Damaged("path"))?,
        version: Version::new(row.int(1)?).ok_or(StoreError::Damaged("version"))?,
        key: wrapped_key(row, 2)?,
    })
}

fn wrapped_key(row: &dyn Columns, first: usize) -> StoreResult<WrappedKey> {
    Ok(WrappedKey { generation: narrow(row.int(first)?)?, wrapped: row.blob(first + 1)?.to_vec() })
}

fn tenant_of(name: &str) -> StoreResult<TenantId> {
    TenantId::parse(name).ok_or(StoreError::Damaged("tenant"))
}

#[cfg(test)]
mod tests {
    use sqlx::{AssertSqlSafe, ConnectOptions, Row, sqlite::SqliteConnectOptions};

    use super::*;
    use crate::store::migrations;

    /// One asks while nobody can write; of millions of values, neither may read the values themselves.
    #[tokio::test]
    async fn what_is_under_a_key_is_found_by_an_index_alone() {
        let mut database = SqliteConnectOptions::new().in_memory(true).connect().await.unwrap();
        migrations::run_sqlite(&mut database).await.unwrap();
        let wanted = [(GENERATIONS, "(tenant>? AND tenant<?)"), (DROP_UNUSED, "(tenant=? AND key_generation=?)")];
        for (sql, terms) in wanted {
            let plan = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"))).fetch_all(&mut database).await;
            let steps: Vec<String> = plan.unwrap().iter().map(|step| step.get("detail")).collect();
            let step = format!("SEARCH versions USING COVERING INDEX versions_key {terms}");
            assert!(steps.contains(&step), "{steps:#?}");
        }
    }
}
