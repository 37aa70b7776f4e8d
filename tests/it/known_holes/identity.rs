//! What a request says of itself beside its token (2b of the list): not believed.

use std::{collections::BTreeSet, fs, path::Path};

use portcullis::{
    auth::{TokenIssuer, TokenRequest},
    domain::{Clock, Scope, TenantId, Timestamp},
    server::SystemClock,
};
use serde_json::json;

use super::routes::{CONFIG, Opens, ROUTES, with_a_path};
use crate::{
    raw::exchange,
    support::{Options, TestServer},
};

const HEADERS: [&str; 16] = [
    "X-Forwarded-For: 10.1.2.3",
    "x-forwarded-for: 10.1.2.3, 10.1.2.3",
    "X-Forwarded-For: 10.1.2.3\r\nX-Forwarded-For: 10.1.2.3",
    "X_Forwarded_For: 10.1.2.3",
    "X-Real-IP: 10.1.2.3",
    "True-Client-IP: 10.1.2.3",
    "CF-Connecting-IP: 10.1.2.3",
    "X-Client-IP: 10.1.2.3",
    "X-Cluster-Client-IP: 10.1.2.3",
    "X-Original-Forwarded-For: 10.1.2.3",
    "Forwarded: for=10.1.2.3;proto=https",
    "Forwarded: for=\"10.1.2.3\", for=10.1.2.3",
    "Via: 1.1 10.1.2.3",
    "Client-IP: 10.1.2.3",
    "X-Forwarded-Host: 10.1.2.3",
    "X-ProxyUser-Ip: 10.1.2.3",
];

/// Infisical #6138, Traefik CVE-2026-29054, oauth2-proxy CVE-2026-40575: an address that the client made up.
#[tokio::test]
async fn c_41_no_header_moves_a_client() {
    let rules = "[[policy]]\nname = \"office\"\nbindings = [\"*\"]\n[[policy.rules]]\npath_pattern = \"**\"\npermissions \
                 = [\"read\", \"write\", \"delete\", \"list\"]\nconditions = { ip_ranges = [\"10.0.0.0/8\"] }\n";
    let server = TestServer::with_rules(rules).await;
    let token = server.token("user:root");
    let mut refused = 0;
    for header in HEADERS {
        for route in with_a_path() {
            let body = route.body.unwrap_or_default();
            let head = format!(
                "{} {} HTTP/1.1\r\nHost: vault\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n{header}\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                route.method,
                route.target,
                body.len()
            );
            let outcome = exchange(&server, head.as_bytes()).await.outcome();
            assert_eq!(outcome, (403, "ip_not_allowed".to_owned()), "{header}: {} {}", route.method, route.target);
            refused += 1;
        }
    }
    let events = server.audit("&source_ip=127.0.0.1").await;
    assert_eq!(events.len(), refused, "the audit knows where they came from");
    assert!(server.audit("&source_ip=10.1.2.3").await.is_empty());
}

/// Traefik CVE-2026-35051 and -39858: names in `Connection`, and headers twice, take something away or put it in.
#[tokio::test]
async fn c_41_hop_by_hop_tricks_change_nobody() {
    let server = TestServer::new().await;
    server.root().store("team/app/key", json!({"k": "v"})).await;
    let (root, stranger) = (server.token("user:root"), server.token("user:stranger"));
    for (tricks, status) in [
        (format!("Authorization: Bearer {stranger}\r\nConnection: close, Authorization"), 403),
        (format!("Authorization: Bearer {stranger}\r\nX-Authorization: Bearer {root}"), 403),
        (format!("Authorization: Bearer {stranger}\r\nProxy-Authorization: Bearer {root}"), 403),
        (format!("Authorization: Bearer {stranger}\r\nCookie: authorization=Bearer {root}"), 403),
        (format!("Authorization: Bearer {stranger}\r\nX-HTTP-Method-Override: DELETE"), 403),
        (format!("Authorization: Bearer {stranger}\r\nX-Original-URL: /v1/health\r\nX-Rewrite-URL: /v1/health"), 403),
        (format!("Authorization: Bearer {stranger}\r\nAuthorization: Bearer {root}"), 401),
        (format!("Authorization: Bearer {root}\r\nAuthorization: Bearer {stranger}"), 401),
        (format!("Authorization: Bearer {root}\r\nauthorization: Bearer {root}"), 401),
        (format!("Authorization: Bearer {root},Bearer {stranger}"), 401),
        (format!("Authorization : Bearer {root}"), 400),
        (format!("Authorization: Bearer {stranger}\r\n Bearer {root}"), 400),
    ] {
        let bytes =
            format!("GET /v1/secrets/team/app/key HTTP/1.1\r\nHost: vault\r\nConnection: close\r\n{tricks}\r\n\r\n");
        let answer = exchange(&server, bytes.as_bytes()).await;
        assert_eq!(answer.status, status, "{tricks}");
        assert!(!String::from_utf8_lossy(&answer.body).contains("\"data\""), "{tricks}");
    }
}

