//! Copies of the vault's SQLite file: out of the vault while others use it, and back into a place where nobody does.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use sqlx::{
    ConnectOptions, Connection, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};
use tokio::task::spawn_blocking;

use super::{
    StoreError, StoreResult,
    direct::{self, CHAIN, Sqlite},
    key_tables::ROOT,
    migrations,
    readers::Source,
    sqlite::{DATABASE, SqliteStore, lock, make_directory, options, private_file, refuse_damaged_log},
    tables::{Tables, count},
};
use crate::domain::ChainHead;

/// What SQLite keeps beside a database.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// What a vault holds, as far as it can be told without a key.
pub struct Holdings {
    /// How many secrets, the deleted ones among them.
    pub secrets: u64,
    /// The last row of the audit log.
    pub head: ChainHead,
    /// The body of the last checkpoint in it.
    pub checkpoint: Option<Vec<u8>>,
    /// The fingerprint of the root key; none in a vault that was never started.
    pub root: Option<Vec<u8>>,
}

impl SqliteStore {
    /// Copies the database as it is at one instant into a new file (mode 0600), whether or not a server is using it. The
    /// file is whole and on the disk once it has its name.
    ///
    /// # Errors
    ///
    /// Where there is no database, its log is damaged, or the file is there already or cannot be written.
    pub async fn back_up(directory: &Path, target: &Path) -> StoreResult<()> {
        let target = std::path::absolute(target).map_err(|error| unfit("cannot write", target, &error))?;
        let partial = target.with_added_extension("partial");
        for path in [&target, &partial] {
            if path.exists() {
                return Err(unfit("will not write over", path, &"it is there already"));
            }
        }
        refuse_damaged_log(directory)?;
        let new = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&partial);
        let file = new.map_err(|error| unfit("cannot make", &partial, &error))?;
        let copied = match vacuum(directory, &partial).await {
            // A link, unlike a new name, takes no other file's place.
            Ok(()) => file.sync_all().and_then(|()| fs::hard_link(&partial, &target)),
            Err(error) => {
                fs::remove_file(&partial).ok();
                return Err(error);
            }
        };
        let removed = fs::remove_file(&partial);
        copied
            .and(removed)
            .and_then(|()| sync_directory_of(&target))
            .map_err(|error| unfit("cannot write", &target, &error))
    }

    /// Opens a backup to read. It is left as it is.
    ///
    /// # Errors
    ///
    /// Where it is no database.
    pub async fn open_backup(file: &Path) -> StoreResult<Self> {
        Self::reading(Source::Immutable(file.to_owned())).await
    }

    /// What it holds.
    ///
    /// # Errors
    ///
    /// Where it cannot be read.
    pub async fn holdings(&self) -> StoreResult<Holdings> {
        self.read(|tables| Box::pin(holdings(tables))).await
    }
}

async fn holdings(mut tables: Tables<'_, Sqlite>) -> StoreResult<Holdings> {
    const SECRETS: &str = "SELECT COUNT(*) FROM secrets";
    const CHECKPOINT: &str =
        "SELECT body FROM audit_log WHERE action = 'checkpoint' ORDER BY chain DESC, number DESC LIMIT 1";
    let secrets = tables.fetch_first(SECRETS, &[], |row| count(row.int(0)?)).await?;
    Ok(Holdings {
        secrets: secrets.ok_or(StoreError::Damaged("count"))?,
        head: tables.chain_head(CHAIN).await?,
        checkpoint: tables.fetch_first(CHECKPOINT, &[], |row| Ok(row.blob(0)?.to_vec())).await?,
        root: tables.fetch_first(ROOT, &[], |row| Ok(row.blob(0)?.to_vec())).await?,
    })
}

async fn vacuum(directory: &Path, target: &Path) -> StoreResult<()> {
    let name = target.to_str().ok_or_else(|| unfit("cannot write", target, &"its name is no text"))?.to_owned();
    let database = directory.join(DATABASE);
    let vacuum = move || -> StoreResult<()> {
        direct::open(&database)?.execute("VACUUM INTO ?", [name])?;
        Ok(())
    };
    spawn_blocking(vacuum).await.map_err(|error| unfit("cannot write", target, &error))?
}

/// A backup on its way into a data directory that no server uses. Dropped unfinished, it leaves everything as it was.
pub struct Restoring {
    directory: PathBuf,
    copy: PathBuf,
    _lock: File,
}

