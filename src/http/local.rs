//! The operator's door: a Unix socket in the data directory, for the server's own user and for root. While the server is
//! sealed nobody can be known by a token, so what unseals it is not on the network.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use axum::{
    Router,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::Listener,
};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream, unix::SocketAddr};
use tokio_util::sync::CancellationToken;

use super::json::{JsonBody, reply};

/// The socket's name in the data directory.
pub const SOCKET: &str = "portcullis.sock";
/// Largest body: a share has 92 characters.
const MAX_BYTES: usize = 1_024;

/// Who keeps the server sealed or opens it.
#[async_trait]
pub trait Warden: Send + Sync {
    /// How it stands.
    async fn status(&self) -> SealStatus;

    /// Opens the server, or comes one share nearer to that.
    ///
    /// # Errors
    ///
    /// A sentence for the operator.
    async fn unseal(&self, share: Option<&str>) -> Result<SealStatus, String>;
}

/// Whether the server is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealStatus {
    /// Whether it is.
    pub sealed: bool,
    /// How many shares were brought since it was sealed.
    pub shares: usize,
    /// How many shares open it; none where the root key is not in shares.
    pub threshold: Option<u8>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unseal<'a> {
    /// Stays where it is in the body, which is wiped.
    #[serde(default, borrow)]
    share: Option<&'a str>,
}

/// A socket that is bound. Its file is removed when it is dropped.
pub struct LocalDoor {
    listener: UnixListener,
    path: PathBuf,
}

impl LocalDoor {
    /// Binds the socket in this directory, in place of one that a server left behind.
    ///
    /// # Errors
    ///
    /// Another server listens there; the system's own.
    pub fn bind(directory: &Path) -> io::Result<Self> {
        let path = directory.join(SOCKET);
        if std::os::unix::net::UnixStream::connect(&path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another server listens there"));
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }

    /// Answers until the server stops.
    pub async fn serve(self, warden: Arc<dyn Warden>, shutdown: CancellationToken) {
        let routes =
            Router::new().route("/v1/seal-status", get(status)).route("/v1/unseal", post(unseal)).with_state(warden);
        let served = axum::serve(self, routes).with_graceful_shutdown(shutdown.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "the operator's socket is closed");
        }
    }
}

impl Drop for LocalDoor {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
    }
}

impl Listener for LocalDoor {
    type Io = UnixStream;
    type Addr = SocketAddr;

    /// The next of those who may come in. The file's mode keeps others out; this does where a mode is not heeded.
    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            let (stream, address) = <UnixListener as Listener>::accept(&mut self.listener).await;
            let own = rustix::process::getuid().as_raw();
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == own || peer.uid() == 0 => return (stream, address),
                _ => tracing::warn!("another user came to the operator's socket and was turned away"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

async fn status(State(warden): State<Arc<dyn Warden>>) -> Response {
    reply(&warden.status().await)
}

async fn unseal(State(warden): State<Arc<dyn Warden>>, request: Request) -> Response {
    let refused = |status: StatusCode, message: String| {
        let error = serde_json::json!({ "error": { "code": "not_unsealed", "message": message } });
        (status, reply(&error)).into_response()
    };
    let body = match JsonBody::read(request, MAX_BYTES).await {
        Ok(body) => body,
        Err(error) => return refused(error.status, error.message),
    };
    // Detached: whoever hangs up cannot leave the server between sealed and open.
    let work = tokio::spawn(async move {
        let asked: Unseal<'_> = body.parse().map_err(|error| error.message)?;
        warden.unseal(asked.share).await
    });
    match work.await {
        Ok(Ok(status)) => reply(&status),
        Ok(Err(message)) => refused(StatusCode::CONFLICT, message),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
