//! One request to a running server: its answer, or one [`Failure`] that says what to do next.
//!
//! Owns the connection, the token and the exit codes. Never prints, never logs, never follows a redirect.

use std::{env, error::Error, fmt, fs, path::PathBuf, time::Duration};

use hyper::body::Bytes;
use reqwest::{
    Certificate, Method, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER},
    redirect::Policy,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::output::printable;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);
/// Entries asked for at once where the caller wants a certain number.
const PAGE: usize = 100;
const TOKEN_VARIABLE: &str = "PORTCULLIS_TOKEN";

/// Where the server is and who calls.
///
/// There is no argument for the token itself: other users of the machine can read a command line. It comes from
/// `PORTCULLIS_TOKEN` or from a file.
#[derive(clap::Args)]
pub struct ConnectionArgs {
    /// The server's address
    #[arg(long, global = true, value_name = "URL", env = "PORTCULLIS_URL", default_value = "http://127.0.0.1:8400")]
    #[arg(hide_env_values = true)]
    url: String,
    /// A file that holds the token; without it `PORTCULLIS_TOKEN` is read
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Trust the certificates in this PEM file, and no others
    #[arg(long, global = true, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

/// The status a command ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// Anything that has no number of its own.
    Other = 1,
    /// No token, or one that the server does not accept (401).
    Unauthenticated = 2,
    /// The caller may not (403).
    Denied = 3,
    /// There is no such secret, version or field (404).
    Absent = 4,
    /// The request cannot be carried out as it is (400, 409, 413, 415, 422).
    Invalid = 5,
}

impl Exit {
    fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            401 => Self::Unauthenticated,
            403 => Self::Denied,
            404 => Self::Absent,
            400 | 409 | 413 | 415 | 422 => Self::Invalid,
            _ => Self::Other,
        }
    }

    /// For an entry of a batch, which has a code but no status.
    fn of_code(code: &str) -> Self {
        match code {
            "access_denied"
            | "insufficient_scope"
            | "mfa_required"
            | "ip_not_allowed"
            | "time_window_violation"
            | "policy_error" => Self::Denied,
            "secret_not_found" | "version_not_found" => Self::Absent,
            "invalid_path" | "invalid_request" => Self::Invalid,
            _ => Self::Other,
        }
    }
}

/// Why a command did not do what it was asked to, in one line.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
    code: Option<String>,
    request_id: Option<String>,
    next: String,
}

impl Failure {
    /// A failure on this side of the wire: no code, no request id.
    pub fn local(exit: Exit, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self { exit, message: message.into(), code: None, request_id: None, next: next.into() }
    }

    /// One path of a batch that was not released.
    pub fn of_entry(path: &str, error: &ErrorBody, request_id: Option<&str>) -> Self {
        Self {
            exit: Exit::of_code(&error.code),
            message: format!("{path}: {}", error.message),
            code: Some(error.code.clone()),
            request_id: request_id.map(str::to_owned),
            next: next_step(&error.code, None),
        }
    }

    /// The status to end with.
    pub fn exit(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.message.clone();
        match (&self.code, &self.request_id) {
            (Some(code), Some(id)) => text = format!("{text} ({code}, request {id})"),
            (Some(code), None) => text = format!("{text} ({code})"),
            (None, Some(id)) => text = format!("{text} (request {id})"),
            (None, None) => {}
        }
        write!(f, "{}; next: {}", printable(&text).replace('\n', " "), self.next)
    }
}

/// What the server says about an error, whole or of one path.
#[derive(Debug, Deserialize)]
pub struct ErrorBody {
    /// One of the API's error codes.
    pub code: String,
    /// For people.
    pub message: String,
    #[serde(default)]
    details: Option<serde_json::Value>,
    #[serde(default)]
    request_id: Option<String>,
}

#[derive(Deserialize)]
struct Envelope {
    error: ErrorBody,
}

/// A successful answer. The body may hold values of secrets and is wiped; what TLS and hyper buffered is not.
pub struct Answer {
    /// JSON, or nothing.
    pub body: Zeroizing<String>,
    /// The server's name for the request.
    pub request_id: Option<String>,
}

impl Answer {
    /// Reads the body as JSON.
    ///
    /// # Errors
    ///
    /// A [`Failure`] that does not repeat the body, if it has another shape.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        serde_json::from_str(&self.body).map_err(|_may_quote_a_value| Failure {
            request_id: self.request_id.clone(),
            ..Failure::local(Exit::Other, "the answer is not one that this version knows", WRONG_SERVER)
        })
    }
}

