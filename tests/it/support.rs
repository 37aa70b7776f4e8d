//! A server for one test: its own directory, its own port, its own policies. Gone when the test ends.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use portcullis::{
    audit::{AuditKeys, Evidence, Report, Verifier},
    auth::TokenRequest,
    config::Config,
    crypto::{Keyring, RootKey},
    domain::{AuditPlace, Clock, Scope, StoredAuditRow, TenantId},
    server::{Server, StartError, SystemClock, SystemEntropy, kept_audit_keys, open_to_read, token_issuer},
};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Rules under which `user:root` may do everything.
pub const ROOT_MAY_ALL: &str = r#"
[[policy]]
name = "root"
bindings = ["user:root"]
[[policy.rules]]
path_pattern = "**"
permissions = ["read", "write", "delete", "list"]
"#;

/// Beside `user:root`: `sa:reader` reads and lists `open/**`.
pub const READER: &str = r#"
[[policy]]
name = "reader"
bindings = ["sa:reader"]
[[policy.rules]]
path_pattern = "open/**"
permissions = ["read", "list"]
"#;

/// Everything that a token can allow, but `admin`.
pub const ALL_SCOPES: [Scope; 8] = [
    Scope::SecretsRead,
    Scope::SecretsWrite,
    Scope::SecretsDelete,
    Scope::SecretsList,
    Scope::PoliciesRead,
    Scope::PoliciesWrite,
    Scope::AuditRead,
    Scope::AuditExport,
];

/// How a test's server is made.
pub struct Options {
    /// The rules module's settings; the sample ones where none.
    pub rules: Option<String>,
    /// A policy directory of the test's own, instead of the rules module.
    pub policies: Option<PathBuf>,
    /// Lines of configuration, appended to the test's own.
    pub config: String,
    /// A PostgreSQL database instead of SQLite.
    pub database_url: Option<String>,
    /// Another program than the real one to compile policies.
    pub compiler: Option<PathBuf>,
    /// A root key and data directory to share with another server.
    pub data_dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rules: Some(ROOT_MAY_ALL.to_owned()),
            policies: None,
            config: String::new(),
            database_url: None,
            compiler: None,
            data_dir: None,
        }
    }
}

/// A running server.
pub struct TestServer {
    pub url: String,
    pub data_dir: PathBuf,
    pub http: reqwest::Client,
    config: Config,
    compiler: PathBuf,
    directory: TempDir,
    shutdown: CancellationToken,
    task: Option<JoinHandle<Result<(), StartError>>>,
}

impl TestServer {
    /// A server with the given rules, on SQLite, without rate limits.
    pub async fn with_rules(rules: &str) -> Self {
        Self::start(Options { rules: Some(rules.to_owned()), ..Options::default() }).await
    }

    /// A server where `user:root` may do everything.
    pub async fn new() -> Self {
        Self::start(Options::default()).await
    }

    pub async fn start(options: Options) -> Self {
        Self::try_start(options).await.unwrap()
    }

    pub async fn try_start(options: Options) -> Result<Self, StartError> {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = options.data_dir.clone().unwrap_or_else(|| directory.path().join("data"));
        let policies = options.policies.clone().unwrap_or_else(|| directory.path().join("policies"));
        if options.policies.is_none() {
            rules_directory(&policies, options.rules.as_deref());
        }
        let config = configuration(directory.path(), &data_dir, &policies, &options);
        let mut server = Self {
            url: String::new(),
            data_dir,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            config,
            compiler: options.compiler.unwrap_or_else(|| env!("CARGO_BIN_EXE_portcullis").into()),
            directory,
            shutdown: CancellationToken::new(),
            task: None,
        };
        server.boot().await?;
        Ok(server)
    }

    /// Whether the next start takes a database that is older than its checkpoints say.
    pub fn accept_rollback(&mut self, accept: bool) {
        self.config.audit.accept_rollback = accept;
    }

    async fn boot(&mut self) -> Result<(), StartError> {
        let server = Server::open(self.config.clone(), self.root_key(), self.compiler.clone()).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.url = format!("http://{}", listener.local_addr().unwrap());
        self.shutdown = CancellationToken::new();
        self.task = Some(tokio::spawn(server.run(listener, self.shutdown.clone())));
        Ok(())
    }

    /// Stops as a signal would, and waits until the store is let go of.
    pub async fn stop(&mut self) {
        self.shutdown.cancel();
        if let Some(task) = self.task.take() {
            task.await.unwrap().unwrap();
        }
    }

