//! JWKS servers, most of them evil, on real sockets.

use std::sync::{Mutex, atomic::AtomicUsize};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use super::*;
use crate::auth::jwks::{Patience, Remote};

/// How the server answers.
#[derive(Clone)]
enum Reply {
    /// These bytes, then the end of the connection.
    Bytes(Vec<u8>),
    /// These bytes, then nothing, for ever.
    Stall(Vec<u8>),
    /// These bytes, then more of the same, for ever.
    Endless(Vec<u8>),
    /// The bytes, once the test says so.
    Held(Arc<Notify>, Vec<u8>),
}

struct Server {
    url: String,
    reply: Arc<Mutex<Reply>>,
    hits: Arc<AtomicUsize>,
    asked: Arc<Notify>,
}

impl Server {
    async fn start(reply: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks", listener.local_addr().unwrap());
        let server = Self { url, reply: Arc::new(Mutex::new(reply)), hits: Arc::default(), asked: Arc::default() };
        let (reply, hits, asked) = (server.reply.clone(), server.hits.clone(), server.asked.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                hits.fetch_add(1, Ordering::SeqCst);
                let reply = reply.lock().unwrap().clone();
                tokio::spawn(serve(stream, reply, asked.clone()));
            }
        });
        server
    }

    fn answer(&self, reply: Reply) {
        *self.reply.lock().unwrap() = reply;
    }

    fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }

    fn authenticator(&self, clock: &Arc<TestClock>) -> Authenticator {
        let value =
            json!({"issuer": ISSUER, "audience": ["portcullis"], "algorithm": "EdDSA", "jwks_url": self.url.as_str()});
        Authenticator::new(None, &[settings(value)], clock.clone()).unwrap()
    }

    fn remote(&self, clock: &Arc<TestClock>, patience: Patience) -> Arc<Remote> {
        Remote::new(self.url.parse().unwrap(), Algorithm::EdDSA, clock.clone(), patience).unwrap()
    }
}

/// Reads a request to its end, then answers; a client that leaves ends it.
async fn serve(mut stream: TcpStream, reply: Reply, asked: Arc<Notify>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let Ok(byte @ 0..=255) = stream.read_u8().await else { return };
        request.push(byte);
    }
    asked.notify_one();
    match reply {
        Reply::Bytes(bytes) => drop(stream.write_all(&bytes).await),
        Reply::Stall(bytes) => {
            drop(stream.write_all(&bytes).await);
            drop(stream.read_u8().await);
        }
        Reply::Endless(bytes) => while stream.write_all(&bytes).await.is_ok() {},
        Reply::Held(go, bytes) => {
            go.notified().await;
            drop(stream.write_all(&bytes).await);
        }
    }
}

fn http(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()).into_bytes()
}

fn set(keys: &[Value]) -> Vec<u8> {
    http("200 OK", &json!({"keys": keys}).to_string())
}

fn publishing(keys: &[(&str, &Key)]) -> Reply {
    Reply::Bytes(set(&keys.iter().map(|(kid, key)| key.jwk(kid)).collect::<Vec<_>>()))
}

/// A token that outlives every step of the clock in these tests.
fn lasting(key: &Key, kid: &str) -> String {
    signed(key, &named(Algorithm::EdDSA, kid), &claims_with(&json!({"exp": NOW + 1_000_000})))
}

fn ed() -> Key {
    Key::generate(Algorithm::EdDSA)
}

const MINUTE: Duration = Duration::from_mins(1);

#[tokio::test]
async fn keys_are_fetched_once_for_many() {
    let (clock, key) = (TestClock::new(), ed());
    let server = Server::start(publishing(&[("a", &key)])).await;
    let authenticator = Arc::new(server.authenticator(&clock));
    assert_eq!(server.hits(), 0, "nothing is fetched before it is asked for");
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..50 {
        let authenticator = authenticator.clone();
        let payload = claims_with(&json!({"jti": number.to_string()}));
        let token = signed(&key, &named(Algorithm::EdDSA, "a"), &payload);
        tasks.spawn(async move { authenticator.authenticate(&token).await.is_ok() });
    }
    assert!(tasks.join_all().await.into_iter().all(|accepted| accepted));
    assert_eq!(server.hits(), 1);
}