const WRONG_SERVER: &str = "check that --url names a Portcullis server of this version, not a proxy's own page";

/// A server and a token.
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: HeaderValue,
}

impl Client {
    /// Reads the token and the trusted certificates; sends nothing yet.
    ///
    /// # Errors
    ///
    /// A [`Failure`] if there is no token, or if the address or a file cannot be used.
    pub fn new(args: &ConnectionArgs) -> Result<Self, Failure> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            // The token goes to the address that was given and to no other: no redirect, no proxy from the environment.
            .redirect(Policy::none())
            .no_proxy();
        if let Some(file) = &args.ca_file {
            builder = builder.tls_certs_only(authorities(file)?);
        }
        let http = builder.build().map_err(|error| {
            Failure::local(Exit::Other, format!("TLS cannot be set up: {}", innermost(&error)), "check --ca-file")
        })?;
        Ok(Self { http, base: base_url(&args.url)?, token: token(args)? })
    }

    /// Sends one request to `target`, the path and query after the server's address, which are sent as they are.
    ///
    /// # Errors
    ///
    /// A [`Failure`] if there is no answer, or if it is not a success.
    pub async fn send(&self, method: Method, target: &str, body: Option<Zeroizing<String>>) -> Result<Answer, Failure> {
        let url = Url::parse(&format!("{}{target}", self.base)).map_err(|error| unusable_url(&error.to_string()))?;
        let mut request = self.http.request(method, url).header(AUTHORIZATION, self.token.clone());
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(Bytes::from_owner(body));
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let answer = Answer { body: self.read(response).await?, request_id: header(&headers, "x-request-id") };
        if status.is_success() { Ok(answer) } else { Err(refused(status, &headers, &answer)) }
    }

    /// Asks for one page of a list after another, until the last one or `limit` entries.
    ///
    /// # Errors
    ///
    /// As [`Client::send`]; a list that is cut short is no list.
    pub async fn list(&self, target: &str, limit: Option<usize>) -> Result<Vec<Box<RawValue>>, Failure> {
        let mut entries = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let wanted = limit.map(|limit| limit.saturating_sub(entries.len()));
            if wanted == Some(0) {
                return Ok(entries);
            }
            let answer = self.send(Method::GET, &page_target(target, wanted, cursor.as_deref()), None).await?;
            let page: Page = answer.parse()?;
            entries.extend(page.entries.into_iter().take(wanted.unwrap_or(usize::MAX)));
            // A server that repeats a cursor would be asked for ever.
            if !page.has_more || page.cursor.is_none() || page.cursor == cursor {
                return Ok(entries);
            }
            cursor = page.cursor;
        }
    }

    async fn read(&self, mut response: Response) -> Result<Zeroizing<String>, Failure> {
        // Room for all of it at once, if the server says how much: a buffer that grows leaves copies behind.
        let announced = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
        let mut body = Zeroizing::new(Vec::with_capacity(announced.min(128 << 20)));
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            body.extend_from_slice(&chunk);
        }
        String::from_utf8(std::mem::take(&mut *body))
            .map(Zeroizing::new)
            .map_err(|_bytes| Failure::local(Exit::Other, "the answer is not text", WRONG_SERVER))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let reason = if error.is_timeout() { "no answer in time".to_owned() } else { innermost(error) };
        Failure::local(
            Exit::Other,
            format!("{} cannot be reached: {reason}", self.base),
            "check that the server runs and that --url (PORTCULLIS_URL) names it; a private CA needs --ca-file",
        )
    }
}

#[derive(Deserialize)]
struct Page {
    #[serde(rename = "secrets", alias = "versions")]
    entries: Vec<Box<RawValue>>,
    #[serde(default)]
    cursor: Option<String>,
    #[serde(default)]
    has_more: bool,
}

fn page_target(target: &str, wanted: Option<usize>, cursor: Option<&str>) -> String {
    let limit = wanted.map(|wanted| format!("limit={}", wanted.min(PAGE)));
    let cursor = cursor.map(|cursor| format!("cursor={}", query_encoded(cursor)));
    let mut target = target.to_owned();
    for parameter in limit.into_iter().chain(cursor) {
        target.push(if target.contains('?') { '&' } else { '?' });
        target.push_str(&parameter);
    }
    target
}

