//! Paths that policy, store and audit could read differently (2a of the list): there is one reading, or none.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use portcullis::domain::{PathPattern, SecretPath};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use super::{
    Random, number,
    routes::{ROUTES, Route, with_a_path},
};
use crate::{
    paths::{SECRET, spellings},
    raw::{exchange, request},
    support::{ALL_SCOPES, TestServer, metric},
};

/// Methods that are sent to every address.
const METHODS: [&str; 9] = ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"];

/// What people and programs take for a dot segment.
const DOTS: [&str; 14] = [
    ".",
    "..",
    "...",
    "%2e",
    "%2E%2E",
    "%2e%2e",
    ".%2e",
    "%2e.",
    "%252e%252e",
    "..;",
    "..%00",
    "%c0%ae%c0%ae",
    "%u002e%u002e",
    "．．",
];
/// What people and programs take for a slash.
const SLASHES: [&str; 10] = ["/", "//", "%2f", "%2F", "\\", "%5c", "%252f", "/./", "%c0%af", "／"];

fn dot_segments() -> BTreeSet<Vec<u8>> {
    let mut all = BTreeSet::new();
    for dots in DOTS {
        for slash in SLASHES {
            all.insert(format!("team/other{slash}{dots}{slash}app/key"));
            all.insert(format!("{dots}{slash}{SECRET}"));
            all.insert(format!("team/app/key{slash}{dots}"));
            all.insert(format!("team{slash}{dots}{slash}{dots}{slash}v1{slash}metadata{slash}{SECRET}"));
        }
    }
    all.into_iter().map(String::into_bytes).collect()
}

/// More than 2,000 spellings that are no path: the hand-written ones, every byte raw and encoded, and dot segments.
fn all_spellings() -> Vec<Vec<u8>> {
    let mut all: BTreeSet<Vec<u8>> = spellings().into_iter().map(String::into_bytes).collect();
    all.extend(dot_segments());
    for byte in 0..=u8::MAX {
        let encodings = [format!("%{byte:02x}"), format!("%{byte:02X}"), format!("%25{byte:02x}")];
        for (encoded, places) in encodings.iter().zip([&[0, 4, 5, 12][..], &[5], &[4]]) {
            for place in places {
                let (before, after) = SECRET.split_at(*place);
                all.insert(format!("{before}{encoded}{after}").into_bytes());
            }
        }
        // Blanks, line ends and what ends a path in a target are other tests' affair.
        if byte > b' ' && byte != 0x7f && !matches!(byte, b'/' | b'?' | b'#') {
            for place in [4, 6] {
                let (before, after) = SECRET.as_bytes().split_at(place);
                all.insert([before, &[byte], after].concat());
            }
        }
    }
    all.retain(|spelling| std::str::from_utf8(spelling).map_or(true, |text| SecretPath::parse(text).is_err()));
    all.into_iter().collect()
}

/// A connection that serves one request after the other, and a new one where the server closed the last.
struct Wire {
    address: String,
    stream: Option<TcpStream>,
}

/// An answer: its status, whether it came from within the server (it has a request id), its error code.
type Outcome = (u16, bool, String);

impl Wire {
    fn to(server: &TestServer) -> Self {
        Self { address: server.url.strip_prefix("http://").unwrap().to_owned(), stream: None }
    }

    async fn ask(&mut self, method: &str, target: &[u8], token: &str, body: Option<&str>) -> Outcome {
        let bytes = without_close(&request(method, target, token, body.map(str::as_bytes)));
        loop {
            if self.stream.is_none() {
                self.stream = Some(TcpStream::connect(&self.address).await.unwrap());
            }
            match self.exchange(&bytes, method == "HEAD").await {
                Some(outcome) => return outcome,
                // It was closed between two requests: another one will do.
                None => self.stream = None,
            }
        }
    }

    async fn exchange(&mut self, bytes: &[u8], head_only: bool) -> Option<Outcome> {
        let stream = self.stream.as_mut()?;
        stream.write_all(bytes).await.ok()?;
        let mut answer = Vec::new();
        let (end, head) = loop {
            if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
                break (end + 4, String::from_utf8(answer[..end].to_vec()).unwrap().to_ascii_lowercase());
            }
            if stream.read_buf(&mut answer).await.ok()? == 0 {
                return None;
            }
        };
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let length = field("content-length: ").map_or(0, |text| text.parse::<usize>().unwrap());
        let length = if head_only { 0 } else { length };
        while answer.len() < end + length {
            if stream.read_buf(&mut answer).await.ok()? == 0 {
                return None;
            }
        }
        if field("connection: ").is_some_and(|word| word == "close") {
            self.stream = None;
        }
        let body: Value = serde_json::from_slice(&answer[end..]).unwrap_or_default();
        let code = body["error"]["code"].as_str().unwrap_or_default().to_owned();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Some((status, field("x-request-id: ").is_some(), code))
    }
}

