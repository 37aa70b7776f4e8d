//! The configuration: the commented defaults in the program, then a file, then the environment. An unknown key is an
//! error with its name, wherever it stands.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::{Table, Value};
use tracing_subscriber::EnvFilter;

use crate::{
    auth::IssuerSettings,
    crypto::{PassphraseSource, RootKeySource},
    domain::Span,
    http::{Category, ServeLimits},
};

/// The commented default file.
pub const DEFAULT: &str = include_str!("config.default.toml");
/// What the environment variables of the configuration begin with.
const PREFIX: &str = "PORTCULLIS__";

/// What a server is told. Every key is described in [`DEFAULT`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the default file documents each key for people and programs alike")]
pub struct Config {
    pub listen: SocketAddr,
    pub policies: PathBuf,
    pub policy_loading: PolicyLoadingConfig,
    pub store: StoreConfig,
    pub root_key: RootKeyConfig,
    pub secrets: SecretsConfig,
    pub audit: AuditConfig,
    pub auth: AuthConfig,
    pub rate_limits: BTreeMap<String, u32>,
    pub tls: TlsConfig,
    pub server: ServerConfig,
    pub log: LogConfig,
}

/// How policies are loaded.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see DEFAULT")]
pub struct PolicyLoadingConfig {
    pub watch: bool,
    pub compile_time: Span,
    pub compile_memory_mib: u64,
}

/// Where secrets are kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see DEFAULT")]
pub struct StoreConfig {
    pub data_dir: PathBuf,
    pub database_url: Option<DatabaseUrl>,
    pub cache_mib: u32,
    pub max_connections: u32,
}

/// A database's URL. It may hold a password, so it tells nothing.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(pub String);

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DatabaseUrl(…)")
    }
}

/// Where the root key is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see DEFAULT")]
pub struct RootKeyConfig {
    pub file: Option<PathBuf>,
    pub environment: Option<String>,
    pub systemd_credential: Option<String>,
    pub sealed_file: Option<PathBuf>,
    pub passphrase: Option<PassphraseConfig>,
    pub command: Option<Vec<String>>,
    pub shares: Option<u8>,
    pub next: Option<Box<RootKeyConfig>>,
}

/// Where the passphrase of a sealed file is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see DEFAULT")]
pub struct PassphraseConfig {
    pub file: Option<PathBuf>,
    pub environment: Option<String>,
    pub systemd_credential: Option<String>,
}

/// How secrets live.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see DEFAULT")]
pub struct SecretsConfig {
    pub recoverable_for: Span,
}

/// How the audit log is kept.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see DEFAULT")]
pub struct AuditConfig {
    pub checkpoints: Option<PathBuf>,
    pub keep_for: Option<Span>,
    /// Whether to go on with a log that was rolled back; the command line alone says so.
    #[serde(skip)]
    pub accept_rollback: bool,
}

/// Whose tokens are taken.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see DEFAULT")]
pub struct AuthConfig {
    pub own_issuer: bool,
    pub own_issuer_name: String,
    pub own_audience: String,
    #[serde(default)]
    pub issuers: Vec<IssuerSettings>,
}