/// CVE-2026-4525: what came with the request is handed to a plugin. The contract has no word for a header or a token.
#[test]
fn c_38_guests_see_no_header_and_no_token() {
    let contract = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("wit/policy.wit")).unwrap();
    let code = contract.lines().map(|line| line.split("//").next().unwrap());
    let mut offered = BTreeSet::new();
    let mut interface = String::new();
    for line in code {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("interface ") {
            interface = name.trim_end_matches([' ', '{']).to_owned();
        }
        if let Some((name, _)) = line.split_once(": func(") {
            offered.insert(format!("{interface}.{}", name.trim_start_matches("export ")));
        }
    }
    // Whoever offers guests more adds it here, and says in docs/security.md why it is no header, token or value.
    let known = "context.now context.source-ip diagnostics.note principal.authenticated-at \
                 principal.authentication-methods principal.claim principal.groups principal.id principal.kind \
                 principal.scopes principal.tenant secret.created-at secret.created-by secret.custom secret.exists \
                 secret.expires-at secret.owner secret.secret-type secret.tags secret.updated-at secret.version \
                 secret.written-fields";
    let guests_own = ["diagnostics.configure", "diagnostics.evaluate"];
    offered.retain(|name| !guests_own.contains(&name.as_str()));
    assert_eq!(offered.iter().map(String::as_str).collect::<Vec<_>>().join(" "), known);
}

/// CVE-2025-6011, CVE-2020-35177: what is wrong with a token is not told, beyond that it has expired.
#[tokio::test]
async fn c_29_wrong_tokens_are_answered_alike() {
    let (server, other) = (TestServer::new().await, TestServer::new().await);
    let good = server.root().token;
    let cut = |at: usize| good[..good.len() - at].to_owned();
    let wrong = [
        other.root().token,
        other.client("user:nobody-here").token,
        other.client("sa:root").token,
        cut(1),
        cut(40),
        good.to_lowercase(),
        format!("{good}A"),
        "guess".to_owned(),
        "a.b.c".to_owned(),
    ];
    for route in ROUTES.iter().filter(|route| !matches!(route.opens, Opens::Everyone)) {
        let mut bodies = BTreeSet::new();
        for token in &wrong {
            let answer = route.ask(&server, Some(token)).await;
            let id = answer.header("x-request-id").unwrap();
            let (status, body) = answer.json().await;
            if status == 200 {
                assert_eq!(route.template, "/v1/metrics", "open where it is not configured otherwise");
                continue;
            }
            bodies.insert(format!("{status} {body}").replace(&id, "-"));
        }
        assert!(bodies.len() <= 1, "{}: {bodies:?}", route.template);
    }
}

/// Whoever comes by another spelling of a name draws on the same units: there is no other spelling.
#[tokio::test]
async fn c_27_c_32_refusals_are_counted_by_address() {
    let config = format!("{CONFIG}[rate_limits]\nauth = 20\nread = 0\nwrite = 0\nlist = 0\naudit_query = 0\n");
    let server = TestServer::start(Options { config, ..Options::default() }).await;
    let mut turned_away = 0;
    for guess in 0..60 {
        let token = format!("guess-{guess}");
        let header = HEADERS[guess % HEADERS.len()].split_once(": ").unwrap();
        let asked = server.http.get(format!("{}/v1/secrets/a", server.url)).bearer_auth(&token);
        let status = asked.header(header.0, header.1.lines().next().unwrap()).send().await.unwrap().status();
        turned_away += usize::from(status == 429);
        assert!(status == 401 || status == 429, "{status}");
    }
    // A slow machine may have refilled a unit meanwhile.
    assert!((35..=40).contains(&turned_away), "{turned_away}");
    let admin = server.client_with_token(server.token_with("user:root", "default", &[Scope::Admin], &[]));
    assert_eq!(admin.get("/v1/auth/whoami").await.status(), 200, "a good token is served all the same");
}

/// CVE-2021-32923 and its kin: a token that outlives its time, though it was good a moment ago.
#[tokio::test]
async fn c_33_a_token_ends_on_every_route() {
    let config = CONFIG.to_owned();
    let server = TestServer::start(Options { config, ..Options::default() }).await;
    let issuer =
        TokenIssuer::new(&server.root_key().token_seed(), "portcullis".to_owned(), "portcullis".to_owned()).unwrap();
    let request = TokenRequest {
        subject: "user:root".to_owned(),
        tenant: TenantId::default_tenant(),
        scopes: [Scope::Admin].into_iter().collect(),
        groups: Vec::new(),
        mfa: false,
        lifetime: std::time::Duration::from_mins(1),
    };
    // It ends in two seconds: 60 seconds and five of grace, issued 63 seconds ago.
    let issued = Timestamp::from_micros(SystemClock.now().micros() - 63_000_000);
    let token = issuer.issue(&request, issued, "ends").unwrap();
    let used = ROUTES[0].ask(&server, Some(&token)).await;
    assert_eq!(used.status(), 201, "it was good, and is remembered");
    let begun = std::time::Instant::now();
    let mut met = 0;
    while met == 0 {
        assert!(begun.elapsed().as_secs() < 30, "it lives on");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let answer = server.client_with_token(token.clone()).get("/v1/auth/whoami").await;
        met = usize::from(answer.status() == 401);
    }
    for route in ROUTES.iter().filter(|route| route.opens != Opens::Everyone) {
        route.ask(&server, Some(&token)).await.expect_error(401, "token_expired").await;
        met += 1;
    }
    let admin = server.client_with_token(server.token_with("user:root", "default", &[Scope::Admin], &[]));
    let metrics = admin.get("/v1/metrics").await.0.text().await.unwrap();
    assert!(metrics.contains(&format!("portcullis_failed_authentications_total {met}")), "{metrics}");
}
