//! Around every request: its id, its context, who may come in, the headers of every answer, one line in the log.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use axum::{
    extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::MethodRouter,
};

use super::{
    App,
    error::ApiError,
    limits::{Category, Exhausted, Quota},
};
use crate::{
    domain::{Principal, RequestContext, Scope, SecretPath},
    vault,
};

const USER_AGENT_BYTES: usize = 256;

/// What is known of a request from its first byte to its last.
pub struct Scene {
    /// Where and when.
    pub context: RequestContext,
    principal: OnceLock<Principal>,
    quota: Mutex<Option<Quota>>,
}

/// Gives the request an id and a context, and the answer its headers.
pub async fn frame(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let timer = std::time::Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("none", |route| route.as_str()).to_owned();
    let method = request.method().clone();
    let scene = Arc::new(Scene::of(&app, &request));
    request.extensions_mut().insert(Arc::clone(&scene));
    let mut response = next.run(request).await;
    let request_id = &scene.context.request_id;
    let error = response.extensions_mut().remove::<ApiError>().or_else(|| unhandled(&response));
    let code = error.as_ref().map_or("ok", |error| error.code);
    if let Some(error) = error {
        let allow = response.headers().get(header::ALLOW).cloned();
        response = error.into_envelope(request_id);
        response.headers_mut().extend(allow.map(|methods| (header::ALLOW, methods)));
    }
    scene.write_headers(&app, response.headers_mut());
    let (status, took) = (response.status().as_u16(), timer.elapsed());
    app.metrics.request(method.as_str(), &route, status, took);
    let who = scene.principal.get().map_or("-", |who| &who.id);
    tracing::info!(%request_id, %method, route, status, code, who, took_us = took.as_micros(), "request");
    response
}

/// What the router answers by itself, without a body.
fn unhandled(response: &Response) -> Option<ApiError> {
    match response.status() {
        StatusCode::NOT_FOUND if !response.headers().contains_key(header::CONTENT_TYPE) => {
            Some(ApiError::new("not_found", "There is nothing at this address"))
        }
        StatusCode::METHOD_NOT_ALLOWED => Some(ApiError::new("method_not_allowed", "This address has no such method")),
        _ => None,
    }
}

impl Scene {
    fn of(app: &App, request: &Request) -> Self {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_canonical());
        let agent = request.headers().get(header::USER_AGENT).and_then(|value| value.to_str().ok());
        let context = RequestContext {
            request_id: app.request_id(),
            now: app.clock.now(),
            source_ip: peer,
            user_agent: agent.map(|agent| agent.get(..USER_AGENT_BYTES).unwrap_or(agent).into()),
        };
        Self { context, principal: OnceLock::new(), quota: Mutex::new(None) }
    }

    fn write_headers(&self, app: &App, headers: &mut HeaderMap) {
        let mut put = |name: &'static str, value: HeaderValue| {
            headers.insert(HeaderName::from_static(name), value);
        };
        if let Ok(id) = HeaderValue::from_str(&self.context.request_id) {
            put("x-request-id", id);
        }
        put("cache-control", HeaderValue::from_static("no-store"));
        put("x-content-type-options", HeaderValue::from_static("nosniff"));
        if self.principal.get().is_some() {
            put("x-policy-generation", HeaderValue::from(app.vault.policies().current().generation));
        }
        if let Some(quota) = *self.quota.lock().unwrap_or_else(PoisonError::into_inner) {
            put("x-ratelimit-limit", HeaderValue::from(quota.limit));
            put("x-ratelimit-remaining", HeaderValue::from(quota.remaining));
            put("x-ratelimit-reset", HeaderValue::from(quota.reset));
        }
    }

    fn draw(&self, app: &App, who: &Arc<str>, category: Category) -> Result<(), ApiError> {
        let drawn = app.rates.draw(who, category, 1, self.context.now);
        let quota = drawn.unwrap_or_else(|exhausted| Some(exhausted.quota));
        *self.quota.lock().unwrap_or_else(PoisonError::into_inner) = quota;
        drawn.map(drop).map_err(|exhausted| rate_limited(app, category, exhausted))
    }
}

/// The answer to a request that came too soon.
pub fn rate_limited(app: &App, category: Category, exhausted: Exhausted) -> ApiError {
    app.metrics.rate_limited(category.as_str());
    let message = format!("Too many requests of the category `{}`", category.as_str());
    ApiError { retry_after: Some(exhausted.retry_after), ..ApiError::new("rate_limited", message) }
}

/// Lets in whoever has a token with the scope, and units of the category.
#[derive(Clone)]
struct Gate {
    app: App,
    scope: Option<Scope>,
    category: Category,
}

/// Puts a gate before a handler.
pub fn gated(app: &App, scope: Scope, category: Category, handlers: MethodRouter<App>) -> MethodRouter<App> {
    let gate = Gate { app: app.clone(), scope: Some(scope), category };
    handlers.route_layer(middleware::from_fn_with_state(gate, admit))
}

/// Puts a gate before a handler that every token opens.
pub fn authenticated(app: &App, category: Category, handlers: MethodRouter<App>) -> MethodRouter<App> {
    let gate = Gate { app: app.clone(), scope: None, category };
    handlers.route_layer(middleware::from_fn_with_state(gate, admit))
}

