//! The accept loop: sockets, TLS, a time limit on everything a client does, a cap on connections, an orderly end.
//!
//! Owns every deadline of a connection outside the handlers. Never looks at what a request asks for.

use std::{
    convert::Infallible,
    error::Error,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Router, extract::ConnectInfo};
use hyper::{
    Request, Response,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinError, JoinSet},
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self,
        pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    },
    server::TlsStream,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::{debug, error, warn};

/// Longest head of a request (its line and headers), in bytes. More is answered 431. A head has 100 headers at most,
/// which is hyper's own limit.
pub const MAX_HEAD_BYTES: usize = 32 * 1024;

/// Most bytes a connection buffers in each direction. Bounds a head that never ends, and the memory of 10,000 clients.
const MAX_BUFFER_BYTES: usize = 2 * MAX_HEAD_BYTES;

/// How many clients may wait to be accepted, if the system allows as many (on Linux `net.core.somaxconn`, 4,096 by
/// default). For one more, the handshake comes to nothing, and its system tries again after a second.
const BACKLOG: u32 = 4_096;

/// How long a client may take over each thing it does, and how many clients there may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeLimits {
    /// From the connection's opening to the end of the first request's head, and from the first byte of a later head to
    /// its end. Default 10 s.
    pub header_timeout: Duration,
    /// From the first wait for a request's body to its end. A handler at work is not on this clock. Default 30 s.
    pub body_timeout: Duration,
    /// From one answer to the end of the next request's head: how long a kept-alive connection may be silent.
    /// Default 75 s, longer than the 60 s after which common load balancers drop theirs.
    pub idle_timeout: Duration,
    /// How long a client may accept no byte of an answer. Default 30 s.
    pub write_timeout: Duration,
    /// The whole TLS handshake. Default 10 s.
    pub tls_handshake_timeout: Duration,
    /// Connections open at once. When all are taken, accepting pauses and clients wait in the kernel's backlog.
    /// Default 10,000.
    pub max_connections: usize,
    /// How long requests in flight may run on after shutdown begins. Default 30 s.
    pub drain_timeout: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            tls_handshake_timeout: Duration::from_secs(10),
            max_connections: 10_000,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// Why a certificate and its key cannot serve TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate file cannot be read, or is not PEM.
    #[error("the certificate file {} cannot be read: {source}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// The certificate file holds no certificate.
    #[error("the certificate file {} holds no certificate", .0.display())]
    NoCertificate(PathBuf),
    /// The key file cannot be read, or holds no private key in PEM.
    #[error("the key file {} cannot be read: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// The two do not belong together, or the key is of a kind that is not supported.
    #[error("the certificate and its key are refused: {0}")]
    Refused(#[from] rustls::Error),
}

/// Reads a certificate chain (leaf first) and its private key: TLS 1.2 and 1.3, HTTP/1.1 only, no client certificates.
///
/// # Errors
///
/// [`TlsError`] if a file is missing or malformed, or if the key is not the certificate's.
pub fn tls_config(cert_pem: &Path, key_pem: &Path) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let chain = certificate_chain(cert_pem)?;
    let key =
        PrivateKeyDer::from_pem_file(key_pem).map_err(|source| TlsError::Key { path: key_pem.to_owned(), source })?;
    // Named, not taken from the process: a second provider in the dependency tree would make the default ambiguous.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificate_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::Certificate { path: path.to_owned(), source };
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<_, _>>().map_err(unreadable)?;
    if chain.is_empty() { Err(TlsError::NoCertificate(path.to_owned())) } else { Ok(chain) }
}

/// Opens a socket for [`serve`].
///
/// # Errors
///
/// As the system says: the address is taken, or not this machine's.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Who starts again takes the address over from its last connections.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves `app` on `listener` until `shutdown`, then drains: no new connection, idle ones closed at once, requests in
/// flight finished within [`ServeLimits::drain_timeout`].
///
/// Handlers find the client's address as [`ConnectInfo<SocketAddr>`]. A request body that takes longer than
/// [`ServeLimits::body_timeout`] fails in the handler with an [`io::ErrorKind::TimedOut`]. A handler that panics costs
/// its own connection only.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    app: Router,
    limits: ServeLimits,
    shutdown: CancellationToken,
) {
    let drain_timeout = limits.drain_timeout;
    let server = Arc::new(Server {
        // `with_state` turns the routes into services here, once, instead of at each request.
        app: app.with_state(()),
        tls: tls.map(TlsAcceptor::from),
        http: http1_builder(&limits),
        slots: Arc::new(Semaphore::new(limits.max_connections)),
        limits,
        shutdown,
    });
    let mut connections = JoinSet::new();
    accept_until_shutdown(&server, &listener, &mut connections).await;
    drop(listener);
    drain(connections, drain_timeout).await;
}

/// What every connection shares.
struct Server {
    app: Router,
    tls: Option<TlsAcceptor>,
    http: http1::Builder,
    slots: Arc<Semaphore>,
    limits: ServeLimits,
    shutdown: CancellationToken,
}

fn http1_builder(limits: &ServeLimits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // Without a timer hyper knows no timeout at all.
        .timer(TokioTimer::new())
        // hyper's clock runs from the moment it is ready for a head, so on a kept-alive connection it is the limit on
        // silence. The shorter limit on the head itself is `TimedHead`'s.
        .header_read_timeout(limits.idle_timeout)
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size(MAX_BUFFER_BYTES);
    builder
}

