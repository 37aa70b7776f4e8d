//! The tables, script by script, in the order in which they were made.

use sqlx::{
    SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
};

macro_rules! script {
    ($file:literal) => {
        include_str!(concat!("migrations/", $file, ".sql"))
    };
}

/// What brings an SQLite database to this program's version.
pub fn sqlite() -> Migrator {
    migrator([
        ("vault", script!("sqlite/0001_vault")),
        ("vault keys", script!("sqlite/0002_vault_keys")),
        ("audit chains", script!("sqlite/0003_audit_chains")),
        ("audit rows", script!("sqlite/0004_audit_rows")),
    ])
}

/// What brings a PostgreSQL database to this program's version.
pub fn postgres() -> Migrator {
    migrator([
        ("vault", script!("postgres/0001_vault")),
        ("vault keys", script!("postgres/0002_vault_keys")),
        ("audit chains", script!("postgres/0003_audit_chains")),
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

    #[tokio::test]
    async fn rows_of_the_audit_log_stay_as_they_were() {
        let mut database = SqliteConnectOptions::new().in_memory(true).connect().await.unwrap();
        let before = Migrator::with_migrations(sqlite().iter().take(3).cloned().collect());
        before.run_direct(None, &mut database, false).await.unwrap();
        for number in [2, 1, 3] {
            let sql = format!(
                "INSERT INTO audit_log VALUES
                 (1, {number}, 10 - {number}, NULL, NULL, NULL, 'read', NULL, 'req_{number}', 1, x'0{number}', x'ff')"
            );
            sqlx::query(AssertSqlSafe(sql)).execute(&mut database).await.unwrap();
        }
        sqlite().run_direct(None, &mut database, false).await.unwrap();
        let sql = "SELECT number, at, request_id, body FROM audit_log ORDER BY rowid";
        let rows = sqlx::query_as::<_, (i64, i64, String, Vec<u8>)>(sql).fetch_all(&mut database).await.unwrap();
        let expected = [1, 2, 3].map(|n: u8| (n.into(), i64::from(10 - n), format!("req_{n}"), vec![n]));
        assert_eq!(rows, expected);
    }
}