fn without_close(bytes: &[u8]) -> Vec<u8> {
    let text = b"Connection: close\r\n";
    let at = bytes.windows(text.len()).position(|part| part == text).unwrap();
    [&bytes[..at], &bytes[at + text.len()..]].concat()
}

/// One request of the matrix: method, the row whose address and body it has, who asks, how the path is spelled.
#[derive(Clone)]
struct Try {
    method: &'static str,
    route: &'static Route,
    who: usize,
    spelling: Vec<u8>,
}

impl Try {
    fn is_documented(&self) -> bool {
        let method = if self.method == "HEAD" { "GET" } else { self.method };
        ROUTES.iter().any(|row| row.template == self.route.template && row.method == method)
    }

    /// A body that the method would take there.
    fn body(&self) -> Option<&'static str> {
        ROUTES.iter().find(|row| row.template == self.route.template && row.method == self.method)?.body
    }
}

/// Everything × everything where the full number is asked for. Else every spelling at every documented operation with
/// the three principals in turn, and the methods that there are not in turn as well.
fn tries(spellings: &[Vec<u8>]) -> Vec<Try> {
    let all = number(0, 1) == 1;
    let templates: BTreeMap<_, _> = with_a_path().map(|route| (route.template, route)).collect();
    let mut tries = Vec::new();
    for (number, spelling) in spellings.iter().enumerate() {
        for (index, route) in templates.values().enumerate() {
            for (place, method) in METHODS.into_iter().enumerate() {
                for who in 0..3 {
                    let one = Try { method, route, who, spelling: spelling.clone() };
                    let in_turn = (number + index + place) % 3 == who;
                    let method_in_turn = (number + index) % METHODS.len() == place;
                    if all || (in_turn && (one.is_documented() || method_in_turn)) {
                        tries.push(one);
                    }
                }
            }
        }
    }
    tries
}

/// Asks all of it on some connections at once; answers what was met, in any order.
async fn ask_all(server: &TestServer, tokens: &[String; 3], tries: Vec<Try>) -> Vec<(Try, Outcome)> {
    let mut crew = JoinSet::new();
    for part in tries.chunks(tries.len() / 32 + 1) {
        let (part, tokens, mut wire) = (part.to_vec(), tokens.clone(), Wire::to(server));
        crew.spawn(async move {
            let mut met = Vec::with_capacity(part.len());
            for one in part {
                let target = [one.route.prefix().unwrap().as_bytes(), &one.spelling].concat();
                let outcome = wire.ask(one.method, &target, &tokens[one.who], one.body()).await;
                met.push((one, outcome));
            }
            met
        });
    }
    crew.join_all().await.into_iter().flatten().collect()
}

fn tokens(server: &TestServer) -> [String; 3] {
    [server.token("user:root"), server.token("user:stranger"), server.token_with("user:root", "acme", &ALL_SCOPES, &[])]
}

async fn numbers(server: &TestServer) -> [u64; 3] {
    let names = [
        "portcullis_store_read_duration_seconds_count",
        "portcullis_store_write_duration_seconds_count",
        "portcullis_policy_evaluations_total",
    ];
    [metric(server, names[0]).await, metric(server, names[1]).await, metric(server, names[2]).await]
}