async fn accept_until_shutdown(server: &Arc<Server>, listener: &TcpListener, connections: &mut JoinSet<()>) {
    let mut backoff = Backoff::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = server.shutdown.cancelled() => return,
            Some(ended) = connections.join_next() => {
                report(ended);
                continue;
            }
            accepted = server.accept(listener) => accepted,
        };
        match accepted {
            Ok((stream, peer, slot)) => {
                backoff = Backoff::default();
                connections.spawn(Arc::clone(server).connection(stream, peer, slot));
            }
            Err(error) if is_the_peers_doing(&error) => debug!(%error, "a client left before it was accepted"),
            Err(error) => {
                let pause = backoff.next_pause();
                warn!(%error, ?pause, "cannot accept connections");
                server.shutdown.run_until_cancelled(sleep(pause)).await;
            }
        }
    }
}

fn is_the_peers_doing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Pauses after failed accepts: out of file descriptors, the next attempt would fail at once, and again.
struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_secs(1);

    fn next_pause(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(Self::LONGEST);
        pause
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self(Self::FIRST)
    }
}

async fn drain(mut connections: JoinSet<()>, drain_timeout: Duration) {
    let all_ended = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if timeout(drain_timeout, all_ended).await.is_err() {
        warn!(connections = connections.len(), "requests still in flight after the drain timeout are cut off");
        connections.shutdown().await;
    }
}

/// The panic's own text is not repeated: it may quote what the request said.
fn report(ended: Result<(), JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        error!("a handler panicked; its connection is closed");
    }
}

impl Server {
    /// Waits for a free slot first: a client that cannot be served yet stays in the kernel's backlog.
    async fn accept(&self, listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        let slot = Arc::clone(&self.slots).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, peer) = listener.accept().await?;
        Ok((stream, peer, slot))
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, _slot: OwnedSemaphorePermit) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%peer, %error, "TCP_NODELAY is not set");
        }
        let mut stream = TimeoutStream::new(stream);
        // Writes only. hyper also reads while a handler works, to notice a client that hangs up: a timeout on reads
        // would cut off every slow answer.
        stream.set_write_timeout(Some(self.limits.write_timeout));
        let stream = Box::pin(stream);
        match &self.tls {
            None => self.speak_http(stream, peer).await,
            Some(acceptor) => {
                if let Some(stream) = self.shake_hands(acceptor, stream, peer).await {
                    self.speak_http(stream, peer).await;
                }
            }
        }
    }

    async fn shake_hands<S>(&self, acceptor: &TlsAcceptor, stream: S, peer: SocketAddr) -> Option<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = timeout(self.limits.tls_handshake_timeout, acceptor.accept(stream));
        match self.shutdown.run_until_cancelled(handshake).await? {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => debug!(%peer, %error, "TLS handshake failed"),
            Err(_elapsed) => debug!(%peer, "TLS handshake timed out"),
        }
        None
    }

    async fn speak_http<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S, peer: SocketAddr) {
        let phase = Arc::new(Phase::default());
        let stream = TimedHead::new(stream, Arc::clone(&phase), self.limits.header_timeout);
        let service = service_fn(|request| {
            phase.set(Phase::ANSWERING);
            self.answer(request, peer, &phase)
        });
        let mut connection = pin!(self.http.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(%peer, %error, cause = error.source(), "connection broke off");
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
        phase: &Phase,
    ) -> Result<Response<axum::body::Body>, Infallible> {
        let mut request = request.map(|body| TimedBody { body, limit: self.limits.body_timeout, deadline: None });
        request.extensions_mut().insert(ConnectInfo(peer));
        let response = self.app.clone().oneshot(request).await;
        phase.set(Phase::IDLE);
        response
    }
}

/// What a connection is doing: set by the service, known to the stream below it.
struct Phase(AtomicU8);

impl Phase {
    /// Between requests: silence is hyper's to time.
    const IDLE: u8 = 0;
    /// A head has begun, or the connection has just opened.
    const HEAD: u8 = 1;
    /// A handler has the request: its body is [`TimedBody`]'s to time.
    const ANSWERING: u8 = 2;

    /// One task reads and writes it; the atomic only makes it shareable.
    fn set(&self, phase: u8) {
        self.0.store(phase, Ordering::Relaxed);
    }

    fn is(&self, phase: u8) -> bool {
        self.0.load(Ordering::Relaxed) == phase
    }
}

impl Default for Phase {
    fn default() -> Self {
        Self(AtomicU8::new(Self::HEAD))
    }
}

/// A stream whose reader fails when a head is not complete in time, however steadily its bytes drip.
struct TimedHead<S> {
    stream: S,
    phase: Arc<Phase>,
    limit: Duration,
    begun: Instant,
    /// Made at the first wait only: most heads arrive in one piece and need no timer.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> TimedHead<S> {
    fn new(stream: S, phase: Arc<Phase>, limit: Duration) -> Self {
        Self { stream, phase, limit, begun: Instant::now(), deadline: None }
    }

    fn begin(&mut self) {
        self.phase.set(Phase::HEAD);
        self.begun = Instant::now();
        self.deadline = None;
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let end = self.begun + self.limit;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep_until(end)));
        deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedHead<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        if this.phase.is(Phase::IDLE) && buf.filled().len() > before {
            this.begin();
        }
        if polled.is_pending() && this.phase.is(Phase::HEAD) { this.poll_deadline(cx) } else { polled }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedHead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A request's body that fails when it is not complete in time, however steadily its bytes drip.
struct TimedBody {
    body: Incoming,
    limit: Duration,
    /// Made at the first wait only, see [`TimedHead`].
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Body for TimedBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let limit = this.limit;
        ready!(this.deadline.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
        Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
