//! Real sockets against [`serve`], with limits of milliseconds. Each test fails by its own clock ([`soon`]).

use std::{
    fs,
    future::pending,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
    task::JoinHandle,
    time::{Instant, interval, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, pki_types::ServerName},
};
use tokio_util::sync::CancellationToken;

use super::*;

const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const FAR: Duration = Duration::from_mins(1);
const SHORT: Duration = Duration::from_millis(100);
const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

/// No limit is near; each test shortens the one it is about.
fn lenient() -> ServeLimits {
    ServeLimits {
        header_timeout: FAR,
        body_timeout: FAR,
        idle_timeout: FAR,
        write_timeout: FAR,
        tls_handshake_timeout: FAR,
        max_connections: 100,
        drain_timeout: FAR,
    }
}

struct Running {
    address: SocketAddr,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl Running {
    fn start(app: Router, limits: ServeLimits) -> Self {
        Self::start_with(app, limits, None)
    }

    fn start_with(app: Router, limits: ServeLimits, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = listen(LOCAL).unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listener, tls, app, limits, shutdown.clone()));
        Self { address, shutdown, server }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

fn hello() -> Router {
    Router::new().route("/", get(async || "hello")).route("/echo", post(async |body: Bytes| body))
}

/// More than a listener has room for by its library's default. Where there is no room, the client's system tries again
/// after a second.
#[tokio::test]
async fn many_wait_to_be_accepted() {
    let allowed: usize = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    if allowed <= 1_024 {
        return eprintln!("not tested: this system lets {allowed} wait");
    }
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let listener = listen(LOCAL).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    for _ in 0..allowed.min(1_500) {
        let connecting = timeout(Duration::from_millis(900), TcpStream::connect(address)).await;
        waiting.push(connecting.unwrap_or_else(|_| panic!("the one after {} finds no room", waiting.len())).unwrap());
    }
}

/// What a test waits for must come long before this.
async fn soon<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(20), future).await.expect("in time")
}

/// Everything until the server closes; a reset counts as closing.
async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let _ = soon(stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends a request and reads until the text that ends its answer.
async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &[u8], end: &str) -> String {
    stream.write_all(request).await.unwrap();
    let mut text = String::new();
    while !text.ends_with(end) {
        let byte = soon(stream.read_u8()).await.unwrap_or_else(|error| panic!("{error} after {text:?}"));
        text.push(char::from(byte));
    }
    text
}

/// Sends one byte of `text` every few milliseconds until the server closes or the text ends. Whether it closed.
async fn drip(stream: TcpStream, text: &[u8]) -> bool {
    let (mut reader, mut writer) = stream.into_split();
    let mut tick = interval(Duration::from_millis(10));
    let dripping = async {
        for byte in text {
            tick.tick().await;
            if writer.write_all(&[*byte]).await.is_err() {
                return true;
            }
        }
        false
    };
    tokio::select! {
        cut = dripping => cut,
        _ = rest(&mut reader) => true,
    }
}

#[tokio::test]
async fn a_client_that_says_nothing_is_closed() {
    let running = Running::start(hello(), ServeLimits { header_timeout: SHORT, ..lenient() });
    let begun = Instant::now();
    assert_eq!(rest(&mut running.connect().await).await, "");
    assert!(begun.elapsed() >= SHORT);
}

#[tokio::test]
async fn a_dripping_first_head_is_closed() {
    let running = Running::start(hello(), ServeLimits { header_timeout: SHORT, ..lenient() });
    let begun = Instant::now();
    assert!(drip(running.connect().await, &b"GET / HTTP/1.1\r\nx: ".repeat(100)).await);
    assert!(begun.elapsed() >= SHORT);
}

#[tokio::test]
async fn a_dripping_later_head_is_closed() {
    let running = Running::start(hello(), ServeLimits { header_timeout: 3 * SHORT, ..lenient() });
    let mut stream = running.connect().await;
    exchange(&mut stream, GET, "hello").await;
    assert!(drip(stream, &b"GET / HTTP/1.1\r\nx: ".repeat(100)).await);
}