/// Whether to serve HTTPS.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see DEFAULT")]
pub struct TlsConfig {
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// How long clients may take.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see DEFAULT")]
pub struct ServerConfig {
    pub header_timeout: Span,
    pub body_timeout: Span,
    pub idle_timeout: Span,
    pub write_timeout: Span,
    pub drain_timeout: Span,
    pub max_connections: usize,
    pub max_requests: usize,
    pub metrics_need_token: bool,
}

/// What to log.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "see DEFAULT")]
pub struct LogConfig {
    pub filter: String,
    pub format: LogFormat,
}

/// For whom to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// People.
    Text,
    /// Programs.
    Json,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("the configuration {} is not TOML: {}", .path.display(), .source.message())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: toml::de::Error,
    },
    /// A key is unknown, missing, or has a value of the wrong type.
    #[error("configuration: {key}: {problem}")]
    Key {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Config {
    /// Reads the defaults, then the file, then the environment variables given.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with the file or the key.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let malformed = |path: &Path| {
            let path = path.to_owned();
            move |source| ConfigError::Malformed { path, source }
        };
        let mut table: Table = DEFAULT.parse().map_err(malformed(Path::new("default")))?;
        if let Some(path) = file {
            let text =
                fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
            merge(&mut table, text.parse().map_err(malformed(path))?);
        }
        for (name, value) in environment {
            if let Some(key) = name.strip_prefix(PREFIX) {
                let key: Vec<String> = key.split("__").map(str::to_ascii_lowercase).collect();
                set(&mut table, &key, &value).map_err(|problem| ConfigError::Key { key: name.clone(), problem })?;
            }
        }
        let config: Self = serde_path_to_error::deserialize(Value::Table(table)).map_err(|error| {
            let problem = error.inner().message().to_owned();
            ConfigError::Key { key: error.path().to_string(), problem }
        })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let known = |word: &String| Category::ALL.iter().any(|(_, name, _)| name == word);
        if let Some(unknown) = self.rate_limits.keys().find(|word| !known(word)) {
            let problem = "there is no such category".to_owned();
            return Err(ConfigError::Key { key: format!("rate_limits.{unknown}"), problem });
        }
        let connections = [
            ("server.max_connections", self.server.max_connections),
            ("server.max_requests", self.server.max_requests.max(1)),
            ("store.max_connections", usize::try_from(self.store.max_connections).unwrap_or(usize::MAX)),
        ];
        if let Some((key, _)) = connections.into_iter().find(|(_, number)| !(1..=1_000_000).contains(number)) {
            return Err(ConfigError::Key { key: key.to_owned(), problem: "1 to 1,000,000 are wanted".to_owned() });
        }
        if let Err(error) = self.log.filter.parse::<EnvFilter>() {
            return Err(ConfigError::Key { key: "log.filter".to_owned(), problem: error.to_string() });
        }
        if self.tls.certificate.is_some() != self.tls.key.is_some() {
            let problem = "certificate and key are wanted together".to_owned();
            return Err(ConfigError::Key { key: "tls".to_owned(), problem });
        }
        if self.root_key.next.as_ref().is_some_and(|next| next.next.is_some()) {
            let problem = "there is one next root key at most".to_owned();
            return Err(ConfigError::Key { key: "root_key.next.next".to_owned(), problem });
        }
        self.root_key_source().and(self.next_root_key_source()).map(drop)
    }

    /// Where the root key is.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Key`] where more than one place is named.
    pub fn root_key_source(&self) -> Result<RootKeySource, ConfigError> {
        let configured = self.root_key.source("root_key")?;
        Ok(configured.unwrap_or_else(|| RootKeySource::File(self.store.data_dir.join("root.key"))))
    }

    /// Where the root key that shall replace it is looked for; beside the file of the present one where no other place is
    /// named.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Key`] where more than one place is named.
    pub fn next_root_key_source(&self) -> Result<Option<RootKeySource>, ConfigError> {
        if let Some(next) = &self.root_key.next {
            return next.source("root_key.next");
        }
        Ok(match self.root_key_source()? {
            RootKeySource::File(mut file) => {
                file.as_mut_os_string().push(".next");
                Some(RootKeySource::File(file))
            }
            _ => None,
        })
    }

    /// The second place for the audit log's checkpoints.
    #[must_use]
    pub fn checkpoint_file(&self) -> PathBuf {
        self.audit.checkpoints.clone().unwrap_or_else(|| self.store.data_dir.join("checkpoints.log"))
    }

    /// The limits of connections.
    #[must_use]
    pub fn serve_limits(&self) -> ServeLimits {
        ServeLimits {
            header_timeout: self.server.header_timeout.0,
            body_timeout: self.server.body_timeout.0,
            idle_timeout: self.server.idle_timeout.0,
            write_timeout: self.server.write_timeout.0,
            drain_timeout: self.server.drain_timeout.0,
            max_connections: self.server.max_connections,
            ..ServeLimits::default()
        }
    }
}

impl RootKeyConfig {
    fn source(&self, key: &str) -> Result<Option<RootKeySource>, ConfigError> {
        let Self { file, environment, systemd_credential, sealed_file, passphrase, command, shares, next: _ } =
            self.clone();
        let problem = |problem: &str| Err(ConfigError::Key { key: key.to_owned(), problem: problem.to_owned() });
        if passphrase.is_some() && sealed_file.is_none() {
            return problem("a passphrase belongs to a sealed_file");
        }
        if command.as_ref().is_some_and(Vec::is_empty) {
            return problem("command: a program is wanted");
        }
        if shares.is_some_and(|shares| shares < 2) {
            return problem("shares: two at least are wanted");
        }
        let passphrase = passphrase.unwrap_or_default().source(key)?;
        let mut sources = [
            file.map(RootKeySource::File),
            environment.map(RootKeySource::Environment),
            systemd_credential.map(RootKeySource::SystemdCredential),
            sealed_file.map(|file| RootKeySource::SealedFile(file, passphrase)),
            command.map(RootKeySource::Command),
            shares.map(RootKeySource::Shares),
        ]
        .into_iter()
        .flatten();
        let source = sources.next();
        if sources.next().is_some() {
            return problem("one of file, environment, systemd_credential, sealed_file, command, shares is wanted");
        }
        Ok(source)
    }
}

