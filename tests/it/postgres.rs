//! PostgreSQL for the tests: the server of `TEST_DATABASE_URL`, or one of the tests' own in a temporary directory.
//!
//! A guard process waits at the end of a pipe: when the test process ends, however it ends, it stops the server and
//! removes the directory. So nothing is left behind by `cargo test` (one process), by nextest (many), by a kill.

use std::{
    env,
    ffi::OsStr,
    fs,
    net::TcpListener,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};

const USER: &str = "portcullis";

/// A fresh database on the tests' server; none, with a line that says so, where there is no PostgreSQL.
pub async fn database() -> Option<String> {
    static SERVER: OnceLock<Option<(String, Option<Cluster>)>> = OnceLock::new();
    let server = SERVER.get_or_init(|| match env::var("TEST_DATABASE_URL") {
        Ok(url) => Some((url, None)),
        Err(_) => Cluster::start().map(|cluster| (cluster.url(), Some(cluster))),
    });
    let (url, _) = server.as_ref()?;
    Some(create_database(url).await)
}

/// Makes a database of its own for a test; its URL.
pub async fn create_database(url: &str) -> String {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let name = format!("portcullis_test_{}_{serial}", std::process::id());
    let mut admin = connect(url).await;
    sqlx::query(AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name}"))).execute(&mut admin).await.unwrap();
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut admin).await.unwrap();
    admin.close().await.unwrap();
    let (address, query) = url.split_once('?').map_or((url, String::new()), |(a, q)| (a, format!("?{q}")));
    let authority = address.find("://").map_or(0, |at| at + 3);
    let end = address[authority..].find('/').map_or(address.len(), |at| authority + at);
    format!("{}/{name}{query}", &address[..end])
}

pub async fn connect(url: &str) -> PgConnection {
    url.parse::<PgConnectOptions>().unwrap().connect().await.unwrap()
}

/// A server of the tests' own.
pub struct Cluster {
    directory: PathBuf,
    programs: PathBuf,
    port: u16,
    guard: Child,
}

impl Cluster {
    /// A new server, on a socket of its own and on a free port of 127.0.0.1.
    pub fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            println!("SKIPPED: no PostgreSQL: neither TEST_DATABASE_URL nor `initdb` is there");
            return None;
        };
        let directory = tempfile::Builder::new().prefix("portcullis-pg-").tempdir().unwrap().keep();
        if let Some((uid, gid)) = unprivileged() {
            std::os::unix::fs::chown(&directory, Some(uid), Some(gid)).unwrap();
        }
        let cluster = Self { guard: guard(&directory), port: free_port(), directory, programs };
        cluster.init();
        cluster.resume();
        Some(cluster)
    }

    /// The URL of its first database.
    pub fn url(&self) -> String {
        url_at(self.port)
    }

    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Stops it as a crash would.
    pub fn halt(&self) {
        self.control(&["stop", "-m", "immediate", "-w"]);
    }

    /// Kills it and all that it started, and waits until they are gone.
    pub fn kill(&self) {
        let postmaster = self.postmaster();
        let children = Command::new("pgrep").args(["-P", &postmaster]).output().unwrap().stdout;
        let children = String::from_utf8(children).unwrap();
        let all: Vec<&str> = std::iter::once(postmaster.as_str()).chain(children.lines()).collect();
        Command::new("kill").arg("-9").args(&all).stderr(Stdio::null()).status().unwrap();
        let lives =
            |pid: &&str| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        while all.iter().any(lives) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Starts it again.
    pub fn resume(&self) {
        let socket = self.directory.display();
        let options = format!("-p {} -k {socket} -c listen_addresses=127.0.0.1 -c shared_buffers=16MB", self.port);
        let log = self.directory.join("log");
        // After a kill, a process that was just being made holds the memory of those before for another moment.
        let start = ["start", "-w", "-l", log.to_str().unwrap(), "-o", &options];
        assert!((0..20).any(|_| self.run("pg_ctl", &start)), "PostgreSQL does not start");
    }

    /// Stops all its processes in their tracks, or lets them go on: a server that neither answers nor hangs up.
    pub fn freeze(&self, frozen: bool) {
        let postmaster = self.postmaster();
        let signal = if frozen { "-STOP" } else { "-CONT" };
        Command::new("pkill").args([signal, "-P", &postmaster]).status().unwrap();
        Command::new("kill").args([signal, &postmaster]).status().unwrap();
    }

    /// The id of its first process.
    fn postmaster(&self) -> String {
        let pid_file = fs::read_to_string(self.directory.join("data/postmaster.pid")).unwrap();
        pid_file.lines().next().unwrap().to_owned()
    }

    fn init(&self) {
        // A language's collation as the default shows where a statement forgets to ask for the order of bytes.
        let linguistic = ["--locale-provider=icu", "--icu-locale=en"];
        let base = ["--no-sync", "-A", "trust", "-U", USER, "-E", "UTF8", "--no-locale"];
        if !self.run("initdb", &[&base[..], &linguistic].concat()) {
            fs::remove_dir_all(self.directory.join("data")).ok();
            assert!(self.run("initdb", &base), "initdb failed");
        }
    }

    fn control(&self, arguments: &[&str]) {
        assert!(self.run("pg_ctl", arguments), "pg_ctl {arguments:?} failed");
    }

    fn run(&self, program: &str, arguments: &[&str]) -> bool {
        let mut command = Command::new("setpriv");
        if let Some((uid, gid)) = unprivileged() {
            command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
        } else {
            command = Command::new("env");
        }
        command.arg(self.programs.join(program)).arg("-D").arg(self.directory.join("data")).args(arguments);
        // What the server inherits must not keep the test runner waiting for the end of its output.
        let quiet = command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().unwrap().success()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        self.guard.wait().ok();
    }
}

/// The URL of a cluster's first database, for whoever gets there by this port.
pub fn url_at(port: u16) -> String {
    format!("postgres://{USER}@127.0.0.1:{port}/postgres")
}

fn guard(directory: &Path) -> Child {
    let stop = r#"pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
        [ -n "$pid" ] && kill -QUIT "$pid" && while kill -0 "$pid" 2>/dev/null; do sleep 0.02; done
        rm -rf "$1""#;
    at_exit(stop, directory)
}

/// Runs a script about something (its `$1`) when its input is closed: when this process is gone, or sooner.
pub fn at_exit(script: &str, about: impl AsRef<OsStr>) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("read _; {script}"), "guard"]).arg(about).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // A terminal's interrupt goes to the test process; the guard must outlive it.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().unwrap()
}

/// PostgreSQL refuses to run as root: who to be instead.
fn unprivileged() -> Option<(u32, u32)> {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let of = |name: &str| {
        let mut fields = users.lines().find(|line| line.starts_with(&format!("{name}:")))?.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    of("postgres").or_else(|| of("nobody"))
}

/// Where `initdb` is.
fn programs() -> Option<PathBuf> {
    let mut installed: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.flatten().map(|version| version.path().join("bin")).collect())
        .unwrap_or_default();
    installed.sort();
    let path = env::var_os("PATH").unwrap_or_default();
    let named = env::split_paths(&path).find(|place| place.join("initdb").exists() && place.join("pg_ctl").exists());
    installed.into_iter().rev().find(|place| place.join("initdb").exists()).or(named)
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