impl Restoring {
    /// Copies the backup beside the place where it is to stand: what is checked is what will be there.
    ///
    /// # Errors
    ///
    /// Where a server uses the directory, where a database is there and is not to be replaced, or where the file is no
    /// backup or cannot be copied.
    pub fn begin(directory: &Path, from: &Path, replace: bool) -> StoreResult<Self> {
        make_directory(directory)?;
        let lock = lock(directory)?;
        let database = directory.join(DATABASE);
        if !replace && let Some(there) = family(&database).find(|path| path.exists()) {
            return Err(unfit("there is a database already", &there, &"`--replace` puts it aside"));
        }
        if let Some(log) = family(from).skip(1).find(|path| fs::metadata(path).is_ok_and(|found| found.len() > 0)) {
            return Err(unfit(
                "this is a database in use, no backup",
                from,
                &format!("{} is part of it", log.display()),
            ));
        }
        let restoring =
            Self { directory: directory.to_owned(), copy: directory.join("portcullis.db.restoring"), _lock: lock };
        restoring.remove();
        let copied = File::open(from).and_then(|mut source| {
            let mut copy = private_file(&restoring.copy)?;
            io::copy(&mut source, &mut copy)
        });
        copied.map_err(|error| unfit("cannot copy", from, &error))?;
        Ok(restoring)
    }

    /// Opens the copy to read, after it was found to be a whole database of this vault's format (an older one is brought
    /// to it).
    ///
    /// # Errors
    ///
    /// Where it is not.
    pub async fn open(&self) -> StoreResult<SqliteStore> {
        let options = options(&self.copy).journal_mode(SqliteJournalMode::Delete);
        let mut connection = options.connect().await?;
        let checked = self.check(&mut connection).await;
        connection.close().await?;
        checked?;
        SqliteStore::reading(Source::InUse(self.copy.clone())).await
    }

    async fn check(&self, connection: &mut SqliteConnection) -> StoreResult<()> {
        let found = sqlx::query("PRAGMA integrity_check").fetch_all(&mut *connection).await?;
        let found = found.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
        if found != ["ok"] {
            return Err(unfit("the backup is damaged", &self.copy, &found.join("; ")));
        }
        migrations::run_sqlite(connection).await?;
        let mut fresh = SqliteConnectOptions::new().in_memory(true).connect().await?;
        migrations::run_sqlite(&mut fresh).await?;
        let (right, found) = (parts(&mut fresh).await?, parts(connection).await?);
        if right != found {
            return Err(unfit("this is no backup of a vault", &self.copy, &"it has other tables"));
        }
        Ok(())
    }

    /// Gives the copy its place, durably. Answers where the database went that was there.
    ///
    /// # Errors
    ///
    /// As the file system says. The database that was there still is then, here or under the other name.
    pub fn finish(self) -> StoreResult<Option<PathBuf>> {
        let database = self.directory.join(DATABASE);
        let placed = File::open(&self.copy).and_then(|copy| copy.sync_all()).and_then(|()| {
            let aside = put_aside(&database)?;
            fs::rename(&self.copy, &database)?;
            sync_directory_of(&database)?;
            Ok(aside)
        });
        placed.map_err(|error| unfit("cannot put the backup in its place", &database, &error))
    }

    fn remove(&self) {
        for path in family(&self.copy) {
            fs::remove_file(path).ok();
        }
    }
}

impl Drop for Restoring {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The tables, indexes and whatever else there is by name.
async fn parts(connection: &mut SqliteConnection) -> StoreResult<Vec<(String, String)>> {
    const SQL: &str =
        "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite!_%' ESCAPE '!' ORDER BY type, name";
    let rows = sqlx::query(SQL).fetch_all(connection).await?;
    Ok(rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, sqlx::Error>>()?)
}

/// Gives the database and its log another name. The database keeps its old one too until the new one takes it, so that no
/// server finds the place empty and makes a new vault there; its log does not, since it must never meet the new one.
fn put_aside(database: &Path) -> io::Result<Option<PathBuf>> {
    if !family(database).any(|path| path.exists()) {
        return Ok(None);
    }
    let free = |number: &u32| family(&database.with_added_extension(number.to_string())).all(|path| !path.exists());
    let number = (1..u32::MAX).find(free).unwrap_or_default();
    let aside = database.with_added_extension(number.to_string());
    if database.exists() {
        fs::hard_link(database, &aside)?;
    }
    for (from, to) in family(database).zip(family(&aside)).skip(1).filter(|(from, _)| from.exists()) {
        fs::rename(from, to)?;
    }
    sync_directory_of(database)?;
    Ok(Some(aside))
}

/// A database and what SQLite keeps beside it.
fn family(database: &Path) -> impl Iterator<Item = PathBuf> {
    let with = |suffix: &&str| {
        let mut name = database.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    [""].iter().chain(&COMPANIONS).map(with).collect::<Vec<_>>().into_iter()
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn unfit(what: &str, path: &Path, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unfit(format!("{what} {}: {error}", path.display()))
}
