//! Every operation of the OpenAPI document, each with a request that is right. A new route needs a row here.

use std::collections::BTreeSet;

use portcullis::domain::Scope;
use reqwest::Method;
use serde_json::Value;

use crate::support::{Answer, TestServer};

/// What lets a request in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opens {
    /// Nothing is needed.
    Everyone,
    /// Any valid token.
    AnyToken,
    /// A token with this scope.
    Scope(Scope),
}

/// An operation, and a request for it that succeeds.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    pub method: &'static str,
    /// The path as the document has it.
    pub template: &'static str,
    pub target: &'static str,
    pub body: Option<&'static str>,
    pub opens: Opens,
    /// The status of the right request. The rows are tried in their order: the first writes what the others find.
    pub status: u16,
    /// The audit's word for it; none where what is done leaves no event.
    pub action: Option<&'static str>,
}

const fn route(
    (method, template): (&'static str, &'static str),
    target: &'static str,
    body: Option<&'static str>,
    opens: Opens,
    (status, action): (u16, Option<&'static str>),
) -> Route {
    Route { method, template, target, body, opens, status, action }
}

use Opens::{AnyToken, Everyone, Scope as Of};

pub const ROUTES: [Route; 30] = [
    route(
        ("PUT", "/v1/secrets/{path}"),
        "/v1/secrets/team/app/key",
        Some(r#"{"data":{"k":"v"},"metadata":{"owner":"o"}}"#),
        Of(Scope::SecretsWrite),
        (201, Some("write")),
    ),
    route(("GET", "/v1/secrets/{path}"), "/v1/secrets/team/app/key", None, Of(Scope::SecretsRead), (200, Some("read"))),
    route(
        ("GET", "/v1/metadata/{path}"),
        "/v1/metadata/team/app/key",
        None,
        Of(Scope::SecretsList),
        (200, Some("list")),
    ),
    route(
        ("PATCH", "/v1/metadata/{path}"),
        "/v1/metadata/team/app/key",
        Some(r#"{"owner":"p"}"#),
        Of(Scope::SecretsWrite),
        (200, Some("write")),
    ),
    route(
        ("GET", "/v1/versions/{path}"),
        "/v1/versions/team/app/key",
        None,
        Of(Scope::SecretsList),
        (200, Some("list")),
    ),
    route(
        ("POST", "/v1/rollback/{path}"),
        "/v1/rollback/team/app/key",
        Some(r#"{"version":1}"#),
        Of(Scope::SecretsWrite),
        (200, Some("write")),
    ),
    route(("GET", "/v1/secrets"), "/v1/secrets", None, Of(Scope::SecretsList), (200, Some("list"))),
    route(
        ("POST", "/v1/secrets/batch"),
        "/v1/secrets/batch",
        Some(r#"{"paths":["team/app/key"]}"#),
        Of(Scope::SecretsRead),
        (200, Some("read")),
    ),
    route(
        ("POST", "/v1/secrets/batch/metadata"),
        "/v1/secrets/batch/metadata",
        Some(r#"{"paths":["team/app/key"]}"#),
        Of(Scope::SecretsList),
        (200, Some("list")),
    ),
    route(
        ("POST", "/v1/destroy/{path}"),
        "/v1/destroy/team/app/key",
        Some(r#"{"versions":[1]}"#),
        Of(Scope::SecretsDelete),
        (200, Some("delete")),
    ),
    route(
        ("DELETE", "/v1/secrets/{path}"),
        "/v1/secrets/team/app/key",
        None,
        Of(Scope::SecretsDelete),
        (200, Some("delete")),
    ),
    route(
        ("POST", "/v1/restore/{path}"),
        "/v1/restore/team/app/key",
        None,
        Of(Scope::SecretsWrite),
        (200, Some("write")),
    ),
    route(("GET", "/v1/policies"), "/v1/policies", None, Of(Scope::PoliciesRead), (200, Some("list_policies"))),
    route(
        ("GET", "/v1/policies/{name}"),
        "/v1/policies/rules",
        None,
        Of(Scope::PoliciesRead),
        (200, Some("describe_policy")),
    ),
    route(
        ("GET", "/v1/policies/status"),
        "/v1/policies/status",
        None,
        Of(Scope::PoliciesRead),
        (200, Some("policy_status")),
    ),
    route(
        ("POST", "/v1/policies/reload"),
        "/v1/policies/reload",
        None,
        Of(Scope::PoliciesWrite),
        (200, Some("reload_policies")),
    ),
    route(
        ("POST", "/v1/policies/test"),
        "/v1/policies/test",
        Some(r#"{"identity":{"id":"user:root"},"action":"read","path":"team/app/key"}"#),
        Of(Scope::PoliciesRead),
        (200, Some("test_policies")),
    ),
    route(("GET", "/v1/audit/logs"), "/v1/audit/logs", None, Of(Scope::AuditRead), (200, Some("query_audit_log"))),
    route(
        ("POST", "/v1/audit/export"),
        "/v1/audit/export",
        Some(r#"{"format":"jsonl"}"#),
        Of(Scope::AuditExport),
        (200, Some("export_audit_log")),
    ),
    route(("GET", "/v1/keys"), "/v1/keys", None, Of(Scope::Admin), (200, Some("key_status"))),
    route(("POST", "/v1/keys/rotate"), "/v1/keys/rotate", Some("{}"), Of(Scope::Admin), (200, Some("rotate_keys"))),
    route(("POST", "/v1/keys/rewrap"), "/v1/keys/rewrap", Some("{}"), Of(Scope::Admin), (202, Some("rewrap_keys"))),
    route(
        ("POST", "/v1/keys/rotate-root"),
        "/v1/keys/rotate-root",
        None,
        Of(Scope::Admin),
        // There is no key to go over to.
        (422, Some("keys")),
    ),
    route(("GET", "/v1/auth/whoami"), "/v1/auth/whoami", None, AnyToken, (200, Some("whoami"))),
    route(("POST", "/v1/seal"), "/v1/seal", None, Of(Scope::Admin), (200, Some("seal"))),
    // Open where `metrics_need_token` is not set; the tests set it.
    route(("GET", "/v1/metrics"), "/v1/metrics", None, Of(Scope::Admin), (200, None)),
    route(("GET", "/v1/health"), "/v1/health", None, Everyone, (200, None)),
    route(("GET", "/v1/health/ready"), "/v1/health/ready", None, Everyone, (200, None)),
    route(("GET", "/v1/version"), "/v1/version", None, Everyone, (200, None)),
    route(("GET", "/v1/openapi.json"), "/v1/openapi.json", None, Everyone, (200, None)),
];

/// What a server of these tests is configured with.
pub const CONFIG: &str = "[server]\nmetrics_need_token = true\n";

impl Route {
    /// What stands before the path of a route about one secret.
    pub fn prefix(&self) -> Option<&'static str> {
        self.template.strip_suffix("{path}")
    }

    /// The right request, with somebody's token or none.
    pub async fn ask(&self, server: &TestServer, token: Option<&str>) -> Answer {
        self.ask_at(server, token, self.target).await
    }

    /// The same at another target.
    pub async fn ask_at(&self, server: &TestServer, token: Option<&str>, target: &str) -> Answer {
        let method = Method::from_bytes(self.method.as_bytes()).unwrap();
        let mut request = server.http.request(method, format!("{}{target}", server.url));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = self.body {
            request = request.header("content-type", "application/json").body(body);
        }
        let answer = Answer(request.send().await.unwrap());
        if self.template == "/v1/seal" && answer.status() == 200 {
            // What comes after finds it open again.
            let data_dir = server.data_dir.to_str().unwrap();
            let (code, told) = server.program(&["unseal", "--data-dir", data_dir]).await;
            assert_eq!(code, 0, "{told}");
        }
        answer
    }
}

/// The routes about one secret.
pub fn with_a_path() -> impl Iterator<Item = &'static Route> {
    ROUTES.iter().filter(|route| route.prefix().is_some())
}

/// What the server says of its routes.
pub async fn document(server: &TestServer) -> Value {
    let answer = server.http.get(format!("{}/v1/openapi.json", server.url)).send().await.unwrap();
    serde_json::from_str(&answer.text().await.unwrap()).unwrap()
}

/// Method, path and description of every operation in the document.
pub fn operations(document: &Value) -> Vec<(String, String, &Value)> {
    let words = ["get", "put", "post", "patch", "delete", "head", "options", "trace"];
    let of_path = |(path, item): (&String, _)| {
        let item: &Value = item;
        let found = words.iter().filter_map(|word| Some((word.to_uppercase(), path.clone(), item.get(word)?)));
        found.collect::<Vec<_>>()
    };
    document["paths"].as_object().unwrap().iter().flat_map(of_path).collect()
}

#[tokio::test]
async fn every_route_of_the_document_has_a_row() {
    let document = document(&TestServer::new().await).await;
    let documented: BTreeSet<_> = operations(&document).into_iter().map(|(method, path, _)| (method, path)).collect();
    let rows: BTreeSet<_> = ROUTES.iter().map(|row| (row.method.to_owned(), row.template.to_owned())).collect();
    assert_eq!(rows.len(), ROUTES.len(), "two rows of one route");
    assert_eq!(documented, rows, "give each route of the document a row in `ROUTES`");
}