    /// Stops and starts anew on the same data.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.boot().await.unwrap();
    }

    /// The rows of the audit log and the keys to verify them with, read past the server.
    pub async fn log(&self) -> Log {
        self.log_after(AuditPlace { chain: 0, number: 0 }).await
    }

    /// The same, from behind a place on.
    pub async fn log_after(&self, after: AuditPlace) -> Log {
        let store = open_to_read(&self.config).await.unwrap();
        let keyring = Keyring::new(self.root_key(), Arc::new(SystemEntropy));
        let keys = Arc::new(kept_audit_keys(&*store, &keyring).await.unwrap());
        let (rows, tombstones) = loop {
            let tombstones = store.tombstones().await.unwrap();
            let rows = store.audit_chain(after, 1_000_000).await.unwrap();
            if store.tombstones().await.unwrap() == tombstones {
                break (rows, tombstones);
            }
        };
        let log = Log { keys, rows: rows.into_iter().map(Result::unwrap).collect(), tombstones };
        store.close().await;
        log
    }

    /// Runs the program on this server's configuration. Answers its exit code and what it printed.
    pub async fn program(&self, arguments: &[&str]) -> (i32, String) {
        let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_portcullis"));
        program.args(arguments).arg("--config").arg(self.directory.path().join("portcullis.toml"));
        let output = program.output().await.unwrap();
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        (output.status.code().unwrap(), text)
    }

    /// Starts anew after a stop, if it can.
    pub async fn try_restart(&mut self) -> Result<(), StartError> {
        self.boot().await
    }

    /// The root key that the server runs on.
    pub fn root_key(&self) -> RootKey {
        fs::create_dir_all(&self.data_dir).unwrap();
        RootKey::load_or_create(&self.data_dir.join("root.key"), &SystemEntropy).unwrap().0
    }

    /// A directory that lives as long as the server.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// A token with all scopes for a subject of the default tenant.
    pub fn token(&self, subject: &str) -> String {
        self.token_with(subject, "default", &ALL_SCOPES, &[])
    }

    /// A token of the server's own issuer.
    pub fn token_with(&self, subject: &str, tenant: &str, scopes: &[Scope], groups: &[&str]) -> String {
        static SERIAL: AtomicUsize = AtomicUsize::new(0);
        let issuer = token_issuer(&self.config, &self.root_key()).unwrap();
        let request = TokenRequest {
            subject: subject.to_owned(),
            tenant: TenantId::parse(tenant).unwrap(),
            scopes: scopes.iter().copied().collect(),
            groups: groups.iter().map(|&group| group.to_owned()).collect(),
            mfa: false,
            lifetime: Duration::from_hours(1),
        };
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed).to_string();
        issuer.issue(&request, SystemClock.now(), &serial).unwrap()
    }

    /// A client that presents a token for this subject.
    pub fn client(&self, subject: &str) -> Client {
        self.client_with_token(self.token(subject))
    }

    /// `user:root` with all scopes.
    pub fn root(&self) -> Client {
        self.client("user:root")
    }

    /// The administrator of the default tenant.
    pub fn auditor(&self) -> Client {
        self.client_with_token(self.token_with("user:auditor", "default", &[Scope::Admin], &[]))
    }

    pub fn client_with_token(&self, token: String) -> Client {
        Client { http: self.http.clone(), url: self.url.clone(), token }
    }

    /// The audit log of what was asked of the server, as the administrator of the default tenant sees it, newest first.
    pub async fn audit(&self, query: &str) -> Vec<Value> {
        let mut entries = self.whole_audit(query).await;
        let by_itself = |entry: &Value| entry["action"] == "reload_policies";
        let by_this = |entry: &Value| entry["action"] == "query_audit_log" && entry["identity_id"] == "user:auditor";
        entries.retain(|entry| !by_itself(entry) && !by_this(entry));
        entries
    }

    /// The whole audit log, with what the server did by itself.
    pub async fn whole_audit(&self, query: &str) -> Vec<Value> {
        self.auditor().audit(query).await
    }
}

/// An audit log, read past the server.
pub struct Log {
    pub keys: Arc<AuditKeys>,
    pub rows: Vec<StoredAuditRow>,
    pub tombstones: Vec<String>,
}

