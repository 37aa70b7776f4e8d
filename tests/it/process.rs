//! The program itself as a process that can be killed and started again on the same data.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use reqwest::Method;
use sqlx::{AssertSqlSafe, ConnectOptions, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::{
    postgres::{at_exit, free_port},
    support::{Client, Options, TestServer},
};

/// A connection to the database that is not the server's.
pub async fn raw(data_dir: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(data_dir.join("portcullis.db")).connect().await.unwrap()
}

pub async fn execute(connection: &mut SqliteConnection, sql: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(connection).await.unwrap();
}

/// A running program. Killed when it is dropped, or when this process is.
pub struct Running {
    child: Child,
    guard: Child,
}

impl Running {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&self) {
        // It keeps its number until it is waited for: whoever kills it by that kills nobody else.
        let stat = format!("/proc/{}/stat", self.child.id());
        while !fs::read_to_string(&stat).unwrap().contains(") Z ") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Kills it now, and waits until it is gone.
    pub fn kill(mut self) {
        // What has ended by itself cannot be killed any more.
        self.child.kill().ok();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        self.guard.wait().unwrap();
        self.child.wait().unwrap();
    }
}

/// The program in a directory that outlives it.
pub struct Process {
    pub server: TestServer,
    port: u16,
}

impl Process {
    /// Makes the root key, the policies and the configuration, and starts nothing.
    pub async fn new() -> Self {
        let mut server = TestServer::new().await;
        server.stop().await;
        Self { server, port: free_port() }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.server.data_dir.clone()
    }

    /// A directory that lives as long as this.
    pub fn scratch(&self) -> &Path {
        self.server.scratch()
    }

    /// Starts it, and waits until it answers.
    pub async fn start(&self) -> Running {
        let running = self.spawn(&[]);
        self.answers().await;
        running
    }

    /// Starts it, and waits until it listens: it may be sealed, or hold another key than tokens were signed with.
    pub async fn start_with_another_key(&self) -> Running {
        let running = self.spawn(&[]);
        self.listens().await;
        running
    }

    /// Starts it with these variables in its environment.
    pub fn spawn(&self, environment: &[(&str, String)]) -> Running {
        let config = self.scratch().join("portcullis.toml");
        let address = format!("127.0.0.1:{}", self.port);
        // A file that may not grow is an error like another, not the end of the process.
        let child = Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_portcullis"), "serve", "--config"])
            .arg(config)
            .args(["--listen", &address])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.log()).unwrap())
            .spawn()
            .unwrap();
        Running { guard: at_exit(r#"kill -9 "$1""#, child.id().to_string()), child }
    }

    /// Waits until somebody with a token is answered.
    pub async fn answers(&self) {
        self.answers_to("/v1/auth/whoami", |status| status == 200).await;
    }

    /// Waits until anybody is answered, if only that the server is sealed.
    pub async fn listens(&self) {
        self.answers_to("/v1/health/ready", |_| true).await;
    }

    async fn answers_to(&self, target: &str, wanted: impl Fn(u16) -> bool) {
        let client = self.client("user:root");
        let started = Instant::now();
        loop {
            match client.request(Method::GET, target).send().await {
                Ok(answer) if wanted(answer.status().as_u16()) => return,
                _ if started.elapsed() < Duration::from_secs(20) => (),
                _ => panic!("the server does not start: {}", fs::read_to_string(self.log()).unwrap()),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Where the one that was started last logs.
    fn log(&self) -> PathBuf {
        self.scratch().join("log")
    }

    pub fn client(&self, subject: &str) -> Client {
        self.here(self.server.client(subject))
    }

    /// The administrator of the default tenant.
    pub fn auditor(&self) -> Client {
        self.here(self.server.auditor())
    }

    fn here(&self, client: Client) -> Client {
        Client { url: format!("http://127.0.0.1:{}", self.port), ..client }
    }

    /// The same vault, in this process.
    pub async fn in_process(&self) -> TestServer {
        TestServer::start(Options { data_dir: Some(self.data_dir()), ..Options::default() }).await
    }
}