#[tokio::test]
async fn warming_up_fetches_and_survives_a_dead_server() {
    let (clock, key) = (TestClock::new(), ed());
    let server = Server::start(publishing(&[("a", &key)])).await;
    let authenticator = server.authenticator(&clock);
    authenticator.warm_up().await;
    assert_eq!((server.hits(), refusal(&authenticator, &lasting(&key, "a")).await), (1, None));
    assert_eq!(server.hits(), 1);
    let value = json!({"issuer": ISSUER, "audience": ["p"], "algorithm": "EdDSA", "jwks_url": "http://127.0.0.1:1/"});
    Authenticator::new(None, &[settings(value)], clock).unwrap().warm_up().await;
}

/// jwkset CVE-2025-22149: a refresh that only ever added keys.
#[tokio::test]
async fn a_removed_key_dies_with_the_refresh_and_so_does_what_it_verified() {
    let (clock, old, new) = (TestClock::new(), ed(), ed());
    let server = Server::start(publishing(&[("old", &old)])).await;
    let authenticator = server.authenticator(&clock);
    let (before, after) = (lasting(&old, "old"), lasting(&new, "new"));
    assert_eq!(refusal(&authenticator, &before).await, None);
    server.answer(publishing(&[("new", &new)]));
    clock.advance(MINUTE * 4);
    assert_eq!(refusal(&authenticator, &before).await, None);
    clock.advance(MINUTE);
    assert_eq!(refusal(&authenticator, &before).await, Some(AuthError::Invalid("kid")));
    assert_eq!(refusal(&authenticator, &after).await, None);
    assert_eq!(server.hits(), 2);
    server.answer(publishing(&[]));
    clock.advance(MINUTE * 5);
    assert_eq!(refusal(&authenticator, &after).await, Some(AuthError::Invalid("kid")), "an empty set revokes all");
}

#[tokio::test]
async fn a_key_that_changed_under_its_name_voids_what_it_verified() {
    let (clock, old, new) = (TestClock::new(), ed(), ed());
    let server = Server::start(publishing(&[("a", &old)])).await;
    let authenticator = server.authenticator(&clock);
    assert_eq!(refusal(&authenticator, &lasting(&old, "a")).await, None);
    server.answer(publishing(&[("a", &new)]));
    clock.advance(MINUTE * 5);
    assert_eq!(refusal(&authenticator, &lasting(&old, "a")).await, Some(AuthError::Invalid("signature")));
    assert_eq!(refusal(&authenticator, &lasting(&new, "a")).await, None);
}

#[tokio::test]
async fn an_unknown_kid_brings_the_refresh_forward() {
    let (clock, old, new) = (TestClock::new(), ed(), ed());
    let server = Server::start(publishing(&[("old", &old)])).await;
    let authenticator = server.authenticator(&clock);
    assert_eq!(refusal(&authenticator, &lasting(&old, "old")).await, None);
    server.answer(publishing(&[("old", &old), ("new", &new)]));
    clock.advance(Duration::from_secs(29));
    assert_eq!(refusal(&authenticator, &lasting(&new, "new")).await, Some(AuthError::Invalid("kid")));
    clock.advance(Duration::from_secs(1));
    assert_eq!(refusal(&authenticator, &lasting(&new, "new")).await, None);
    assert_eq!(server.hits(), 2);
}

#[tokio::test]
async fn a_flood_of_kids_fetches_once_in_thirty_seconds() {
    let (clock, key) = (TestClock::new(), ed());
    let server = Server::start(publishing(&[("a", &key)])).await;
    let authenticator = server.authenticator(&clock);
    let good = lasting(&key, "a");
    for second in 0..300 {
        for number in 0..5 {
            let flood = lasting(&key, &format!("{second}-{number}"));
            assert_eq!(refusal(&authenticator, &flood).await, Some(AuthError::Invalid("kid")));
        }
        assert_eq!(refusal(&authenticator, &good).await, None);
        clock.advance(Duration::from_secs(1));
    }
    assert_eq!(server.hits(), 10);
}