#[tokio::test]
async fn a_dripping_body_is_closed() {
    let running = Running::start(hello(), ServeLimits { body_timeout: SHORT, ..lenient() });
    let mut stream = running.connect().await;
    stream.write_all(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 2000\r\n\r\n").await.unwrap();
    assert!(drip(stream, &[b'a'; 2000]).await);
}

#[tokio::test]
async fn an_idle_connection_lives_past_the_header_timeout_and_ends_at_the_idle_timeout() {
    let limits = ServeLimits { header_timeout: 3 * SHORT, idle_timeout: 9 * SHORT, ..lenient() };
    let running = Running::start(hello(), limits);
    let mut stream = running.connect().await;
    exchange(&mut stream, GET, "hello").await;
    let idle = Instant::now();
    assert_eq!(rest(&mut stream).await, "");
    assert!(idle.elapsed() >= 8 * SHORT, "{:?}", idle.elapsed());
}

#[tokio::test]
async fn a_kept_alive_connection_serves_again_and_again() {
    let limits = ServeLimits { header_timeout: 3 * SHORT, ..lenient() };
    let running = Running::start(hello(), limits);
    let mut stream = running.connect().await;
    let mut tick = interval(4 * SHORT);
    for _ in 0..4 {
        tick.tick().await;
        // In two pieces, so that each head waits, on a clock of its own.
        let (line, headers) = GET.split_at(16);
        stream.write_all(line).await.unwrap();
        assert!(timeout(SHORT / 5, stream.read_u8()).await.is_err());
        exchange(&mut stream, headers, "hello").await;
    }
}

#[tokio::test]
async fn a_handler_may_take_longer_than_any_limit_on_the_client() {
    let slow = Router::new().route(
        "/",
        get(async || {
            tokio::time::sleep(5 * SHORT).await;
            "slow"
        }),
    );
    let limits = ServeLimits {
        header_timeout: 3 * SHORT,
        body_timeout: SHORT,
        idle_timeout: 3 * SHORT,
        write_timeout: SHORT,
        ..lenient()
    };
    let running = Running::start(slow, limits);
    exchange(&mut running.connect().await, GET, "slow").await;
}

/// The cut is seen from the only place that is not the deaf client's socket: the one slot becomes free.
#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let large = hello().route("/large", get(async || vec![b'a'; 64 << 20]));
    let limits = ServeLimits { write_timeout: SHORT, max_connections: 1, ..lenient() };
    let running = Running::start(large, limits);
    let mut deaf = running.connect().await;
    deaf.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    exchange(&mut running.connect().await, GET, "hello").await;
    drop(deaf);
}

#[tokio::test]
async fn accepting_pauses_at_the_cap() {
    let running = Running::start(hello(), ServeLimits { max_connections: 1, ..lenient() });
    let mut first = running.connect().await;
    exchange(&mut first, GET, "hello").await;
    let mut second = running.connect().await;
    second.write_all(GET).await.unwrap();
    assert!(timeout(SHORT, second.read_u8()).await.is_err(), "the second waits while the first is open");
    drop(first);
    assert_eq!(soon(second.read_u8()).await.unwrap(), b'H');
}

#[tokio::test]
async fn heads_are_limited() {
    let running = Running::start(hello(), lenient());
    let head = |headers: String| format!("GET / HTTP/1.1\r\nhost: x\r\n{headers}\r\n").into_bytes();
    let many = |count: usize| "x: y\r\n".repeat(count);
    let large = |bytes: usize| format!("x: {}\r\n", "y".repeat(bytes));
    exchange(&mut running.connect().await, &head(many(99)), "hello").await;
    exchange(&mut running.connect().await, &head(large(MAX_HEAD_BYTES - 1000)), "hello").await;
    for refused in [many(100), large(MAX_HEAD_BYTES), large(4 * MAX_BUFFER_BYTES)] {
        let mut stream = running.connect().await;
        let _ = stream.write_all(&head(refused)).await;
        let answer = rest(&mut stream).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
        assert!(!answer.contains("hello"));
    }
}

#[tokio::test]
async fn handlers_know_the_client() {
    let app = Router::new().route("/", get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| format!("{{{peer}}}")));
    let running = Running::start(app, lenient());
    let mut stream = running.connect().await;
    let expected = format!("{{{}}}", stream.local_addr().unwrap());
    assert!(exchange(&mut stream, GET, "}").await.ends_with(&expected));
}

