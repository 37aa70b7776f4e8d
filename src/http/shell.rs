//! The server as the network sees it, whether it is sealed or not. The inside, with all keys, can be taken away.

use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tokio::sync::Notify;
use tower::ServiceExt;

use super::{error::ApiError, json::reply, system};
use crate::domain::{Clock, Entropy, request_id};

/// What stands between the network and the inside.
#[derive(Clone)]
pub struct Shell {
    inside: Arc<ArcSwapOption<Router>>,
    sealed: Arc<Notify>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl Shell {
    /// A shell with nothing inside: sealed.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        Self { inside: Arc::default(), sealed: Arc::default(), clock, entropy }
    }

    /// Lets requests in.
    pub fn open(&self, inside: Router) {
        self.inside.store(Some(Arc::new(inside)));
    }

    /// Takes the inside away: whatever arrives from now on is refused. Requests in flight are finished, and hold what they
    /// need until then.
    pub fn seal(&self) {
        self.sealer().seal();
    }

    /// What the inside seals itself with. It does not keep the shell alive.
    pub(super) fn sealer(&self) -> Sealer {
        Sealer { inside: Arc::downgrade(&self.inside), sealed: Arc::clone(&self.sealed) }
    }

    /// Whether there is no inside.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.inside.load().is_none()
    }

    /// Waits until the inside is taken away.
    pub async fn sealed(&self) {
        self.sealed.notified().await;
    }

    /// The routes of the shell, which are those of the inside while there is one.
    pub fn router(&self) -> Router {
        Router::new().fallback(answer).with_state(self.clone())
    }
}

/// Seals the server from its inside.
pub struct Sealer {
    inside: Weak<ArcSwapOption<Router>>,
    sealed: Arc<Notify>,
}

impl Sealer {
    /// See [`Shell::seal`].
    pub fn seal(&self) {
        if let Some(inside) = self.inside.upgrade()
            && inside.swap(None).is_some()
        {
            self.sealed.notify_one();
        }
    }
}

async fn answer(State(shell): State<Shell>, request: Request) -> Response {
    let inside = shell.inside.load_full();
    match inside {
        Some(inside) => Router::clone(&inside).oneshot(request).await.unwrap_or_else(|never| match never {}),
        None => shell.refuse(request.uri().path().to_owned()).await,
    }
}

impl Shell {
    async fn refuse(&self, path: String) -> Response {
        let id = request_id(&*self.entropy, self.clock.now());
        let mut response = match path.as_str() {
            "/v1/health" => system::health().await,
            "/v1/version" => system::version().await,
            "/v1/health/ready" => {
                let body = json!({ "status": "not_ready", "failing": ["sealed"] });
                (StatusCode::SERVICE_UNAVAILABLE, reply(&body)).into_response()
            }
            _ => {
                let message = "The server is sealed: an operator has to unseal it";
                ApiError::new("service_unavailable", message).into_envelope(&id)
            }
        };
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(id) = HeaderValue::from_str(&id) {
            headers.insert(HeaderName::from_static("x-request-id"), id);
        }
        response
    }
}
