//! More than a request may be (2d of the list), on every route.

use portcullis::domain::Scope;
use reqwest::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::routes::{CONFIG, Opens, ROUTES};
use crate::{
    raw::{exchange, request},
    support::{Client, Options, TestServer},
};

async fn server() -> TestServer {
    TestServer::start(Options { config: CONFIG.to_owned(), ..Options::default() }).await
}

/// Somebody whom every route lets in.
fn admin(server: &TestServer) -> Client {
    server.client_with_token(server.token_with("user:root", "default", &[Scope::Admin], &[]))
}

/// CVE-2023-6337: a body without a bound; CVE-2025-6203: one that is worked on before anything is known of its sender.
#[tokio::test]
async fn c_49_c_50_no_route_takes_a_body_beyond_its_limit() {
    let server = server().await;
    let filler = "x".repeat(4 * 1024 * 1024);
    let body = format!("{{\"data\":{{\"k\":\"{filler}\"}}}}");
    let (root, limited) =
        (server.token_with("user:root", "default", &[portcullis::domain::Scope::Admin], &[]), ["", "x"]);
    // Where the server is sealed there is nobody to ask.
    for route in ROUTES.iter().filter(|route| route.template != "/v1/seal") {
        for token in limited.into_iter().chain([root.as_str()]) {
            let bytes = request(route.method, route.target.as_bytes(), token, Some(body.as_bytes()));
            let answer = exchange(&server, &bytes).await;
            let expected = match (route.opens, token == root, route.body) {
                (Opens::Everyone, ..) => 200,
                // Whoever is not let in is told so before a byte of the body is looked at.
                (_, false, _) => 401,
                (_, true, Some(_)) => 413,
                // A route that wants no body looks at none.
                (_, true, None) => answer.status,
            };
            assert_eq!(answer.status, expected, "{} {}", route.method, route.target);
            assert!(answer.status < 500 && answer.body.len() < 128 * 1024, "{} {}", route.method, route.target);
        }
    }
}

/// CVE-2025-6203 and CVE-2025-59043: small bodies that are much work, on every route that takes one.
#[tokio::test]
async fn c_49_json_bombs_are_refused() {
    let server = server().await;
    let root = admin(&server);
    let bombs = [
        "[".repeat(100_000),
        "{\"a\":".repeat(10_000),
        format!("{}{}", "[".repeat(33), "]".repeat(33)),
        format!("{{\"a\":{}1{}}}", "[".repeat(32), "]".repeat(32)),
        format!("{{{}}}", vec!["\"a\":1"; 10_000].join(",")),
        format!("[{}]", vec!["{}"; 30_000].join(",")),
        format!("[{}]", vec!["\"\""; 30_000].join(",")),
        format!("{{\"n\":{}}}", "9".repeat(100_000)),
        format!("{{\"n\":1e{}}}", "9".repeat(1_000)),
        format!("\"{}\"", "\\u0041".repeat(20_000)),
        format!("{{\"\\ud800\":\"{}\"}}", "\\udc00".repeat(1_000)),
        " ".repeat(120_000),
        String::new(),
    ];
    for route in ROUTES.iter().filter(|route| route.body.is_some()) {
        for bomb in &bombs {
            let begun = std::time::Instant::now();
            let method: Method = route.method.parse().unwrap();
            let asked = root.request(method, route.target).header("content-type", "application/json");
            let answer = asked.body(bomb.clone()).send().await.unwrap();
            let what = format!("{} {} {:.20}", route.method, route.target, bomb);
            assert!(matches!(answer.status().as_u16(), 400 | 413 | 422), "{what}: {}", answer.status());
            assert!(begun.elapsed().as_secs() < 2, "{what}: {:?}", begun.elapsed());
        }
    }
    assert_eq!(root.get("/v1/secrets").await.json().await.1["secrets"], json!([]));
}

/// CVE-2026-39396: what is small on the wire and large in memory. Nothing is inflated.
#[tokio::test]
async fn c_56_nothing_is_inflated() {
    let server = server().await;
    // An empty gzip member, a zlib stream, and JSON that says that it is one of them.
    let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    for route in ROUTES.iter().filter(|route| route.body.is_some()) {
        for encoding in ["gzip", "deflate", "br", "zstd", "gzip, gzip"] {
            let method: Method = route.method.parse().unwrap();
            let asked = admin(&server).request(method, route.target).header("content-type", "application/json");
            let answer = asked.header("content-encoding", encoding).body(gzip.to_vec()).send().await.unwrap();
            assert_eq!(answer.status(), 400, "{} {} {encoding}", route.method, route.target);
            assert!(answer.headers().get("content-encoding").is_none());
        }
    }
}

/// h2 RUSTSEC-2026-0258 and its kin: a protocol that is not spoken cannot be attacked.
#[tokio::test]
async fn c_51_http_2_is_not_spoken() {
    let server = server().await;
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    let settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], settings].concat();
    let upgrade = "GET /v1/health HTTP/1.1\r\nHost: vault\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: \
                   h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(&preface).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    assert!(!answer.starts_with(b"\0\0"), "no frame: {answer:?}");
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4") || answer.starts_with(b"HTTP/1.1 505"));
    let answer = exchange(&server, upgrade.as_bytes()).await;
    assert_eq!((answer.status, answer.head.contains("upgrade")), (200, false));
}