/// Refuses all of it, records all of it, and asks neither a policy nor the store about any of it.
async fn reach_nothing(spellings: &[Vec<u8>]) -> usize {
    let server = TestServer::new().await;
    server.root().store(SECRET, json!({"k": "v"})).await;
    let before = numbers(&server).await;
    let tries = tries(spellings);
    let asked = tries.len();
    let met = ask_all(&server, &tokens(&server), tries).await;
    let (mut wrong, mut events) = (Vec::new(), [0; 3]);
    for (one, outcome) in &met {
        let expected = if one.is_documented() { (400, "invalid_path") } else { (405, "method_not_allowed") };
        let (status, inside, code) = outcome;
        // The answer to HEAD has no body; what is no target at all ends before the server sees it.
        let code_fits = code == expected.1 || one.method == "HEAD" || (*status, *inside) == (400, false);
        if *status != expected.0 && (*status, *inside) != (400, false) || !code_fits {
            let spelling = String::from_utf8_lossy(&one.spelling);
            wrong.push(format!("{} {} {spelling:?}: {outcome:?}", one.method, one.route.template));
        }
        events[one.who] += usize::from((*status, *inside) == (400, true));
    }
    assert!(wrong.is_empty(), "{} of {asked} are wrong:\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
    assert_eq!(numbers(&server).await, before, "neither the store nor a policy was asked");
    all_recorded(&server, events).await;
    let kept = server.root().get(&format!("/v1/secrets/{SECRET}")).await.json().await.1;
    assert_eq!((&kept["version"], &kept["data"]), (&json!(1), &json!({"k": "v"})));
    assert_eq!(server.root().get("/v1/secrets").await.json().await.1["secrets"].as_array().unwrap().len(), 1);
    asked
}

async fn all_recorded(server: &TestServer, events: [usize; 3]) {
    let recorded = server.whole_audit("&success=false").await;
    let of = |who: &str| recorded.iter().filter(|event| event["identity_id"] == who).count();
    assert_eq!((of("user:root"), of("user:stranger")), (events[0], events[1]), "each refusal has its event");
    assert!(recorded.iter().all(|event| event["code"] == "invalid_path" && event["secret_path"].is_null()));
    let foreign =
        server.client_with_token(server.token_with("user:auditor", "acme", &[portcullis::domain::Scope::Admin], &[]));
    let (mut found, mut cursor) = (0, String::new());
    loop {
        let page = foreign.get(&format!("/v1/audit/logs?limit=1000{cursor}")).await.json().await.1;
        found += page["logs"].as_array().unwrap().iter().filter(|event| event["code"] == "invalid_path").count();
        match page["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(found, events[2], "each refusal of another tenant has its event there");
}

/// CVE-2026-3605: `..` reached the metadata and the deletes past the policy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c_01_dot_segments_reach_nothing() {
    let spellings: Vec<_> = dot_segments().into_iter().collect();
    assert!(spellings.len() >= 500, "{}", spellings.len());
    println!("{} requests of {} spellings", reach_nothing(&spellings).await, spellings.len());
}

/// Traefik CVE-2025-32431 and four more, Heimdall CVE-2026-42274, Oathkeeper CVE-2026-33494; axum #2678.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c_05_c_07_no_spelling_of_a_path_is_read_twice() {
    let spellings = all_spellings();
    assert!(spellings.len() >= 2_000, "{}", spellings.len());
    println!("{} requests of {} spellings", reach_nothing(&spellings).await, spellings.len());
}

/// opa-envoy-plugin CVE-2026-26205: what is taken is one path, to the byte; what is not is refused, never mended.
#[test]
fn c_03_a_path_is_its_text_or_none() {
    let mut random = Random(3);
    let alphabet: Vec<char> = "aZ09_.-/%\\?#;:*~ \0ä．／".chars().collect();
    let (mut taken, count) = (0, number(1_000_000, 10_000_000));
    for _ in 0..count {
        let text: String = (0..=random.below(14)).map(|_| random.of(&alphabet)).collect();
        let fits = text.split('/').all(|segment| {
            let plain = |c: char| c == '_' || c.is_ascii_alphanumeric();
            segment.starts_with(plain) && segment.chars().all(|c| plain(c) || matches!(c, '.' | '-'))
        }) && text.split('/').count() <= 10;
        let parsed = SecretPath::parse(&text);
        assert_eq!(parsed.as_ref().map(SecretPath::as_str).ok(), fits.then_some(text.as_str()));
        taken += usize::from(fits);
    }
    assert!(taken > count / 100, "{taken} of {count} are paths");
    println!("{count} texts, {taken} of them paths");
}

/// Caddy GHSA-m8m5-v4jf-3wcm: the matcher and the handler each had their own reading. Who reads a path from text is
/// listed here; each of them is handed to all who need it.
#[test]
fn c_04_paths_are_read_from_text_in_few_places() {
    let readers: BTreeMap<&str, &str> = BTreeMap::from([
        ("src/http/batch.rs", "the paths in a batch's body"),
        ("src/http/frame.rs", "the path in a request's target"),
        ("src/policy/scenario.rs", "dry runs and replays, which access nothing"),
        ("src/cli/samples.rs", "the samples of a first look"),
        ("src/cli/secret.rs", "the command line's own client, before it asks"),
        ("src/store/key_tables.rs", "what was stored is checked when it comes back"),
        ("src/store/tables.rs", "what was stored is checked when it comes back"),
        ("src/vault/listing.rs", "positions in sealed cursors"),
    ]);
    let mut found = BTreeSet::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let name = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_str().unwrap().to_owned();
            let code = text.split("#[cfg(test)]").next().unwrap();
            if code.contains("SecretPath::parse") && !name.contains("tests") {
                found.insert(name);
            }
        }
    }
    let known: BTreeSet<_> = readers.keys().map(|name| (*name).to_owned()).collect();
    assert_eq!(found, known, "each place that reads a path from text is known, with its reason");
}

