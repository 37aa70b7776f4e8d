//! Around every request: its id, its context, who may come in, the headers of every answer, one line in the log.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use axum::{
    extract::{ConnectInfo, FromRequestParts, MatchedPath, Query, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::MethodRouter,
};

use serde::de::DeserializeOwned;
use tokio::task::JoinError;
use tracing::Instrument;

use super::{
    App,
    admission::Place,
    error::ApiError,
    limits::{Category, Exhausted, Quota},
};
use crate::{
    audit,
    auth::AuthError,
    domain::{InvalidPath, Principal, ReceiptSlot, RequestContext, Scope, SecretPath, request_id},
    vault::{self, Fault},
};

const USER_AGENT_BYTES: usize = 256;

/// What is known of a request from its first byte to its last.
pub struct Scene {
    /// Where and when.
    pub context: RequestContext,
    principal: OnceLock<Principal>,
    generation: OnceLock<u64>,
    quota: Mutex<Option<Quota>>,
    place: Mutex<Option<Place>>,
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
        let now = app.clock.now();
        let context = RequestContext {
            request_id: request_id(&*app.entropy, now),
            now,
            source_ip: peer,
            user_agent: agent.map(|agent| agent.get(..USER_AGENT_BYTES).unwrap_or(agent).into()),
            receipt: ReceiptSlot::default(),
        };
        Self {
            context,
            principal: OnceLock::new(),
            generation: OnceLock::new(),
            quota: Mutex::new(None),
            place: Mutex::new(None),
        }
    }

    fn write_headers(&self, app: &App, headers: &mut HeaderMap) {
        let mut put = |name: &'static str, value: HeaderValue| {
            headers.insert(HeaderName::from_static(name), value);
        };
        if let Ok(id) = HeaderValue::from_str(&self.context.request_id) {
            put("x-request-id", id);
        }
        if let Some(receipt) = self.context.receipt.get().and_then(|text| HeaderValue::from_str(&text.0).ok()) {
            put("x-audit-receipt", receipt);
        }
        put("cache-control", HeaderValue::from_static("no-store"));
        put("x-content-type-options", HeaderValue::from_static("nosniff"));
        if self.principal.get().is_some() {
            // A request that came to no decision names the generation that is in force now.
            let present = || app.vault.policies().current().generation;
            put("x-policy-generation", HeaderValue::from(self.generation.get().copied().unwrap_or_else(present)));
        }
        if let Some(quota) = *self.quota.lock().unwrap_or_else(PoisonError::into_inner) {
            put("x-ratelimit-limit", HeaderValue::from(quota.limit));
            put("x-ratelimit-remaining", HeaderValue::from(quota.remaining));
            put("x-ratelimit-reset", HeaderValue::from(quota.reset));
        }
    }

    /// The quota that the answer's headers show.
    fn show(&self, quota: Option<Quota>) {
        *self.quota.lock().unwrap_or_else(PoisonError::into_inner) = quota;
    }

    /// Takes one of the places in which requests are worked on. It is given back when the request is over, if not before.
    async fn enter(&self, app: &App) -> Result<(), ApiError> {
        match app.places.take().await {
            Some(place) => {
                *self.place() = Some(place);
                Ok(())
            }
            None => Err(ApiError::busy()),
        }
    }

    /// Gives its place back.
    fn leave(&self) {
        *self.place() = None;
    }

    fn place(&self) -> MutexGuard<'_, Option<Place>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self, app: &App, who: &Arc<str>, category: Category) -> Result<(), ApiError> {
        let drawn = app.rates.draw(who, category, 1, self.context.now);
        self.show(drawn.unwrap_or_else(|exhausted| Some(exhausted.quota)));
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
    /// The audit's word for what lies behind the gate, where the vault does not record it itself.
    word: Option<&'static str>,
    /// Whether what lies behind it has to wait for a place where requests are worked on.
    needs_place: bool,
}

/// Puts a gate before a handler whose work the vault records.
pub fn gated(app: &App, scope: Scope, category: Category, handlers: MethodRouter<App>) -> MethodRouter<App> {
    let gate = Gate { app: app.clone(), scope: Some(scope), category, word: None, needs_place: true };
    gate.before(handlers)
}

/// The same before a handler that has to be there for the operator when there are more requests than can be worked on.
pub fn always_there(app: &App, scope: Scope, category: Category, handlers: MethodRouter<App>) -> MethodRouter<App> {
    let gate = Gate { app: app.clone(), scope: Some(scope), category, word: None, needs_place: false };
    gate.before(handlers)
}