async fn admit(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let Some(scene) = request.extensions().get::<Arc<Scene>>().cloned() else {
        return ApiError::new("internal_error", "").into_response();
    };
    match gate.caller(&scene, request.headers()).await {
        Ok(caller) => {
            request.extensions_mut().insert(Caller { vault: caller, app: gate.app.clone() });
            // Detached: a client that hangs up cannot split what is done from what is recorded.
            let work = tokio::spawn(conclude(gate.app.clone(), Arc::clone(&scene), gate.action(), next.run(request)));
            work.await.unwrap_or_else(|error| {
                tracing::error!(%error, "a handler panicked");
                ApiError::new("internal_error", "").into_response()
            })
        }
        Err(error) => conclude(gate.app.clone(), scene, gate.action(), async { error.into_response() }).await,
    }
}

impl Gate {
    async fn caller(&self, scene: &Scene, headers: &HeaderMap) -> Result<vault::Caller, ApiError> {
        let principal = match self.authenticate(headers).await {
            Ok(principal) => principal,
            Err(error) => return Err(self.turn_away(scene, error)),
        };
        let who: Arc<str> = format!("{}/{}", principal.tenant, principal.id).into();
        let _ = scene.principal.set(principal.clone());
        scene.draw(&self.app, &who, self.category)?;
        if let Some(scope) = self.scope.filter(|scope| !principal.scopes.permit(*scope)) {
            let message = format!("The token lacks the scope `{}`", scope.as_str());
            return Err(ApiError::new("insufficient_scope", message));
        }
        Ok(vault::Caller { principal, context: scene.context.clone() })
    }

    async fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, ApiError> {
        let token = bearer(headers)?;
        self.app.authenticator.authenticate(token).await.map_err(|error| {
            tracing::warn!(%error, "a token was refused");
            error.into()
        })
    }

    /// Failed authentications have a limit of their own, by address, so that they can flood neither log nor audit.
    fn turn_away(&self, scene: &Scene, error: ApiError) -> ApiError {
        self.app.metrics.failed_authentication();
        let address = scene.context.source_ip.map_or_else(|| "-".into(), |ip| ip.to_string().into());
        match self.app.rates.draw(&address, Category::Auth, 1, scene.context.now) {
            Ok(_) => error,
            Err(exhausted) => rate_limited(&self.app, Category::Auth, exhausted),
        }
    }

    /// The audit's word for what this gate leads to.
    fn action(&self) -> &'static str {
        match self.category {
            Category::Read | Category::BatchRead => "read",
            Category::Write => "write",
            Category::Delete => "delete",
            Category::List | Category::BatchMetadata => "list",
            Category::AuditQuery | Category::AuditExport => "audit",
            Category::PolicyOps | Category::PolicyTest => "policy",
            Category::Auth => "authenticate",
        }
    }
}

/// Sees to it that every refusal is in the audit log before it is answered.
async fn conclude(app: App, scene: Arc<Scene>, action: &'static str, work: impl Future<Output = Response>) -> Response {
    let response = work.await;
    // Turning away must stay cheap: what is over its rate is counted, not recorded.
    let unrecorded = |error: &&ApiError| !error.recorded && error.code != "rate_limited";
    let Some(error) = response.extensions().get::<ApiError>().filter(unrecorded) else { return response };
    let recorded = app.vault.record_refusal(scene.principal.get(), &scene.context, action, error.code).await;
    match recorded {
        Ok(()) => response,
        Err(fault) => ApiError::from(fault).into_response(),
    }
}

fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let required = || ApiError::new("authentication_required", "A bearer token is required");
    let invalid = || ApiError::new("token_invalid", "The Authorization header is not a bearer token");
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or_else(required)?;
    if values.next().is_some() {
        return Err(invalid());
    }
    let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(invalid)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim_start()) } else { Err(invalid()) }
}

/// Who passed the gate.
#[derive(Clone)]
pub struct Caller {
    /// The caller as the vault knows it.
    pub vault: vault::Caller,
    app: App,
}

impl Caller {
    /// Draws more units, of a category that is not the gate's.
    ///
    /// # Errors
    ///
    /// 429 where there are too few.
    pub fn draw(&self, category: Category, units: u32) -> Result<(), ApiError> {
        let drawn = self.app.rates.draw(&self.name(), category, units, self.vault.context.now);
        drawn.map(drop).map_err(|exhausted| rate_limited(&self.app, category, exhausted))
    }

    /// Gives units back.
    pub fn give_back(&self, category: Category, units: u32) {
        self.app.rates.give_back(&self.name(), category, units, self.vault.context.now);
    }

    fn name(&self) -> Arc<str> {
        format!("{}/{}", self.vault.principal.tenant, self.vault.principal.id).into()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| ApiError::new("internal_error", ""))
    }
}

/// The secret's path in the request's target, read from its raw bytes: never percent-decoded, never normalised.
pub struct Target(pub SecretPath);

impl<S: Send + Sync> FromRequestParts<S> for Target {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let route = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
        let prefix = route.strip_suffix("{*path}").unwrap_or(route);
        let raw = parts.uri.path().strip_prefix(prefix).unwrap_or_default();
        let parsed = SecretPath::parse(raw).map(Self);
        parsed.map_err(|error| ApiError::new("invalid_path", format!("This is no secret path: {error}")))
    }
}

/// The address has no query. A call that takes none refuses one, as a body's unknown field is refused: whoever wrote
/// `?expected_version=3` must not be told that it held.
pub struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match parts.uri.query() {
            None | Some("") => Ok(Self),
            Some(_) => Err(ApiError::invalid("This call takes no query")),
        }
    }
}
