//! Secrets where nobody looks for them (2c of the list): in the log at its most talkative, in errors, in the audit, in
//! the database, its log and what else lies on the disk.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    Random, number,
    routes::{ROUTES, Route},
};
use crate::{child::Process, guests::Directory, support::Client};

/// What every planted text holds; also as it looks in base64, whatever stands before it.
const MARK: &str = "c4n4ry";
const MARK_BASE64: [&str; 3] = ["YzRuNHJ5", "M0bjRye", "jNG40cn"];

/// Headers that a secret is put into by mistake. What a client calls itself is on record by design, and not among them.
const HEADERS: [&str; 24] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "cookie",
    "dnt",
    "forwarded",
    "from",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "link",
    "origin",
    "proxy-authorization",
    "range",
    "referer",
    "te",
    "traceparent",
    "x-api-key",
    "x-forwarded-for",
    "x-portcullis-token",
    "x-request-id",
    "x-vault-token",
    "content-language",
];

/// Queries that a secret is put into by mistake.
const QUERIES: [&str; 10] = [
    "?access_token=",
    "?token=",
    "?version=",
    "?from=",
    "?cursor=",
    "?limit=",
    "?source_ip=",
    "?x=",
    "?%22=",
    "?permanent=",
];

struct Planter {
    root: Client,
    /// Texts that must be found nowhere, one for each request.
    serial: usize,
    random: Random,
}

impl Planter {
    fn route(&mut self) -> &'static Route {
        &ROUTES[self.random.below(ROUTES.len())]
    }

    /// One request with a secret at a place of some kind. Nothing of it may be in an answer that refuses.
    async fn plant(&mut self) {
        self.serial += 1;
        let secret = format!("{MARK}-{}", self.serial);
        let route = self.route();
        let request = match self.random.below(8) {
            0 => return self.write_and_read(&secret).await,
            1 => self.broken_body(&secret),
            2 => self.odd_body(&secret),
            3 => self.request(route, route.target).bearer_auth(&secret),
            4 => self.request(route, route.target).header("authorization", format!("Bearer {}", forged(&secret))),
            5 => {
                let request = self.request(route, route.target).bearer_auth(&self.root.token);
                HEADERS.iter().fold(request, |request, name| request.header(*name, format!("{secret} {name}")))
            }
            6 => {
                let target = format!("{}{}{secret}", route.target, self.random.of(&QUERIES));
                self.request(route, &target).bearer_auth(&self.root.token)
            }
            _ => {
                let target = format!("{}/%{secret}/{secret}?{secret}", route.target);
                self.request(route, &target).bearer_auth(&self.root.token)
            }
        };
        let answer = request.send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
        assert!(status != 500, "{text}");
        assert!(!text.contains(MARK), "{status}: {text}");
    }

    fn request(&self, route: &Route, target: &str) -> reqwest::RequestBuilder {
        let method: Method = route.method.parse().unwrap();
        // A write that succeeds over and over would be one of many versions; a refused one tells as much.
        let request = self.root.http.request(method, format!("{}{target}", self.root.url));
        match route.body {
            Some(body) => request.header("content-type", "application/json").body(body),
            None => request,
        }
    }

    async fn write_and_read(&mut self, secret: &str) {
        let path = format!("kept/s{}", self.random.below(50));
        let body = json!({"data": {"password": secret, "deep": [{"k": secret}]}, "options": {"max_versions": 2}});
        let (status, answer) = self.root.put(&format!("/v1/secrets/{path}"), body).await.json().await;
        assert!(status < 300 && !answer.to_string().contains(MARK), "{status} {answer}");
        let (status, read) = self.root.get(&format!("/v1/secrets/{path}")).await.json().await;
        assert!(status == 200 && read.to_string().contains(MARK), "whoever may read it has it: {read}");
        let described = self.root.get(&format!("/v1/metadata/{path}")).await.json().await.1;
        assert!(!described.to_string().contains(MARK), "{described}");
    }

    /// A body that is no JSON, cut or garbled somewhere, with the secret in it.
    fn broken_body(&mut self, secret: &str) -> reqwest::RequestBuilder {
        let route = self.with_a_body();
        let body = route.body.unwrap();
        let at = self.random.below(body.len());
        let broken = match self.random.below(4) {
            // Not within a name: a field that is not known is called by its name in the answer.
            0 => format!("{}\"{secret}{}", &body[..at], &body[at..]),
            1 => format!("{}\"{secret}", &body[..at]),
            2 => format!("{{\"data\":{{\"password\":\"{secret}\"}}"),
            _ => format!("{secret}={secret}&x={secret}"),
        };
        self.sending(route, broken)
    }

    /// A body that is JSON, and has the secret where something else is wanted.
    fn odd_body(&mut self, secret: &str) -> reqwest::RequestBuilder {
        let route = self.with_a_body();
        let body: Value = serde_json::from_str(route.body.unwrap()).unwrap();
        let odd = match self.random.below(4) {
            0 => json!(secret),
            1 => json!([secret]),
            2 => body.as_object().unwrap().keys().map(|name| (name.clone(), json!({"k": secret}))).collect(),
            _ => body.as_object().unwrap().keys().map(|name| (name.clone(), json!([[secret]]))).collect(),
        };
        self.sending(route, odd.to_string())
    }

    fn with_a_body(&mut self) -> &'static Route {
        loop {
            let route = self.route();
            if route.body.is_some() {
                return route;
            }
        }
    }

    fn sending(&self, route: &Route, body: String) -> reqwest::RequestBuilder {
        let method: Method = route.method.parse().unwrap();
        self.root.request(method, route.target).header("content-type", "application/json").body(body)
    }
}