/// Puts a gate before a handler that asks no policy and changes nothing: that it was asked is recorded here. Without a
/// scope, every token opens it.
pub fn observed(
    app: &App,
    scope: impl Into<Option<Scope>>,
    category: Category,
    word: &'static str,
    handlers: MethodRouter<App>,
) -> MethodRouter<App> {
    let gate = Gate { app: app.clone(), scope: scope.into(), category, word: Some(word), needs_place: true };
    gate.before(handlers)
}

async fn admit(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let Some(scene) = request.extensions().get::<Arc<Scene>>().cloned() else {
        return ApiError::new("internal_error", "").into_response();
    };
    if gate.needs_place && gate.app.places.are_crowded() {
        drop((request, next));
        gate.turn_away(&scene).await;
        return ApiError::busy().into_response();
    }
    let path = Target::read(&request).and_then(Result::ok);
    let (app, action) = (gate.app.clone(), gate.action());
    let recorder = Recorder { app, scene: Arc::clone(&scene), action, path, observes: gate.word.is_some() };
    let work = gate.clone().pass(Arc::clone(&scene), request, next);
    if let Ok(response) = recorder.clone().detached(work).await {
        if response.extensions().get::<ApiError>().is_some_and(|error| error.turned_away) {
            // Not before: what was sent is gone by now, and whoever hangs up is kept no longer.
            gate.turn_away(&scene).await;
        }
        return response;
    }
    tracing::error!(request_id = %scene.context.request_id, "a handler panicked");
    let failed = || ApiError::new("internal_error", "").into_response();
    recorder.detached(async move { failed() }).await.unwrap_or_else(|_| failed())
}

impl Gate {
    fn before(self, handlers: MethodRouter<App>) -> MethodRouter<App> {
        handlers.route_layer(middleware::from_fn_with_state(self, admit))
    }

    /// Counts a request for which there is no place, gives back what it drew, and waits until it may hear of that.
    async fn turn_away(&self, scene: &Scene) {
        self.app.metrics.turned_away();
        if let Some(who) = scene.principal.get() {
            self.app.rates.give_back(&bucket_of(who), self.category, 1, scene.context.now);
        }
        self.app.places.turn_away().await;
    }

    async fn pass(self, scene: Arc<Scene>, mut request: Request, next: Next) -> Response {
        match self.caller(&scene, request.headers()).await {
            Ok(caller) => {
                // Not before: whoever waits for an issuer's keys must not keep a place.
                if self.needs_place
                    && let Err(busy) = scene.enter(&self.app).await
                {
                    return busy.into_response();
                }
                request.extensions_mut().insert(Caller { vault: caller, app: self.app, scene });
                next.run(request).await
            }
            Err(error) => error.into_response(),
        }
    }

    async fn caller(&self, scene: &Scene, headers: &HeaderMap) -> Result<vault::Caller, ApiError> {
        let principal = self.authenticate(scene, headers).await?;
        let _ = scene.principal.set(principal.clone());
        scene.draw(&self.app, &bucket_of(&principal), self.category)?;
        if let Some(scope) = self.scope.filter(|scope| !principal.scopes.permit(*scope)) {
            let message = format!("The token lacks the scope `{}`", scope.as_str());
            return Err(ApiError::new("insufficient_scope", message));
        }
        let policies = self.app.vault.policies().current();
        let _ = scene.generation.set(policies.generation);
        Ok(vault::Caller { principal, context: scene.context.clone(), policies })
    }

    async fn authenticate(&self, scene: &Scene, headers: &HeaderMap) -> Result<Principal, ApiError> {
        let refused = match bearer(headers) {
            Ok(token) => match self.app.authenticator.authenticate(token).await {
                Ok(principal) => return Ok(principal),
                Err(AuthError::Unavailable) => return Err(AuthError::Unavailable.into()),
                Err(error) => (ApiError::from(error), error.to_string()),
            },
            Err(error) => (error.clone(), error.message),
        };
        self.app.metrics.failed_authentication();
        // Refusals have a limit of their own, by address, so that they cannot flood the audit.
        let address = scene.context.source_ip.map_or_else(|| "-".into(), |ip| ip.to_string().into());
        match self.app.rates.draw(&address, Category::Auth, 1, scene.context.now) {
            Ok(_) => {
                tracing::warn!(reason = refused.1, "a request was not authenticated");
                Err(refused.0)
            }
            Err(exhausted) => Err(rate_limited(&self.app, Category::Auth, exhausted)),
        }
    }

    /// The audit's word for what this gate leads to.
    fn action(&self) -> &'static str {
        if let Some(word) = self.word {
            return word;
        }
        match self.category {
            Category::Read | Category::BatchRead => "read",
            Category::Write => "write",
            Category::Delete => "delete",
            Category::List | Category::BatchMetadata => "list",
            Category::AuditQuery | Category::AuditExport => "audit",
            Category::PolicyOps | Category::PolicyTest => "policy",
            Category::Keys => "keys",
            Category::Auth => "authenticate",
        }
    }
}

