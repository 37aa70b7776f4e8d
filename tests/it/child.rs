//! The program itself as a process of its own, with all that it logs.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use portcullis::{
    auth::TokenRequest,
    config::Config,
    crypto::RootKey,
    domain::{Clock, TenantId},
    server::{SystemClock, SystemEntropy, token_issuer},
};
use tempfile::TempDir;

use crate::support::{ALL_SCOPES, Client};

/// A running `portcullis serve`, killed when the test ends.
pub struct Process {
    pub url: String,
    pub data_dir: PathBuf,
    /// Where it would put what it does not keep.
    pub temporary: PathBuf,
    child: Child,
    log: Arc<Mutex<String>>,
    token: String,
    _directory: TempDir,
}

impl Process {
    /// Starts it with a policy directory and a log filter, which must let the line through that says where it listens.
    pub fn start(policies: &Path, filter: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("data");
        fs::create_dir_all(&data_dir).unwrap();
        let root = RootKey::load_or_create(&data_dir.join("root.key"), &SystemEntropy).unwrap().0;
        let file = directory.path().join("portcullis.toml");
        let limits = "[rate_limits]\nread = 0\nwrite = 0\ndelete = 0\nlist = 0\nbatch_read = 0\nbatch_metadata = 0\n\
                      audit_query = 0\npolicy_test = 0\nauth = 0\n";
        let text = format!(
            "listen = \"127.0.0.1:0\"\npolicies = {policies:?}\n[store]\ndata_dir = {data_dir:?}\n[log]\nformat = \
             \"json\"\n{limits}"
        );
        fs::write(&file, text).unwrap();
        let config = Config::load(Some(&file), []).unwrap();
        let request = TokenRequest {
            subject: "user:root".to_owned(),
            tenant: TenantId::default_tenant(),
            scopes: ALL_SCOPES.into_iter().collect(),
            groups: Vec::new(),
            mfa: false,
            lifetime: Duration::from_hours(1),
        };
        let token = token_issuer(&config, &root).unwrap().issue(&request, SystemClock.now(), "child").unwrap();
        let temporary = directory.path().join("tmp");
        fs::create_dir(&temporary).unwrap();
        // Whoever starts it leaves all doors open: what it makes must be private all the same.
        let mut child = Command::new("sh")
            .args(["-c", "umask 0; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_portcullis"), "serve", "--config"])
            .arg(&file)
            .env("PORTCULLIS__LOG__FILTER", filter)
            .env("TMPDIR", &temporary)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (announce, announced) = mpsc::channel();
        let (stderr, kept) = (child.stderr.take().unwrap(), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Some(address) = listening(&line) {
                    announce.send(address).ok();
                }
                let mut log = kept.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let address = announced.recv_timeout(Duration::from_mins(1)).expect("the server says where it listens");
        Self { url: format!("http://{address}"), data_dir, temporary, child, log, token, _directory: directory }
    }

    /// `user:root` with all scopes.
    pub fn root(&self) -> Client {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Client { http, url: self.url.clone(), token: self.token.clone() }
    }

    /// Everything that was logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The lines of the log that hold one of these texts, and how many lines there are.
    pub fn telling(&self, texts: &[&str]) -> (Vec<String>, usize) {
        let log = self.log.lock().unwrap();
        let holds = |line: &&str| texts.iter().any(|text| line.contains(text));
        (log.lines().filter(holds).map(str::to_owned).collect(), log.lines().count())
    }

    /// Sends a signal, by its name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Resident memory, in bytes.
    pub fn resident(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The address in the line that says where the server listens.
fn listening(line: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    (line["message"] == "listening").then(|| line["address"].as_str().unwrap().to_owned())
}