#[tokio::test]
async fn old_keys_serve_an_hour_without_their_server() {
    let (clock, key) = (TestClock::new(), ed());
    let server = Server::start(publishing(&[("a", &key)])).await;
    let authenticator = server.authenticator(&clock);
    let token = lasting(&key, "a");
    assert_eq!(refusal(&authenticator, &token).await, None);
    server.answer(Reply::Bytes(http("500 Internal Server Error", "")));
    for _ in 0..59 {
        clock.advance(MINUTE);
        assert_eq!(refusal(&authenticator, &token).await, None);
    }
    clock.advance(MINUTE);
    assert_eq!(refusal(&authenticator, &token).await, Some(AuthError::Unavailable));
    let another = signed(&key, &named(Algorithm::EdDSA, "a"), &claims_with(&json!({"exp": NOW + 9_999})));
    assert_eq!(refusal(&authenticator, &another).await, Some(AuthError::Unavailable));
    server.answer(publishing(&[("a", &key)]));
    clock.advance(MINUTE);
    assert_eq!(refusal(&authenticator, &token).await, None);
}

/// While the server is away nobody waits for it; once it is back, its word counts at once.
#[tokio::test]
async fn kept_keys_are_refreshed_behind() {
    let (clock, old, new) = (TestClock::new(), ed(), ed());
    let server = Server::start(publishing(&[("old", &old)])).await;
    let authenticator = server.authenticator(&clock);
    let token = lasting(&old, "old");
    assert_eq!(refusal(&authenticator, &token).await, None);
    server.asked.notified().await;
    server.answer(Reply::Bytes(http("500 Internal Server Error", "")));
    clock.advance(MINUTE * 5);
    assert_eq!(refusal(&authenticator, &token).await, None);
    server.asked.notified().await;
    let go = Arc::new(Notify::new());
    server.answer(Reply::Held(go.clone(), set(&[old.jwk("old"), new.jwk("new")])));
    clock.advance(MINUTE);
    tokio::select! {
        biased;
        refused = refusal(&authenticator, &token) => assert_eq!(refused, None),
        () = async {} => panic!("waited for the server"),
    }
    server.asked.notified().await;
    go.notify_one();
    assert_eq!(refusal(&authenticator, &lasting(&new, "new")).await, None);
    assert_eq!(server.hits(), 3);
    server.answer(publishing(&[("new", &new)]));
    clock.advance(MINUTE * 5);
    assert_eq!(refusal(&authenticator, &token).await, Some(AuthError::Invalid("kid")));
}

#[tokio::test]
async fn the_same_keys_are_the_same_edition() {
    let (clock, one, two) = (TestClock::new(), ed(), ed());
    let server = Server::start(publishing(&[("a", &one)])).await;
    let remote = server.remote(&clock, Patience::default());
    let mut editions = Vec::new();
    for key in [&one, &one, &two, &one] {
        server.answer(publishing(&[("a", key)]));
        editions.push(remote.current().await.ok().unwrap().number);
        clock.advance(MINUTE * 5);
    }
    assert_eq!((editions, server.hits()), (vec![1, 1, 2, 3], 4));
}

/// What a server says was true when it was asked, not when its answer arrived.
#[tokio::test]
async fn keys_age_from_when_they_were_asked_for() {
    let (clock, key) = (TestClock::new(), ed());
    let go = Arc::new(Notify::new());
    let server = Server::start(Reply::Held(go.clone(), set(&[key.jwk("a")]))).await;
    let remote = server.remote(&clock, Patience::default());
    let first = tokio::spawn({
        let remote = remote.clone();
        async move { remote.current().await.is_ok() }
    });
    server.asked.notified().await;
    clock.advance(MINUTE * 5);
    server.answer(publishing(&[("a", &key)]));
    go.notify_one();
    assert!(first.await.unwrap());
    assert!(remote.current().await.is_ok());
    assert_eq!(server.hits(), 2);
}

#[tokio::test]
async fn without_keys_a_token_is_neither_right_nor_wrong() {
    let (clock, key) = (TestClock::new(), ed());
    let server = Server::start(Reply::Bytes(http("503 Service Unavailable", ""))).await;
    let authenticator = server.authenticator(&clock);
    for _ in 0..20 {
        assert_eq!(refusal(&authenticator, &lasting(&key, "a")).await, Some(AuthError::Unavailable));
    }
    assert_eq!(server.hits(), 1);
    server.answer(publishing(&[("a", &key)]));
    clock.advance(Duration::from_secs(30));
    assert_eq!(refusal(&authenticator, &lasting(&key, "a")).await, None);
}