/// For a cursor, which is the server's own and may hold anything.
fn query_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

fn authorities(file: &PathBuf) -> Result<Vec<Certificate>, Failure> {
    let unusable = |reason: String| {
        Failure::local(Exit::Invalid, format!("{}: {reason}", file.display()), "give --ca-file a PEM file")
    };
    let pem = fs::read(file).map_err(|error| unusable(error.to_string()))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| unusable(innermost(&error)))?;
    if certificates.is_empty() { Err(unusable("no certificate in it".to_owned())) } else { Ok(certificates) }
}

fn base_url(text: &str) -> Result<String, Failure> {
    let url = Url::parse(text).map_err(|error| unusable_url(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(unusable_url("it is neither http nor https"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(unusable_url("it has more than a host, a port and a path"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// The address itself is not repeated: someone may have put a password into it.
fn unusable_url(reason: &str) -> Failure {
    let next = "give --url or PORTCULLIS_URL like https://vault.example:8400";
    Failure::local(Exit::Invalid, format!("the server's address cannot be used: {reason}"), next)
}

fn token(args: &ConnectionArgs) -> Result<HeaderValue, Failure> {
    let refused = |message: String| {
        let next = format!("put a token into {TOKEN_VARIABLE}, or into a file named by --token-file");
        Failure::local(Exit::Unauthenticated, message, next)
    };
    let text = match &args.token_file {
        Some(file) => fs::read_to_string(file).map_err(|error| refused(format!("{}: {error}", file.display())))?,
        None => env::var(TOKEN_VARIABLE).unwrap_or_default(),
    };
    let text = Zeroizing::new(text);
    if text.trim().is_empty() {
        return Err(refused("there is no token".to_owned()));
    }
    let header = Zeroizing::new(format!("Bearer {}", text.trim()));
    let mut value = HeaderValue::from_str(&header).map_err(|_| refused("the token is not one line of text".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn refused(status: StatusCode, headers: &HeaderMap, answer: &Answer) -> Failure {
    let exit = Exit::of_status(status);
    let Ok(Envelope { error }) = serde_json::from_str(&answer.body) else {
        return Failure {
            request_id: answer.request_id.clone(),
            ..Failure::local(exit, format!("the server answered {status}"), WRONG_SERVER)
        };
    };
    Failure {
        exit,
        message: with_details(&error),
        next: next_step(&error.code, header(headers, RETRY_AFTER.as_str()).as_deref()),
        code: Some(error.code),
        request_id: error.request_id.or_else(|| answer.request_id.clone()),
    }
}

/// A path goes first, as in a batch that failed fast; other details follow as they are. The API keeps values out of
/// them.
fn with_details(error: &ErrorBody) -> String {
    let Some(details) = &error.details else { return error.message.clone() };
    match details.get("path").and_then(serde_json::Value::as_str) {
        Some(path) => format!("{path}: {}", error.message),
        None => format!("{} {details}", error.message),
    }
}

fn next_step(code: &str, retry_after: Option<&str>) -> String {
    let step = match code {
        "authentication_required" | "token_expired" | "token_invalid" | "token_revoked" => {
            "get a new token and put it into PORTCULLIS_TOKEN or the file of --token-file"
        }
        "insufficient_scope" => "use a token with the scope for this, such as secrets:read",
        "mfa_required" => "sign in again with a second factor and use the new token",
        "ip_not_allowed" => "try from a network that the policy allows",
        "time_window_violation" => "try again within the hours that the policy allows",
        "access_denied" | "policy_error" => "ask whoever keeps the policies, naming the request",
        "secret_not_found" | "not_found" => "see what there is with: portcullis secret list",
        "version_not_found" => "see the versions with: portcullis secret versions PATH",
        "version_conflict" => "read the latest version, then write with its number in --expected-version",
        "secret_exists" => "restore the deleted secret first, or destroy it with: portcullis secret delete --permanent",
        "rate_limited" => return format!("try again in {} s", retry_after.unwrap_or("60")),
        code if code.starts_with("invalid_") || code == "validation_error" => "correct the command and try again",
        "keys_busy" => "see how far it is with: portcullis keys status",
        "root_key_rejected" => "put the new root key where [root_key.next] says and try again",
        "payload_too_large" => "store less than 1 MiB in one secret",
        _ => "try again; if it stays, give the request to whoever runs the server",
    };
    step.to_owned()
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// The cause at the end of the chain: "connection refused" rather than "error sending request".
fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