impl PassphraseConfig {
    fn source(self, key: &str) -> Result<PassphraseSource, ConfigError> {
        match (self.file, self.environment, self.systemd_credential) {
            (None, None, None) => Ok(PassphraseSource::Terminal),
            (Some(file), None, None) => Ok(PassphraseSource::File(file)),
            (None, Some(name), None) => Ok(PassphraseSource::Environment(name)),
            (None, None, Some(name)) => Ok(PassphraseSource::SystemdCredential(name)),
            _ => {
                let problem = "one of file, environment, systemd_credential is wanted".to_owned();
                Err(ConfigError::Key { key: format!("{key}.passphrase"), problem })
            }
        }
    }
}

fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}

/// Sets a key from text, which is read as the kind of value that stands there already; as a string where none does.
fn set(table: &mut Table, key: &[String], text: &str) -> Result<(), String> {
    let Some((first, rest)) = key.split_first() else { return Err("a key is wanted".to_owned()) };
    if rest.is_empty() {
        let value = match table.get(first) {
            Some(Value::Boolean(_)) => Value::Boolean(text.parse().map_err(|_| "true or false is wanted")?),
            Some(Value::Integer(_)) => Value::Integer(text.parse().map_err(|_| "a whole number is wanted")?),
            _ => Value::String(text.to_owned()),
        };
        table.insert(first.clone(), value);
        return Ok(());
    }
    match table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(below) => set(below, rest, text),
        _ => Err("nothing stands below this key".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("c.toml");
        fs::write(&file, text).unwrap();
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::load(Some(&file), environment).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_load_and_name_every_category() {
        let config = Config::load(None, []).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:8400");
        for (_, word, default) in Category::ALL {
            assert_eq!(config.rate_limits.get(word), Some(&default), "{word}");
        }
        assert_eq!(config.serve_limits(), ServeLimits::default());
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let environment =
            [("PORTCULLIS__RATE_LIMITS__READ", "0"), ("PORTCULLIS__LISTEN", "127.0.0.1:1"), ("HOME", "/")];
        let config = load("listen = \"127.0.0.1:2\"\n[rate_limits]\nread = 5\nwrite = 6\n", &environment).unwrap();
        assert_eq!(config.listen.port(), 1);
        assert_eq!((config.rate_limits["read"], config.rate_limits["write"]), (0, 6));
    }

    #[test]
    fn an_unknown_key_is_named_wherever_it_stands() {
        assert!(load("fail_open = true", &[]).unwrap_err().contains("fail_open"));
        assert!(load("[store]\nengine = \"x\"", &[]).unwrap_err().contains("engine"));
        assert!(load("[rate_limits]\nreads = 1", &[]).unwrap_err().contains("rate_limits.reads"));
        assert!(load("", &[("PORTCULLIS__STORE__FOO", "1")]).unwrap_err().contains("foo"));
    }

    #[test]
    fn contradictions_are_named() {
        assert!(load("[tls]\nkey = \"k\"", &[]).unwrap_err().contains("tls"));
        assert!(load("[root_key]\nfile = \"a\"\nenvironment = \"B\"", &[]).unwrap_err().contains("root_key"));
        assert!(load("[root_key]\nfile = \"a\"\nshares = 3", &[]).unwrap_err().contains("root_key"));
        assert!(load("[root_key]\nshares = 1", &[]).unwrap_err().contains("shares"));
        assert!(load("[root_key]\ncommand = []", &[]).unwrap_err().contains("command"));
        assert!(load("[root_key.passphrase]\nfile = \"a\"", &[]).unwrap_err().contains("sealed_file"));
        assert!(load("[root_key.next]\nfile = \"a\"\nshares = 2", &[]).unwrap_err().contains("root_key.next"));
        assert!(load("[root_key.next.next]\nfile = \"a\"", &[]).unwrap_err().contains("root_key.next.next"));
        assert!(load("listen = 5", &[]).unwrap_err().contains("listen"));
        assert!(load("[server]\nmax_connections = 0", &[]).unwrap_err().contains("server.max_connections"));
        assert!(load("[log]\nfilter = \"a=b=c\"", &[]).unwrap_err().contains("log.filter"));
        assert!(load("", &[("PORTCULLIS__LISTEN__X", "1")]).unwrap_err().contains("PORTCULLIS__LISTEN__X"));
        assert!(load("", &[("PORTCULLIS__RATE_LIMITS__READ", "many")]).unwrap_err().contains("RATE_LIMITS__READ"));
    }

    #[test]
    fn a_number_may_be_a_name() {
        assert_eq!(load("", &[("PORTCULLIS__AUTH__OWN_AUDIENCE", "1234")]).unwrap().auth.own_audience, "1234");
    }

    #[test]
    fn a_password_in_a_url_is_not_told() {
        let config = load("[store]\ndatabase_url = \"postgres://u:hunter2@h/d\"", &[]).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