#[tokio::test]
async fn tokens_that_are_wrong_anyway_cause_no_fetch() {
    let (clock, key) = (TestClock::new(), ed());
    let server = Server::start(publishing(&[("a", &key)])).await;
    let authenticator = server.authenticator(&clock);
    let url = server.url.as_str();
    for (header, changes) in [
        (json!({"alg": "EdDSA", "jku": url}), json!({})),
        (json!({"alg": "EdDSA", "x5u": url}), json!({})),
        (json!({"alg": "HS256", "kid": "a"}), json!({})),
        (json!({"alg": "EdDSA", "kid": url}), json!({"iss": url})),
        (json!({"alg": "EdDSA"}), json!({"iss": [ISSUER]})),
    ] {
        let token = signed(&key, &header.to_string(), &claims_with(&changes));
        assert!(matches!(refusal(&authenticator, &token).await, Some(AuthError::Invalid(_))));
    }
    assert_eq!(server.hits(), 0);
}

/// Centrifugo CVE-2026-32301, Istio CVE-2026-41413: the server's answer sends the fetch elsewhere.
#[tokio::test]
async fn redirects_are_not_followed() {
    let (clock, key) = (TestClock::new(), ed());
    let target = Server::start(publishing(&[("a", &key)])).await;
    for status in ["301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let reply = format!("HTTP/1.1 {status}\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", target.url);
        let server = Server::start(Reply::Bytes(reply.into_bytes())).await;
        let authenticator = server.authenticator(&clock);
        assert_eq!(refusal(&authenticator, &lasting(&key, "a")).await, Some(AuthError::Unavailable), "{status}");
        assert_eq!(server.hits(), 1);
    }
    assert_eq!(target.hits(), 0);
}

