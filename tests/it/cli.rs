//! The program as people start it: its output, its exit codes, its files.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::rules_directory;

const OTHER_KEY: &str = "b3RoZXIgb3RoZXIgb3RoZXIgb3RoZXIgb3RoZXIgb3Q=\n";

/// A place for one server: data, and the sample policies with a deadline that suits a busy machine.
struct Site {
    directory: TempDir,
}

impl Site {
    fn new() -> Self {
        let site = Self { directory: TempDir::new().unwrap() };
        rules_directory(&site.policies(), None);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn policies(&self) -> PathBuf {
        self.path("policies")
    }

    fn data(&self) -> PathBuf {
        self.path("data")
    }

    /// The program, with nothing of this process's environment that it could read.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.args(args).env_clear().current_dir(self.directory.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn serve(&self, args: &[&str]) -> Command {
        let mut command = self.command(&["serve", "--listen", "127.0.0.1:0"]);
        command.arg("--data-dir").arg(self.data()).arg("--policies").arg(self.policies()).args(args);
        command
    }

    /// Starts a server that must not start; answers what it says.
    fn refused(&self, args: &[&str]) -> String {
        let output = self.serve(args).output().unwrap();
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), ""));
        text(&output.stderr).to_owned()
    }

    fn start(&self) -> Serving {
        let log = File::create(self.path("log")).unwrap();
        let mut child = self.serve(&["--dev"]).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut page = String::new();
        while !page.ends_with("\"Authorization: Bearer $ADMIN_TOKEN\"\n") {
            let read = stdout.read_line(&mut page).unwrap();
            assert!(read > 0, "{page}{}", fs::read_to_string(self.path("log")).unwrap());
        }
        Serving { child, page, _stdout: stdout }
    }
}

/// A running `portcullis serve --dev`, gone with the test.
struct Serving {
    child: Child,
    page: String,
    _stdout: BufReader<ChildStdout>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Only if the test did not get as far as to stop it.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

impl Serving {
    fn url(&self) -> &str {
        let line = self.page.lines().find_map(|line| line.trim().strip_prefix("API ")).unwrap();
        line.trim()
    }

    fn token(&self, variable: &str) -> &str {
        let prefix = format!("export {variable}=");
        self.page.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap()
    }

    /// Runs the page's commands as a shell does; answers what each of them printed.
    fn paste(&self) -> Vec<Value> {
        let commands = self.page.split("\n\n").filter(|block| block.starts_with("curl "));
        let exports: Vec<_> = self.page.lines().filter(|line| line.starts_with("export ")).collect();
        let exports = exports.join("\n");
        let run = |command| {
            let output = Command::new("sh").arg("-c").arg(format!("{exports}\n{command}")).output().unwrap();
            assert!(output.status.success(), "{command}: {}", text(&output.stderr));
            serde_json::from_slice(&output.stdout).unwrap()
        };
        commands.map(run).collect()
    }