#[tokio::test]
async fn bodies_arrive_whole() {
    let app = hello().layer(DefaultBodyLimit::disable());
    let running = Running::start(app, lenient());
    let body = "a".repeat(1 << 20) + "z";
    let request = format!("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut stream = running.connect().await;
    assert!(exchange(&mut stream, request.as_bytes(), "z").await.ends_with(&body));
}

#[tokio::test]
async fn a_panic_costs_one_connection() {
    let app = hello().route("/panic", get(async || -> &str { panic!("on purpose") }));
    let running = Running::start(app, lenient());
    let mut unlucky = running.connect().await;
    unlucky.write_all(b"GET /panic HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_eq!(rest(&mut unlucky).await, "");
    exchange(&mut running.connect().await, GET, "hello").await;
}

/// An app whose `/wait` says that it has begun and answers when told to.
fn waiting() -> (Router, Arc<Notify>, Arc<Notify>) {
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let signals = (Arc::clone(&begun), Arc::clone(&go_on));
    let wait = get(async move || {
        signals.0.notify_one();
        signals.1.notified().await;
        "done"
    });
    (hello().route("/wait", wait), begun, go_on)
}

#[tokio::test]
async fn shutdown_finishes_requests_in_flight_and_closes_the_rest() {
    let (app, begun, go_on) = waiting();
    let running = Running::start(app, lenient());
    let (mut idle, mut silent, mut partial, mut busy) =
        (running.connect().await, running.connect().await, running.connect().await, running.connect().await);
    exchange(&mut idle, GET, "hello").await;
    exchange(&mut partial, GET, "hello").await;
    partial.write_all(b"GET /").await.unwrap();
    busy.write_all(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    soon(begun.notified()).await;

    running.shutdown.cancel();
    assert_eq!(rest(&mut idle).await, "");
    assert_eq!(rest(&mut silent).await, "");
    assert_eq!(rest(&mut partial).await, "");
    assert!(TcpStream::connect(running.address).await.is_err(), "new clients are refused");
    assert!(!running.server.is_finished());

    go_on.notify_one();
    let answer = rest(&mut busy).await;
    assert!(answer.contains("connection: close") && answer.ends_with("done"), "{answer}");
    soon(running.server).await.unwrap();
}

#[tokio::test]
async fn shutdown_does_not_wait_longer_than_the_drain_timeout() {
    let (app, begun, _never) = waiting();
    let running = Running::start(app, ServeLimits { drain_timeout: SHORT, ..lenient() });
    let mut busy = running.connect().await;
    busy.write_all(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    soon(begun.notified()).await;
    running.shutdown.cancel();
    soon(running.server).await.unwrap();
    assert_eq!(rest(&mut busy).await, "");
}

#[tokio::test]
async fn shutdown_reaches_a_server_at_its_cap() {
    let running = Running::start(hello(), ServeLimits { max_connections: 1, ..lenient() });
    let mut only = running.connect().await;
    exchange(&mut only, GET, "hello").await;
    running.shutdown.cancel();
    soon(running.server).await.unwrap();
}

#[test]
fn pauses_after_failed_accepts_double_up_to_a_second() {
    let mut backoff = Backoff::default();
    let pauses: Vec<_> = (0..9).map(|_| backoff.next_pause().as_millis()).collect();
    assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
}

/// A self-signed certificate for `localhost` and its key, as files in a directory of their own.
struct Certificate {
    dir: tempfile::TempDir,
    der: CertificateDer<'static>,
}

impl Certificate {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cert.pem"), pem("CERTIFICATE", made.cert.der())).unwrap();
        fs::write(dir.path().join("key.pem"), pem("PRIVATE KEY", made.signing_key.serialized_der())).unwrap();
        Self { dir, der: made.cert.der().clone() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        tls_config(&self.file("cert.pem"), &self.file("key.pem")).unwrap()
    }

    fn client(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsConnector::from(Arc::new(config))
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

#[tokio::test]
async fn tls_serves_http_1_1() {
    let certificate = Certificate::new();
    let running = Running::start_with(hello(), lenient(), Some(certificate.server()));
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = soon(certificate.client().connect(name, running.connect().await)).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
    exchange(&mut stream, GET, "hello").await;
    running.shutdown.cancel();
    assert_eq!(soon(stream.read(&mut [0])).await.unwrap(), 0, "closed with a close_notify");
}

#[tokio::test]
async fn a_stalled_handshake_is_closed() {
    let limits = ServeLimits { tls_handshake_timeout: SHORT, ..lenient() };
    let running = Running::start_with(hello(), limits, Some(Certificate::new().server()));
    assert_eq!(rest(&mut running.connect().await).await, "");
    // A record of 512 bytes with the beginning of a client hello, byte by byte.
    let hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &[0; 500]].concat();
    let begun = Instant::now();
    assert!(drip(running.connect().await, &hello).await);
    assert!(begun.elapsed() >= SHORT);
}

#[tokio::test]
async fn a_silent_client_behind_a_finished_handshake_is_closed() {
    let certificate = Certificate::new();
    let limits = ServeLimits { header_timeout: SHORT, ..lenient() };
    let running = Running::start_with(hello(), limits, Some(certificate.server()));
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = soon(certificate.client().connect(name, running.connect().await)).await.unwrap();
    assert_eq!(rest(&mut stream).await, "");
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_handshake() {
    let running = Running::start_with(hello(), lenient(), Some(Certificate::new().server()));
    let mut stream = running.connect().await;
    stream.write_all(&[22]).await.unwrap();
    running.shutdown.cancel();
    soon(running.server).await.unwrap();
}

#[test]
fn unusable_certificates_are_told_apart() {
    let (ours, other) = (Certificate::new(), Certificate::new());
    let (cert, key) = (ours.file("cert.pem"), ours.file("key.pem"));
    let refused = |cert: &Path, key: &Path| tls_config(cert, key).unwrap_err();
    assert!(matches!(refused(&ours.file("none"), &key), TlsError::Certificate { .. }));
    assert!(matches!(refused(&cert, &ours.file("none")), TlsError::Key { .. }));
    assert!(matches!(refused(&key, &key), TlsError::NoCertificate(_)));
    assert!(matches!(refused(&cert, &cert), TlsError::Key { .. }));
    assert!(matches!(refused(&cert, &other.file("key.pem")), TlsError::Refused(_)));
}

#[tokio::test]
async fn a_hanging_handler_ends_with_its_client() {
    let gone = Arc::new(Notify::new());
    let signal = Arc::clone(&gone);
    let app = hello().route(
        "/hang",
        get(async move || -> &str {
            let _told = NotifyOnDrop(signal);
            pending().await
        }),
    );
    let running = Running::start(app, lenient());
    let mut stream = running.connect().await;
    stream.write_all(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(timeout(SHORT, stream.read_u8()).await.is_err());
    drop(stream);
    soon(gone.notified()).await;
}

struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}