#[tokio::test]
async fn broken_answers_are_no_keys() {
    let (clock, key) = (TestClock::new(), ed());
    let good = json!({"keys": [key.jwk("a")]}).to_string();
    let many = |count: usize| json!({"keys": vec![key.jwk("a"); count]}).to_string();
    let long = format!("{good}{}", " ".repeat(256 * 1024));
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x1_0000));
    let table = [
        ("404", Reply::Bytes(http("404 Not Found", &good))),
        ("201", Reply::Bytes(http("201 Created", &good))),
        ("no body", Reply::Bytes(http("200 OK", ""))),
        ("text", Reply::Bytes(http("200 OK", "<html>"))),
        ("array", Reply::Bytes(http("200 OK", "[]"))),
        ("no keys", Reply::Bytes(http("200 OK", "{}"))),
        ("keys twice", Reply::Bytes(http("200 OK", r#"{"keys":[],"keys":[]}"#))),
        ("keys of a wrong type", Reply::Bytes(http("200 OK", r#"{"keys":{}}"#))),
        ("garbage after", Reply::Bytes(http("200 OK", &format!("{good}x")))),
        ("101 keys", Reply::Bytes(http("200 OK", &many(101)))),
        ("nested", Reply::Bytes(http("200 OK", &format!(r#"{{"keys":[{}"#, "[".repeat(200_000))))),
        ("too long", Reply::Bytes(http("200 OK", &long))),
        ("endless", Reply::Endless([b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), chunk.into_bytes()].concat())),
        ("cut short", Reply::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n{".to_vec())),
        ("not http", Reply::Bytes(b"SSH-2.0-OpenSSH\r\n".to_vec())),
        ("endless headers", Reply::Endless(b"HTTP/1.1 200 OK\r\na: b\r\n".to_vec())),
        ("hangs up", Reply::Bytes(vec![])),
    ];
    for (name, reply) in table {
        let server = Server::start(reply).await;
        let authenticator = server.authenticator(&clock);
        assert_eq!(refusal(&authenticator, &lasting(&key, "a")).await, Some(AuthError::Unavailable), "{name}");
    }
    assert!(many(100).len() < 256 * 1024);
}

#[tokio::test]
async fn slow_answers_are_no_keys() {
    let patience = Patience { connect: Duration::from_millis(200), total: Duration::from_millis(200) };
    for begun in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"] {
        let server = Server::start(Reply::Stall(begun.into())).await;
        assert!(
            matches!(server.remote(&TestClock::new(), patience).current().await, Err(AuthError::Unavailable)),
            "{begun:?}"
        );
    }
}

/// Someone who hangs up early must not cost everybody else the interval.
#[tokio::test]
async fn a_fetch_outlives_whoever_began_it() {
    let (clock, key) = (TestClock::new(), ed());
    let go = Arc::new(Notify::new());
    let server = Server::start(Reply::Held(go.clone(), set(&[key.jwk("a")]))).await;
    let authenticator = Arc::new(server.authenticator(&clock));
    let token = lasting(&key, "a");
    let first = tokio::spawn({
        let (authenticator, token) = (authenticator.clone(), token.clone());
        async move { authenticator.authenticate(&token).await.is_ok() }
    });
    server.asked.notified().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    go.notify_one();
    assert_eq!(refusal(&authenticator, &token).await, None);
    assert_eq!(server.hits(), 1);
}

#[tokio::test]
async fn odd_keys_are_left_out() {
    let (clock, key) = (TestClock::new(), ed());
    let with = |name: &str, value: Value| {
        let mut jwk = key.jwk("odd");
        jwk[name] = value;
        jwk
    };
    let odd = [
        json!(null),
        json!(1),
        json!("key"),
        json!([]),
        json!({}),
        json!({"kty": "OKP"}),
        json!({"kty": "quantum", "kid": "odd", "x": "AAAA"}),
        with("kty", json!("EC")),
        with("kty", json!("okp")),
        with("kty", json!(null)),
        with("kty", json!(["OKP"])),
        with("crv", json!("Ed448")),
        with("crv", json!("X25519")),
        with("crv", json!(null)),
        with("x", json!(null)),
        with("x", json!("")),
        with("x", json!("!!!")),
        with("x", json!(b64([1; 31]))),
        with("x", json!(b64([1; 33]))),
        with("x", json!(format!("{}=", key.jwk("a")["x"].as_str().unwrap()))),
        with("use", json!("enc")),
        with("use", json!("")),
        with("use", json!(1)),
        with("key_ops", json!(["sign"])),
        with("key_ops", json!([])),
        with("key_ops", json!("verify")),
        with("alg", json!("ES256")),
        with("alg", json!("none")),
        with("alg", json!(7)),
        with("d", json!(b64([1; 32]))),
        with("kid", json!(1)),
        RSA.jwk("odd"),
        EC.jwk("odd"),
        SECRET.jwk("odd"),
    ];
    for one in odd {
        let server = Server::start(Reply::Bytes(set(&[one.clone(), key.jwk("good")]))).await;
        let authenticator = server.authenticator(&clock);
        assert_eq!(refusal(&authenticator, &lasting(&key, "good")).await, None, "{one}");
        assert_eq!(refusal(&authenticator, &lasting(&key, "odd")).await, Some(AuthError::Invalid("kid")), "{one}");
    }
    for (name, value) in [("use", "sig"), ("alg", "EdDSA"), ("x5t", "AAAA")] {
        let server = Server::start(Reply::Bytes(set(&[with(name, json!(value))]))).await;
        assert_eq!(refusal(&server.authenticator(&clock), &lasting(&key, "odd")).await, None, "{name}");
    }
}

/// For a point of low order, one signature fits every message.
#[tokio::test]
async fn weak_points_are_left_out() {
    let (clock, key) = (TestClock::new(), ed());
    let mut identity = [0; 32];
    identity[0] = 1;
    let mut minus_one = [0xff; 32];
    (minus_one[0], minus_one[31]) = (0xec, 0x7f);
    // p + 1: the identity in a spelling that is not canonical.
    let respelt = minus_one.map(|byte| if byte == 0xec { 0xee } else { byte });
    for point in [[0; 32], identity, minus_one, respelt] {
        let weak = json!({"kty": "OKP", "crv": "Ed25519", "kid": "weak", "x": b64(point)});
        let server = Server::start(Reply::Bytes(set(&[weak, key.jwk("good")]))).await;
        let authenticator = server.authenticator(&clock);
        let message = format!("{}.{}", b64(named(Algorithm::EdDSA, "weak")), b64(claims().to_string()));
        let token = format!("{message}.{}", b64([identity, [0; 32]].concat()));
        assert_eq!(refusal(&authenticator, &token).await, Some(AuthError::Invalid("kid")));
    }
}

/// Points off the curve, moduli of zero, exponents that prove nothing: no panic, no acceptance.
#[tokio::test]
async fn keys_that_prove_nothing_verify_nothing() {
    let clock = TestClock::new();
    let zeros = b64([0; 32]);
    let table = [
        (Algorithm::ES256, json!({"kty": "EC", "crv": "P-256", "kid": "a", "x": zeros, "y": zeros})),
        (Algorithm::ES256, json!({"kty": "EC", "crv": "P-256", "kid": "a", "x": b64([0xff; 32]), "y": zeros})),
        (Algorithm::RS256, json!({"kty": "RSA", "kid": "a", "n": b64([0; 256]), "e": "AQAB"})),
        (Algorithm::RS256, json!({"kty": "RSA", "kid": "a", "n": b64([0xff; 256]), "e": "AQ"})),
        (Algorithm::RS256, json!({"kty": "RSA", "kid": "a", "n": b64([0xff; 256]), "e": "AA"})),
        (Algorithm::RS256, json!({"kty": "RSA", "kid": "a", "n": b64([0xff; 1_024]), "e": b64([0xff; 4])})),
    ];
    for (algorithm, jwk) in table {
        let file = file(json!({"keys": [jwk]}).to_string());
        let value = json!({
            "issuer": ISSUER, "audience": ["portcullis"], "algorithm": algorithm.as_str(), "jwks_file": file.path(),
        });
        let authenticator = Authenticator::new(None, &[settings(value)], clock.clone()).unwrap();
        let message = format!("{}.{}", b64(named(algorithm, "a")), b64(claims().to_string()));
        for mark in [vec![0; 64], vec![0; 256], vec![1; 256], padded_hash(&message), vec![0xff; 1_024]] {
            let token = format!("{message}.{}", b64(mark));
            assert_eq!(refusal(&authenticator, &token).await, Some(AuthError::Invalid("signature")), "{jwk}");
        }
    }
}

/// What an RSA key with the exponent 1 would take for a signature: PKCS #1 padding around the hash itself.
fn padded_hash(message: &str) -> Vec<u8> {
    let info = b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20";
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, message.as_bytes());
    let padding = vec![0xff; 256 - 3 - info.len() - 32];
    [&[0, 1], padding.as_slice(), &[0], info, hash.as_ref()].concat()
}

#[tokio::test]
async fn a_name_that_two_keys_share_names_neither() {
    let (clock, one, two, three) = (TestClock::new(), ed(), ed(), ed());
    let server = Server::start(publishing(&[("same", &one), ("same", &two), ("other", &three)])).await;
    let authenticator = server.authenticator(&clock);
    assert_eq!(refusal(&authenticator, &lasting(&one, "same")).await, Some(AuthError::Invalid("kid")));
    assert_eq!(refusal(&authenticator, &lasting(&two, "same")).await, Some(AuthError::Invalid("kid")));
    assert_eq!(refusal(&authenticator, &lasting(&three, "other")).await, None);
}

#[tokio::test]
async fn a_kid_may_be_left_out_only_where_there_is_one_key() {
    let (clock, one, two) = (TestClock::new(), ed(), ed());
    let mut nameless = one.jwk("x");
    nameless.as_object_mut().unwrap().remove("kid");
    let without = || signed(&one, &header(Algorithm::EdDSA), &claims().to_string());
    let table = [
        (vec![one.jwk("a")], without(), true),
        (vec![one.jwk("a"), two.jwk("b")], without(), false),
        (vec![nameless.clone()], without(), true),
        (vec![nameless.clone()], lasting(&one, "any"), true),
        (vec![nameless.clone(), two.jwk("b")], lasting(&one, "any"), false),
        (vec![nameless.clone(), nameless.clone()], without(), false),
        (vec![one.jwk("a")], lasting(&one, "A"), false),
    ];
    for (keys, token, accepted) in table {
        let server = Server::start(Reply::Bytes(set(&keys))).await;
        assert_eq!(refusal(&server.authenticator(&clock), &token).await.is_none(), accepted, "{keys:?}");
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_keeps_no_key_alive() {
    let (clock, old, new) = (TestClock::new(), ed(), ed());
    let server = Server::start(publishing(&[("old", &old)])).await;
    let authenticator = server.authenticator(&clock);
    assert_eq!(refusal(&authenticator, &lasting(&old, "old")).await, None);
    server.answer(publishing(&[("new", &new)]));
    clock.set(NOW - 86_400);
    assert_eq!(refusal(&authenticator, &lasting(&old, "old")).await, Some(AuthError::Invalid("kid")));
}