/// A token that nobody signed, with the secret in its claims.
fn forged(secret: &str) -> String {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as B64};
    let claims = json!({"iss": "portcullis", "aud": "portcullis", "sub": format!("user:{secret}"), "k": secret});
    format!("{}.{}.{}", B64.encode(r#"{"alg":"EdDSA"}"#), B64.encode(claims.to_string()), B64.encode([7; 64]))
}

/// All files below a directory.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() {
                found.push(path);
            }
        }
    }
    found
}

/// Whether some bytes hold one of these texts.
fn holds(bytes: &[u8], texts: &[&str]) -> bool {
    texts.iter().any(|text| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
}

/// CVE-2025-62513, CVE-2025-62705, CVE-2024-8365, CVE-2025-4166, GHSA-444v-8vxr-p36h and their kin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c_43_c_44_c_45_c_46_c_55_no_secret_is_told_anywhere() {
    let policies = Directory::new().with("allow", "deadline = \"5s\"");
    let process = Arc::new(Process::start(&policies.path(), "trace"));
    let requests = number(5_000, 50_000);
    let mut crew = JoinSet::new();
    for member in 0..8 {
        let root = process.root();
        crew.spawn(async move {
            let serial = member * 1_000_000;
            let mut planter = Planter { root, serial, random: Random(u64::try_from(member).unwrap()) };
            for _ in 0..requests / 8 {
                planter.plant().await;
            }
        });
    }
    crew.join_all().await;

    let root = process.root();
    let signature = root.token.rsplit('.').next().unwrap().to_owned();
    let telling: Vec<&str> = MARK_BASE64.into_iter().chain([MARK, signature.as_str()]).collect();
    let audited = audit_tells_nothing(&root, &telling).await;
    let (lines, count) = process.telling(&telling);
    assert!(lines.is_empty(), "{} lines of the log tell: {:#?}", lines.len(), &lines[..lines.len().min(5)]);
    assert!(process.telling(&["panicked"]).0.is_empty(), "nothing panicked");
    let talks = process.telling(&["\"level\":\"DEBUG\"", "\"level\":\"TRACE\""]).0.len();
    assert!(talks > requests / 10 && count > requests, "the log says all it can: {count} lines, {talks} of them low");
    let mut looked_at = 0;
    for file in files(&process.data_dir).into_iter().chain(files(&process.temporary)) {
        assert!(!holds(&fs::read(&file).unwrap(), &telling), "{} holds a secret", file.display());
        looked_at += 1;
    }
    assert!(looked_at >= 5, "database, its log, its index, the lock, the root key: {looked_at}");
    println!("{requests} requests, {audited} events, {count} lines of log, {looked_at} files");
}

/// Reads the whole audit log; answers how many events it has.
async fn audit_tells_nothing(root: &Client, telling: &[&str]) -> usize {
    let (mut events, mut cursor) = (0, String::new());
    loop {
        let (status, page) = root.get(&format!("/v1/audit/logs?limit=1000{cursor}")).await.json().await;
        assert_eq!(status, 200, "{page}");
        for event in page["logs"].as_array().unwrap() {
            let text = event.to_string();
            assert!(!telling.iter().any(|secret| text.contains(secret)), "{text}");
            events += 1;
        }
        match page["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return events,
        }
    }
}

/// The search finds what is there.
#[test]
fn a_planted_secret_would_be_found() {
    use base64::{Engine, prelude::BASE64_STANDARD};
    for before in ["", "x", "xy", "xyz"] {
        let text = BASE64_STANDARD.encode(format!("{before}{MARK}-17"));
        assert!(holds(text.as_bytes(), &MARK_BASE64), "{text}");
    }
    assert!(holds(b"..c4n4ry-1..", &[MARK]) && !holds(b"c4nary", &[MARK]));
}
