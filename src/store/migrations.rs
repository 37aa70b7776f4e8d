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