/// oauth2-proxy CVE-2025-54576, Heimdall CVE-2026-32811, Traefik CVE-2023-47106: a query or a fragment in the path.
#[tokio::test]
async fn c_06_what_follows_the_path_is_no_part_of_it() {
    let server = TestServer::new().await;
    server.root().store(SECRET, json!({"k": "v"})).await;
    let token = server.token("user:root");
    let before = server.root().get(&format!("/v1/versions/{SECRET}")).await.json().await.1;
    let mut refused = 0;
    for route in with_a_path() {
        let prefix = route.prefix().unwrap();
        for (tail, code) in [
            ("?x=1", "invalid_request"),
            ("?/../other", "invalid_request"),
            ("?path=other", "invalid_request"),
            ("?%2f..%2fother", "invalid_request"),
            ("?version=1&version=1", "invalid_request"),
            ("?permanent=true&permanent=true", "invalid_request"),
            ("?access_token=t", "invalid_request"),
            (";v=1", "invalid_path"),
            (";v=1?version=1", "invalid_path"),
            ("/;/..", "invalid_path"),
            ("/?", "invalid_path"),
            ("/#", "invalid_path"),
            ("%3fversion=1", "invalid_path"),
            ("%23fragment", "invalid_path"),
        ] {
            for authority in ["", "http://vault", "http://evil.example"] {
                let target = format!("{authority}{prefix}{SECRET}{tail}");
                let bytes = request(route.method, target.as_bytes(), &token, route.body.map(str::as_bytes));
                let outcome = exchange(&server, &bytes).await.outcome();
                assert_eq!(outcome, (400, code.to_owned()), "{} {target}", route.method);
                refused += 1;
            }
        }
    }
    assert_eq!(server.root().get(&format!("/v1/versions/{SECRET}")).await.json().await.1, before);
    assert_eq!(server.audit("&success=false").await.len(), refused);
}

/// CVE-2021-42135, CVE-2025-11621: a glob that gives more than was meant. Every short pattern with every short path.
#[test]
fn c_10_every_short_pattern_matches_what_a_slow_reader_would() {
    let texts = |alphabet: &[u8], most: usize| {
        let mut all: Vec<String> = vec![String::new()];
        let mut from = 0;
        for _ in 0..most {
            let to = all.len();
            for at in from..to {
                all.extend(alphabet.iter().map(|byte| format!("{}{}", all[at], char::from(*byte))).collect::<Vec<_>>());
            }
            from = to;
        }
        all
    };
    let patterns: Vec<_> = texts(b"ab/*?", number(5, 6)).iter().filter_map(|t| PathPattern::parse(t).ok()).collect();
    let paths: Vec<_> = texts(b"ab/", 6).into_iter().filter(|text| SecretPath::parse(text).is_ok()).collect();
    let (mut asked, mut matched) = (0, 0);
    for pattern in &patterns {
        let segments: Vec<_> = pattern.as_str().split('/').collect();
        for path in &paths {
            let slow = slowly(&segments, &path.split('/').collect::<Vec<_>>());
            assert_eq!(pattern.matches(path), slow, "{} {path}", pattern.as_str());
            asked += 1;
            matched += usize::from(slow);
        }
    }
    assert!(patterns.len() > 1_000 && matched > 10_000, "{} {matched}", patterns.len());
    println!("{} patterns, {} paths, {asked} questions, {matched} matches", patterns.len(), paths.len());
}

fn slowly(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        (["**", rest @ ..], _) => (0..=path.len()).any(|skipped| slowly(rest, &path[skipped..])),
        ([one, rest @ ..], [segment, others @ ..]) => {
            in_a_segment(one.as_bytes(), segment.as_bytes()) && slowly(rest, others)
        }
        _ => false,
    }
}

fn in_a_segment(glob: &[u8], text: &[u8]) -> bool {
    match (glob, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|skipped| in_a_segment(rest, &text[skipped..])),
        ([one, rest @ ..], [byte, others @ ..]) => (*one == b'?' || one == byte) && in_a_segment(rest, others),
        _ => false,
    }
}
