//! The tables, script by script, in the order in which they were made.

use sqlx::{
    SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
};

macro_rules! scripts {
    ($folder:literal) => {
        [
            ("vault", include_str!(concat!("migrations/", $folder, "/0001_vault.sql"))),
            ("vault keys", include_str!(concat!("migrations/", $folder, "/0002_vault_keys.sql"))),
            ("audit chains", include_str!(concat!("migrations/", $folder, "/0003_audit_chains.sql"))),
            ("audit rows", include_str!(concat!("migrations/", $folder, "/0004_audit_rows.sql"))),
        ]
    };
}

/// What brings an SQLite database to this program's version.
pub fn sqlite() -> Migrator {
    migrator(scripts!("sqlite"))
}

/// What brings a PostgreSQL database to this program's version.
pub fn postgres() -> Migrator {
    migrator(scripts!("postgres"))
}

fn migrator<const N: usize>(scripts: [(&'static str, &'static str); N]) -> Migrator {
    let migration = |(number, (name, script)): (i64, (&'static str, &'static str))| {
        Migration::new(number, name.into(), MigrationType::Simple, script.into_sql_str(), false)
    };
    Migrator::with_migrations((1..).zip(scripts).map(migration).collect())
}

#[cfg(test)]
mod tests {
    use sqlx::{AssertSqlSafe, ConnectOptions, SqliteConnection, sqlite::SqliteConnectOptions};

    use super::*;

    #[tokio::test]
    async fn rows_of_the_audit_log_stay_as_they_were() {
        let mut database = SqliteConnectOptions::new().in_memory(true).connect().await.unwrap();
        let before = Migrator::with_migrations(sqlite().iter().take(3).cloned().collect());
        before.run_direct(None, &mut database, false).await.unwrap();
        for n in [2, 1, 3] {
            let sql = format!(
                "INSERT INTO audit_log VALUES (1, {n}, 10 - {n}, 'tenant {n}', 'id {n}', 'type {n}', 'action {n}', 'ip {n}',
                                               'request {n}', 20 + {n}, x'0{n}', x'a{n}')"
            );
            sqlx::query(AssertSqlSafe(sql)).execute(&mut database).await.unwrap();
        }
        let before = rows(&mut database).await;
        sqlite().run_direct(None, &mut database, false).await.unwrap();
        assert_eq!(rows(&mut database).await, before);
        assert!(before.contains(r#"[1,3,7,"tenant 3","id 3","type 3","action 3","ip 3","request 3",23,"03","A3"]"#));
    }

    async fn rows(database: &mut SqliteConnection) -> String {
        const SQL: &str =
            "SELECT json_group_array(json_array(chain, number, at, tenant, identity_id, identity_type, action,
                                  source_ip, request_id, events, hex(body), hex(link))) FROM audit_log";
        sqlx::query_scalar(SQL).fetch_one(database).await.unwrap()
    }
}