    /// Asks it to stop, and answers its exit code.
    fn stop(mut self) -> Option<i32> {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        self.child.wait().unwrap().code()
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Runs `portcullis secret` against a server.
fn secret(site: &Site, server: &Serving, token: &str, args: &[&str]) -> Output {
    let mut command = site.command(&["secret"]);
    command.args(args).env("PORTCULLIS_URL", server.url()).env("PORTCULLIS_TOKEN", token).output().unwrap()
}

#[test]
fn a_development_server_shows_its_way_keeps_its_data_and_stops_when_asked() {
    let site = Site::new();
    let server = site.start();
    assert!(server.page.contains("(five sample secrets were stored)"), "{}", server.page);
    assert!(server.page.contains(&site.data().join("root.key").display().to_string()));

    // What the page says can be pasted, and does what the page says.
    let [batch, metadata, logs] = &server.paste()[..] else { panic!("three commands: {}", server.page) };
    assert_eq!((&batch["retrieved"], &batch["failed"]), (&json!(2), &json!(1)));
    assert_eq!(batch["errors"]["integrations/stripe/secret-key"]["code"], "access_denied");
    assert_eq!(metadata["metadata"].as_object().unwrap().len(), 2);
    assert_eq!(logs["logs"].as_array().unwrap().len(), 5);

    let admin = server.token("ADMIN_TOKEN").to_owned();
    let listed = secret(&site, &server, &admin, &["list", "--json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let samples = |secret: &Value| (secret["path"].clone(), secret["version"].clone(), secret["secret_type"].clone());
    let listed: Vec<_> = listed["secrets"].as_array().unwrap().iter().map(samples).collect();
    let expected = [
        ("infra/db/primary/credentials", 1, "kv"),
        ("infra/redis/primary/credentials", 1, "kv"),
        ("integrations/salesforce/oauth", 3, "json"),
        ("integrations/scaisend/api-key", 1, "api_key"),
        ("integrations/stripe/secret-key", 1, "api_key"),
    ];
    assert_eq!(listed, expected.map(|(path, version, kind)| (json!(path), json!(version), json!(kind))));
    let startup = secret(
        &site,
        &server,
        server.token("STARTUP_TOKEN"),
        &[&["batch", "--fail-fast"][..], &expected.map(|e| e.0)].concat(),
    );
    assert_eq!(startup.status.code(), Some(0), "{}", text(&startup.stderr));

    // Nobody else may read its files.
    assert_eq!(mode(&site.data()), 0o700);
    for file in ["portcullis.db", "portcullis.db-wal", "portcullis.db-shm", "root.key", "portcullis.lock"] {
        assert_eq!(mode(&site.data().join(file)), 0o600, "{file}");
    }
    let second = site.refused(&["--dev"]);
    assert!(second.contains("another server is using it"), "{second}");

    assert_eq!(secret(&site, &server, &admin, &["put", "app/kept", "k=v"]).status.code(), Some(0));
    assert_eq!(server.stop(), Some(0));
    let log = fs::read_to_string(site.path("log")).unwrap();
    assert!(log.contains("listening") && log.contains("stopped"), "{log}");
    assert!(!log.contains(&admin) && !log.contains("sample-secret"), "{log}");

    let server = site.start();
    assert!(server.page.contains("(kept as it was)"), "{}", server.page);
    let kept = secret(&site, &server, &admin, &["get", "app/kept", "--field", "k"]);
    assert_eq!((kept.status.code(), text(&kept.stdout)), (Some(0), "v"), "{}", text(&kept.stderr));
    assert_eq!(server.paste()[0]["retrieved"], 2);
    assert_eq!(server.stop(), Some(0));

    // With another root key it does not start, and harms nothing.
    let key = site.data().join("root.key");
    let right = fs::read(&key).unwrap();
    fs::write(&key, OTHER_KEY).unwrap();
    let refusal = site.refused(&["--dev"]);
    assert!(refusal.contains("is not this vault's") && refusal.contains("the vault's root key"), "{refusal}");
    fs::write(&key, "too short\n").unwrap();
    assert!(site.refused(&[]).contains("holds no root key"));
    fs::write(&key, right).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(site.refused(&["--dev"]).contains("chmod 600"));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let server = site.start();
    assert_eq!(secret(&site, &server, &admin, &["get", "app/kept"]).status.code(), Some(0));
}

#[test]
fn a_server_that_lacks_something_says_what() {
    let site = Site::new();
    let refusal = site.refused(&[]);
    assert!(refusal.contains("root key") && refusal.contains("root.key"), "{refusal}");
    assert!(!site.data().exists(), "a server that does not start makes nothing");
    fs::write(site.path("c.toml"), "[store]\nengine = \"x\"\n").unwrap();
    let config = site.path("c.toml");
    let config = config.to_str().unwrap();
    assert!(site.refused(&["--dev", "--config", config]).contains("engine"));
    fs::remove_file(site.policies().join("rules.wasm")).unwrap();
    let refusal = site.refused(&["--dev"]);
    assert!(refusal.contains("rules.wasm"), "{refusal}");

    // The default configuration is one that the program takes, and says what it takes by itself.
    let default = site.run(&["config", "default"]);
    fs::write(config, &default.stdout).unwrap();
    let (with, without) = (site.run(&["config", "check", "--config", config]), site.run(&["config", "check"]));
    assert_eq!((with.status.code(), text(&with.stdout)), (Some(0), text(&without.stdout)));
    assert!(text(&with.stdout).contains("127.0.0.1:8400"));
    let listening = site.command(&["config", "check"]).env("PORTCULLIS__LISTEN", "127.0.0.1:9").output().unwrap();
    assert!(text(&listening.stdout).contains("127.0.0.1:9"));
    for (file, named) in
        [("fail_open = true", "fail_open"), ("[rate_limits]\nreads = 1", "rate_limits.reads"), ("[log", "TOML")]
    {
        fs::write(config, file).unwrap();
        let output = site.run(&["config", "check", "--config", config]);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), ""));
        assert!(text(&output.stderr).contains(named), "{}", text(&output.stderr));
    }
    let absent = site.run(&["config", "check", "--config", "none.toml"]);
    assert!(absent.status.code() == Some(1) && text(&absent.stderr).contains("none.toml"));
}

#[test]
fn the_command_line_reads_and_writes_secrets() {
    let site = Site::new();
    let server = site.start();
    let (admin, checkout) = (server.token("ADMIN_TOKEN"), server.token("TOKEN"));
    let (salesforce, stripe) = ("integrations/salesforce/oauth", "integrations/stripe/secret-key");
    // Who, what, the exit code, and a part of what is printed: where it went well, or where it did not.
    for (token, args, exit, printed) in [
        (checkout, &["get", salesforce][..], 0, "sample-secret-3"),
        (checkout, &["get", salesforce, "--version", "1", "--field", "client_secret"], 0, "sample-secret-1"),
        (checkout, &["get", salesforce, "--json"], 0, "\"version\":3"),
        (checkout, &["list"], 0, "integrations/scaisend/api-key"),
        (checkout, &["versions", salesforce], 0, "active"),
        (checkout, &["batch", salesforce, "--version", "2"], 0, "sample-secret-2"),
        (
            checkout,
            &["batch", salesforce, "--include-metadata", "--json"],
            0,
            "\"tags\":[\"salesforce\",\"production\"]",
        ),
        (
            admin,
            &["put", "app/new", "user=a", "password=b", "--tag", "t", "--expires-in", "90d"],
            0,
            "app/new version 1 written",
        ),
        (
            admin,
            &["put", "app/new", "--data", "{\"n\":[1]}", "--type", "json", "--expected-version", "1"],
            0,
            "version 2",
        ),
        (admin, &["versions", "app/new", "--json"], 0, "\"state\":\"active\""),
        (admin, &["list", "app/", "--json"], 0, "\"path\":\"app/new\""),
        (admin, &["delete", "app/new"], 0, "recoverable until"),
        (admin, &["delete", "app/new", "--permanent"], 0, "destroyed"),
        ("", &["get", salesforce], 2, "there is no token"),
        ("guess", &["get", salesforce], 2, "token_invalid"),
        (checkout, &["get", stripe], 3, "access_denied"),
        (checkout, &["put", salesforce, "k=v"], 3, "insufficient_scope"),
        (checkout, &["batch", stripe, "integrations/scaisend/none"], 3, stripe),
        (checkout, &["batch", "integrations/scaisend/none", stripe], 4, "secret_not_found"),
        (checkout, &["batch", salesforce, stripe, "--fail-fast"], 3, stripe),
        (admin, &["get", "app/none"], 4, "secret_not_found"),
        (admin, &["get", salesforce, "--version", "9"], 4, "version_not_found"),
        (admin, &["get", salesforce, "--field", "none"], 4, "no field"),
        (admin, &["delete", "app/none"], 4, "secret_not_found"),
        (admin, &["versions", "app/none"], 4, "secret_not_found"),
        (admin, &["get", "app//db"], 5, "is not a path"),
        (admin, &["put", "app/db", "--data", "[1]"], 5, "JSON object"),
        (admin, &["put", "app/db", "k=v", "--type", "password"], 5, "invalid_secret_type"),
        (admin, &["put", "app/db", "k=v", "--expires-in", "soon"], 5, "invalid_duration"),
        (admin, &["put", salesforce, "k=v", "--expected-version", "1"], 5, "version_conflict"),
    ] {
        let output = secret(&site, &server, token, args);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {stdout}{stderr}");
        assert!(if exit == 0 { stdout } else { stderr }.contains(printed), "{args:?}: {stdout}{stderr}");
        assert_eq!(stderr.is_empty(), exit == 0, "{args:?}: {stderr}");
        if args.contains(&"--json") {
            assert!(serde_json::from_str::<Value>(stdout).unwrap().is_object(), "{stdout}");
        }
    }
    // A batch in which a path failed shows the others all the same.
    let output = secret(&site, &server, checkout, &["batch", salesforce, stripe]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stdout).contains("sample-secret-3") && text(&output.stderr).contains(stripe));
    // The token may be in a file; it may not be an argument.
    fs::write(site.path("token"), format!("{checkout}\n")).unwrap();
    let output = secret(&site, &server, "", &["get", salesforce, "--token-file", "token"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_ne!(secret(&site, &server, "", &["get", salesforce, "--token", checkout]).status.code(), Some(0));
    assert_eq!(
        site.command(&["secret", "get", "a", "--url", "http://127.0.0.1:1"])
            .env("PORTCULLIS_TOKEN", "t")
            .output()
            .unwrap()
            .status
            .code(),
        Some(1)
    );

    // A token of the operator's own making.
    let data = site.data();
    let issue = |args: &[&str]| {
        let output = site.command(&["token", "issue", "--data-dir"]).arg(&data).args(args).output().unwrap();
        (output.status.code(), text(&output.stdout).trim().to_owned(), text(&output.stderr).to_owned())
    };
    let (code, token, said) = issue(&["--subject", "sa:checkout", "--scope", "secrets:read", "--ttl", "1m"]);
    assert_eq!((code, token.split('.').count()), (Some(0), 3), "{said}");
    assert_eq!(secret(&site, &server, &token, &["get", salesforce]).status.code(), Some(0));
    assert_eq!(secret(&site, &server, &token, &["list"]).status.code(), Some(3), "it lacks secrets:list");
    let (_, operator, _) = issue(&["--subject", "user:bob", "--scope", "secrets:list", "--group", "operators"]);
    assert_eq!(secret(&site, &server, &operator, &["list"]).status.code(), Some(0));
    for (args, named) in [
        (&["--subject", "sa:x", "--scope", "secrets:all"][..], "secrets:all"),
        (&["--subject", "root", "--scope", "admin"], "subject"),
        (&["--subject", "sa:x", "--scope", "admin", "--ttl", "soon"], "duration"),
        (&["--subject", "sa:x", "--scope", "admin", "--tenant", "Not One"], "tenant"),
    ] {
        let (code, token, said) = issue(args);
        assert_eq!((code, token.as_str()), (Some(1), ""));
        assert!(said.contains(named), "{said}");
    }
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn policies_can_be_tried_and_checked_without_a_server() {
    let site = Site::new();
    let policies = site.policies();
    let eval = |args: &[&str]| {
        let output = site.command(&["policy", "eval", "--policies"]).arg(&policies).args(args).output().unwrap();
        (output.status.code(), text(&output.stdout).to_owned(), text(&output.stderr).to_owned())
    };
    let stripe = ["--identity", "sa:checkout", "--path", "integrations/stripe/secret-key"];
    let salesforce = ["--identity", "sa:checkout", "--path", "integrations/salesforce/oauth"];
    for (args, exit, printed) in [
        (&salesforce[..], 0, "allowed"),
        (&[&salesforce[..], &["--action", "list", "--absent"]].concat(), 0, "checkout-integrations"),
        (&[&salesforce[..], &["--action", "write"]].concat(), 3, "access_denied"),
        (&["--identity", "user:bob", "--group", "operators", "--path", "a", "--action", "delete"], 0, "allowed"),
    ] {
        let (code, stdout, stderr) = eval(args);
        assert_eq!(code, Some(exit), "{args:?}: {stdout}{stderr}");
        assert!(stdout.contains(printed), "{args:?}: {stdout}");
    }
    let (code, stdout, _) = eval(&[&stripe[..], &["--json"]].concat());
    let explained: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &explained["message"]), (Some(3), &json!("No policy permits read on this path")));
    assert_eq!((&explained["allowed"], &explained["code"]), (&json!(false), &json!("access_denied")));
    assert_eq!(explained["modules"][0]["module"], "rules");
    assert_eq!(explained["inputs"]["principal.id"], "sa:checkout", "{explained}");
    assert_eq!(explained["modules"][0]["inputs"]["principal.id"], "sa:checkout", "{explained}");
    assert_eq!(explained["combined"], "1 abstains, none allows: denied");
    for (args, named) in [
        (["--identity", "checkout", "--path", "a"], "principal.id"),
        (["--identity", "sa:checkout", "--path", "a//b"], "segment"),
    ] {
        let (code, _, stderr) = eval(&args);
        assert!(code == Some(1) && stderr.contains(named), "{stderr}");
    }

    let check = |directory: &Path| {
        let output = site.command(&["policy", "check"]).arg(directory).output().unwrap();
        (output.status.code(), text(&output.stdout).to_owned(), text(&output.stderr).to_owned())
    };
    let (code, stdout, stderr) = check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("policies"));
    assert_eq!(code, Some(0), "the shipped directory: {stderr}");
    assert!(stdout.starts_with("rules: "), "{stdout}");
    for (file, contents, named) in [
        ("rules.toml", "[[policy]]\nname = \"x\"\nbindings = \"everyone\"\n", "rules"),
        ("policies.toml", "[[policy]]\nname = \"rules\"\nmodule = \"none.wasm\"\n", "none.wasm"),
        ("policies.toml", "[[policies]]\n", "policies"),
    ] {
        let before = fs::read(policies.join(file)).unwrap();
        fs::write(policies.join(file), contents).unwrap();
        let (code, stdout, stderr) = check(&policies);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{file}: {stderr}");
        assert!(stderr.contains(named), "{file}: {stderr}");
        fs::write(policies.join(file), before).unwrap();
    }
}