/// Sees to it that every refusal is in the audit log before it is answered, and every success that the vault does not
/// record itself.
#[derive(Clone)]
struct Recorder {
    app: App,
    scene: Arc<Scene>,
    action: &'static str,
    path: Option<SecretPath>,
    /// Whether successes are recorded here, too.
    observes: bool,
}

impl Recorder {
    /// Does the work and records its refusal, detached: a client that hangs up cannot split what is done from what is
    /// recorded.
    async fn detached(self, work: impl Future<Output = Response> + Send + 'static) -> Result<Response, JoinError> {
        let span = tracing::info_span!("request", request_id = %self.scene.context.request_id);
        tokio::spawn(async move { self.conclude(work.await).await }.instrument(span)).await
    }

    async fn conclude(self, response: Response) -> Response {
        let unrecorded = |error: &&ApiError| !error.recorded;
        let refusal = response.extensions().get::<ApiError>();
        let code = match refusal {
            None => self.observes.then_some(audit::OK),
            Some(error) => Some(error).filter(unrecorded).map(|error| error.code),
        };
        match code {
            // Turning away must stay cheap: what is over its rate is counted, not recorded.
            None | Some("rate_limited") => response,
            // What could not be done in time must not wait for the log as well; the event follows when it can.
            Some("service_unavailable") => {
                self.scene.leave();
                tokio::spawn(async move { self.record("service_unavailable").await.ok() }.in_current_span());
                response
            }
            Some(code) => match self.record(code).await {
                Ok(()) => response,
                Err(fault) => ApiError::from(fault).into_response(),
            },
        }
    }

    async fn record(self, code: &'static str) -> Result<(), Fault> {
        let Self { app, scene, action, path, .. } = self;
        app.vault.record_request(scene.principal.get(), &scene.context, action, path, code).await
    }
}

/// Whose units a request draws on.
fn bucket_of(principal: &Principal) -> Arc<str> {
    format!("{}/{}", principal.tenant, principal.id).into()
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
    scene: Arc<Scene>,
}

impl Caller {
    /// Gives up its place among the requests that are worked on.
    pub fn leave(&self) {
        self.scene.leave();
    }

    /// Takes a place again.
    ///
    /// # Errors
    ///
    /// 503 where there is none for too long.
    pub async fn enter(&self) -> Result<(), ApiError> {
        self.scene.enter(&self.app).await
    }

    /// Draws more units, of a category that is not the gate's.
    ///
    /// # Errors
    ///
    /// 429 where there are too few.
    pub fn draw(&self, category: Category, units: u32) -> Result<(), ApiError> {
        let bucket = bucket_of(&self.vault.principal);
        let drawn = self.app.rates.draw(&bucket, category, units, self.vault.context.now);
        drawn.map(drop).map_err(|exhausted| {
            self.scene.show(Some(exhausted.quota));
            rate_limited(&self.app, category, exhausted)
        })
    }

    /// Gives units back.
    pub fn give_back(&self, category: Category, units: u32) {
        let bucket = bucket_of(&self.vault.principal);
        self.app.rates.give_back(&bucket, category, units, self.vault.context.now);
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

impl Target {
    /// The path of a request whose route has one.
    fn read<B>(request: &axum::http::Request<B>) -> Option<Result<SecretPath, InvalidPath>> {
        Self::parse(request.extensions().get::<MatchedPath>()?, request.uri())
    }

    fn parse(route: &MatchedPath, target: &Uri) -> Option<Result<SecretPath, InvalidPath>> {
        // `/v1/secrets/` and its like stand for a path that is empty, and so invalid.
        let prefix = route
            .as_str()
            .strip_suffix("{*path}")
            .or_else(|| route.as_str().ends_with('/').then_some(route.as_str()))?;
        target.path().strip_prefix(prefix).map(SecretPath::parse)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Target {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let route = parts.extensions.get::<MatchedPath>();
        let parsed = route.and_then(|route| Self::parse(route, &parts.uri));
        let path = parsed.ok_or_else(|| ApiError::new("internal_error", ""))?;
        path.map(Self).map_err(|error| ApiError::new("invalid_path", format!("This is no secret path: {error}")))
    }
}

/// The query's parameters. Unknown ones are refused: a misspelt one would be a surprise, and a token has no place there.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Ok(Query(parameters)) = Query::try_from_uri(&parts.uri) else {
            return Err(ApiError::invalid("The query has a parameter that is unknown, repeated or of the wrong type"));
        };
        Ok(Self(parameters))
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