impl Log {
    /// What a verifier makes of it that was shown these notes.
    pub fn verify(&self, notes: &[&str]) -> Report {
        let shown: Vec<_> =
            notes.iter().map(|note| Evidence { note: (*note).to_owned(), origin: "a note".to_owned() }).collect();
        let mut verifier = Verifier::new(Arc::clone(&self.keys), &self.tombstones, &shown);
        self.rows.iter().for_each(|row| verifier.row(row));
        verifier.finish()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// Writes a policy directory with the shipped rules module and these settings.
pub fn rules_directory(directory: &Path, rules: Option<&str>) {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    fs::create_dir_all(directory).unwrap();
    fs::copy(shipped.join("rules.wasm"), directory.join("rules.wasm")).unwrap();
    match rules {
        Some(rules) => fs::write(directory.join("rules.toml"), rules).unwrap(),
        None => drop(fs::copy(shipped.join("rules.toml"), directory.join("rules.toml")).unwrap()),
    }
    let manifest =
        "[[policy]]\nname = \"rules\"\nmodule = \"rules.wasm\"\nsettings = \"rules.toml\"\ndeadline = \"2s\"\n";
    fs::write(directory.join("policies.toml"), manifest).unwrap();
}

fn configuration(directory: &Path, data_dir: &Path, policies: &Path, options: &Options) -> Config {
    let database = options.database_url.as_ref().map_or_else(String::new, |url| format!("database_url = {url:?}\n"));
    let categories = [
        "read",
        "write",
        "delete",
        "list",
        "batch_read",
        "batch_metadata",
        "audit_query",
        "audit_export",
        "policy_test",
        "keys",
        "auth",
    ];
    let unlimited = if options.config.contains("[rate_limits]") {
        String::new()
    } else {
        let zeros = categories.map(|category| format!("{category} = 0\n")).concat();
        format!("[rate_limits]\n{zeros}policy_ops = 0\n")
    };
    let text =
        format!("policies = {policies:?}\n[store]\ndata_dir = {data_dir:?}\n{database}{unlimited}{}", options.config);
    let file = directory.join("portcullis.toml");
    fs::write(&file, text).unwrap();
    Config::load(Some(&file), []).unwrap()
}

/// The sum of a counter over all its labels.
pub async fn metric(server: &TestServer, name: &str) -> u64 {
    let text = server.http.get(format!("{}/v1/metrics", server.url)).send().await.unwrap().text().await.unwrap();
    let counters = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    counters.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Somebody with a token.
#[derive(Clone)]
pub struct Client {
    pub http: reqwest::Client,
    pub url: String,
    pub token: String,
}

impl Client {
    pub fn request(&self, method: Method, target: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{target}", self.url)).bearer_auth(&self.token)
    }

    async fn send(&self, method: Method, target: &str, body: Option<Value>) -> Answer {
        let request = self.request(method, target);
        let request = match body {
            Some(body) => request.header("content-type", "application/json").body(body.to_string()),
            None => request,
        };
        Answer(request.send().await.unwrap())
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.send(Method::GET, target, None).await
    }

    pub async fn put(&self, target: &str, body: Value) -> Answer {
        self.send(Method::PUT, target, Some(body)).await
    }

    pub async fn post(&self, target: &str, body: Value) -> Answer {
        self.send(Method::POST, target, Some(body)).await
    }

    pub async fn patch(&self, target: &str, body: Value) -> Answer {
        self.send(Method::PATCH, target, Some(body)).await
    }

    pub async fn delete(&self, target: &str) -> Answer {
        self.send(Method::DELETE, target, None).await
    }

    /// Writes a secret and expects success; answers its version.
    pub async fn store(&self, path: &str, data: Value) -> i64 {
        let (status, body) = self.put(&format!("/v1/secrets/{path}"), json!({ "data": data })).await.json().await;
        assert!(status == 200 || status == 201, "{status} {body}");
        body["version"].as_i64().unwrap()
    }

    /// The audit log as this client sees it, newest first.
    pub async fn audit(&self, query: &str) -> Vec<Value> {
        let mut entries = Vec::new();
        let mut cursor = String::new();
        loop {
            let (status, page) = self.get(&format!("/v1/audit/logs?limit=1000{query}{cursor}")).await.json().await;
            assert_eq!(status, 200, "{page}");
            entries.extend(page["logs"].as_array().unwrap().clone());
            match page["cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return entries,
            }
        }
    }

    /// Reads a batch and expects 200.
    pub async fn batch(&self, paths: &[&str]) -> Value {
        let (status, body) = self.post("/v1/secrets/batch", json!({ "paths": paths })).await.json().await;
        assert_eq!(status, 200, "{body}");
        body
    }
}

/// An answer.
pub struct Answer(pub Response);

impl Answer {
    pub fn status(&self) -> u16 {
        self.0.status().as_u16()
    }

    pub fn header(&self, name: &str) -> Option<String> {
        self.0.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
    }

    /// Status and body; a body that is no JSON is a string.
    pub async fn json(self) -> (u16, Value) {
        let status = self.status();
        let text = self.0.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Expects an error with this status and code; answers its message.
    pub async fn expect_error(self, status: u16, code: &str) -> String {
        let request_id = self.header("x-request-id").unwrap();
        let (got, body) = self.json().await;
        assert_eq!((got, body["error"]["code"].as_str()), (status, Some(code)), "{body}");
        assert_eq!(body["error"]["request_id"].as_str(), Some(request_id.as_str()));
        body["error"]["message"].as_str().unwrap().to_owned()
    }
}

/// The names of an object's fields.
pub fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}
