//! The tables, script by script, in the order in which they were made.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::STANDARD};
use sqlx::{
    SqlSafeStr, SqliteConnection,
    migrate::{Migration, MigrationType, Migrator},
};

use super::{StoreError, StoreResult};

/// Scripts of SQLite that databases have run before they were mended. What they leave is the same, so they go by the checksum
/// of what they were (SHA-384, in base64).
const MENDED: [(i64, &str); 2] = [
    (4, "S35Ta7A3Jr0AxYM/qjgqTuxwWAsjIgd5nKMG3ORIaEnV2TT8MoAT3vxQzDtMP9xa"),
    (5, "zajuYY2laAVc7o8N9ytGr+7jGjc3CpjH129k6lq3RSbEYPrDYyXxJdY5nLIWnQq1"),
];

macro_rules! script {
    ($name:literal, $file:literal) => {
        ($name, include_str!(concat!("migrations/", $file, ".sql")))
    };
}

/// What brings an SQLite database to this program's version.
pub fn sqlite() -> Migrator {
    let mut migrator = migrator([
        script!("vault", "sqlite/0001_vault"),
        script!("vault keys", "sqlite/0002_vault_keys"),
        script!("audit chains", "sqlite/0003_audit_chains"),
        script!("audit rows", "sqlite/0004_audit_rows"),
        script!("version rows", "sqlite/0005_version_rows"),
        script!("version keys", "sqlite/0006_version_keys"),
    ]);
    for migration in migrator.migrations.to_mut() {
        if let Some((_, before)) = MENDED.iter().find(|(number, _)| *number == migration.version)
            && let Ok(before) = STANDARD.decode(before)
        {
            migration.checksum = Cow::Owned(before);
        }
    }
    migrator
}

/// Brings an SQLite database to this program's version.
///
/// # Errors
///
/// Where a table's declaration is damaged, or a script fails.
pub async fn run_sqlite(connection: &mut SqliteConnection) -> StoreResult<()> {
    // All are ASCII. On one that is no text the driver's thread would panic, and its caller might wait for ever.
    const NO_TEXT: &str = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE sql GLOB '*[^' || char(10) || ' -~]*')";
    if sqlx::query_scalar(NO_TEXT).fetch_one(&mut *connection).await? {
        return Err(StoreError::Unfit("the database is damaged: a table's declaration is no text".to_owned()));
    }
    Ok(sqlite().run_direct(None, connection, false).await?)
}

/// What brings a PostgreSQL database to this program's version.
pub fn postgres() -> Migrator {
    migrator([
        script!("vault", "postgres/0001_vault"),
        script!("vault keys", "postgres/0002_vault_keys"),
        script!("audit chains", "postgres/0003_audit_chains"),
        script!("audit rows", "postgres/0004_audit_rows"),
    ])
}

fn migrator<const N: usize>(scripts: [(&'static str, &'static str); N]) -> Migrator {
    let migration = |(number, (name, script)): (i64, (&'static str, &'static str))| {
        Migration::new(number, name.into(), MigrationType::Simple, script.into_sql_str(), false)
    };
    Migrator::with_migrations((1..).zip(scripts).map(migration).collect())
}

#[cfg(test)]
mod tests {
    use sqlx::{AssertSqlSafe, ConnectOptions, sqlite::SqliteConnectOptions};

    use super::*;

    /// A database as it was after so many scripts.
    async fn after(scripts: usize) -> SqliteConnection {
        let mut database = SqliteConnectOptions::new().in_memory(true).connect().await.unwrap();
        let before = Migrator::with_migrations(sqlite().iter().take(scripts).cloned().collect());
        before.run_direct(None, &mut database, false).await.unwrap();
        database
    }

    async fn execute(database: &mut SqliteConnection, sql: String) {
        sqlx::query(AssertSqlSafe(sql)).execute(database).await.unwrap();
    }

    /// Brings a database up to date, and answers what it asks for before and after.
    async fn around(mut database: SqliteConnection, sql: &'static str) -> [String; 2] {
        let before = sqlx::query_scalar(sql).fetch_one(&mut database).await.unwrap();
        run_sqlite(&mut database).await.unwrap();
        [before, sqlx::query_scalar(sql).fetch_one(&mut database).await.unwrap()]
    }

    #[tokio::test]
    async fn rows_of_the_audit_log_stay_as_they_were() {
        let mut database = after(3).await;
        for n in [2, 1, 3] {
            let sql = format!(
                "INSERT INTO audit_log VALUES (1, {n}, 10 - {n}, 'tenant {n}', 'id {n}', 'type {n}', 'action {n}', 'ip {n}',
                                               'request {n}', 20 + {n}, x'0{n}', x'a{n}')"
            );
            execute(&mut database, sql).await;
        }
        let [before, after] = around(
            database,
            "SELECT json_group_array(json_array(chain, number, at, tenant, identity_id, identity_type, action,
                                                source_ip, request_id, events, hex(body), hex(link))) FROM audit_log",
        )
        .await;
        assert_eq!(after, before);
        assert!(before.contains(r#"[1,3,7,"tenant 3","id 3","type 3","action 3","ip 3","request 3",23,"03","A3"]"#));
    }

    #[tokio::test]
    async fn versions_stay_as_they_were() {
        let mut database = after(4).await;
        for n in [2, 1, 3] {
            let sql = format!(
                "INSERT INTO versions VALUES ('tenant', 'path', {n}, 'type {n}', 10 + {n}, 'by {n}', 20 + {n}, 30 + {n},
                                              40 + {n}, x'0{n}', x'a{n}')"
            );
            execute(&mut database, sql).await;
        }
        execute(
            &mut database,
            "INSERT INTO versions VALUES ('other', 'path', 1, 'type', 1, 'by', NULL, 2, NULL, NULL, NULL)".to_owned(),
        )
        .await;
        let [before, after] = around(
            database,
            "SELECT json_group_array(json_array(tenant, path, version, secret_type, created_at, created_by, expires_at,
                                                destroyed_at, key_generation, hex(wrapped_key), hex(ciphertext))
                                     ORDER BY tenant, path, version) FROM versions",
        )
        .await;
        assert_eq!(after, before);
        assert!(before.contains(r#"["tenant","path",3,"type 3",13,"by 3",23,33,43,"03","A3"]"#), "{before}");
        assert!(before.contains(r#"["other","path",1,"type",1,"by",null,2,null,"",""]"#), "{before}");
    }
}
