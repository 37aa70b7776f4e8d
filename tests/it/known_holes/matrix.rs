//! Every route × everybody who must not get through it (CVE-2026-45808 and its kin): refused with the right word, with
//! one event, with nothing told and nothing changed.

use std::collections::BTreeSet;

use portcullis::{
    auth::{TokenIssuer, TokenRequest},
    domain::{Clock, Scope, TenantId, Timestamp},
    server::SystemClock,
};
use serde_json::{Value, json};

use super::routes::{CONFIG, Opens, ROUTES, Route, document, operations, with_a_path};
use crate::support::{ALL_SCOPES, Client, Options, TestServer};

const CANARY: &str = "c4n4ry";
const LOGS: (&str, &str) = ("default", "/v1/audit/logs");

async fn server() -> TestServer {
    TestServer::start(Options { config: CONFIG.to_owned(), ..Options::default() }).await
}

/// A token with all scopes for `user:root`, with what makes it wrong.
fn token(server: &TestServer, issuer: &str, audience: &str, issued: Timestamp) -> String {
    let issuer = TokenIssuer::new(&server.root_key().token_seed(), issuer.to_owned(), audience.to_owned()).unwrap();
    let request = TokenRequest {
        subject: "user:root".to_owned(),
        tenant: TenantId::default_tenant(),
        scopes: [Scope::Admin].into_iter().collect(),
        groups: Vec::new(),
        mfa: false,
        lifetime: std::time::Duration::from_mins(1),
    };
    issuer.issue(&request, issued, "matrix").unwrap()
}

/// Those whose token opens nothing, each with the word that meets them.
fn without_a_token(server: &TestServer, other: &TestServer) -> Vec<(&'static str, Option<String>, &'static str)> {
    let now = SystemClock.now();
    let hours_ago = Timestamp::from_micros(now.micros() - 7_200_000_000);
    let good = token(server, "portcullis", "portcullis", now);
    let (unsigned, signature) = good.rsplit_once('.').unwrap();
    vec![
        ("nobody", None, "authentication_required"),
        ("an expired token", Some(token(server, "portcullis", "portcullis", hours_ago)), "token_expired"),
        ("another audience", Some(token(server, "portcullis", "other", now)), "token_invalid"),
        ("another issuer", Some(token(server, "other", "portcullis", now)), "token_invalid"),
        ("another vault's key", Some(token(other, "portcullis", "portcullis", now)), "token_invalid"),
        ("no signature", Some(format!("{unsigned}.")), "token_invalid"),
        ("half a signature", Some(format!("{unsigned}.{}", &signature[..43])), "token_invalid"),
        ("the empty token", Some(String::new()), "token_invalid"),
    ]
}

#[tokio::test]
async fn c_37_nothing_is_done_for_nobody() {
    let (server, other) = (server().await, server().await);
    let before = secrets_of(&server.root()).await;
    let mut refused = 0;
    for (who, token, code) in without_a_token(&server, &other) {
        for route in &ROUTES {
            let what = format!("{who}: {} {}", route.method, route.target);
            let answer = route.ask(&server, token.as_deref()).await;
            if route.opens == Opens::Everyone {
                assert!(route.method == "GET" && answer.status() == 200, "{what}");
                continue;
            }
            assert_eq!(answer.header("www-authenticate").as_deref(), Some("Bearer"), "{what}");
            answer.expect_error(401, code).await;
            refused += 1;
        }
    }
    assert_eq!(secrets_of(&server.root()).await, before, "nothing was done");
    let events = server.whole_audit("&success=false").await;
    assert_eq!(events.len(), refused, "each refusal has its event");
    assert!(events.iter().all(|event| event["identity_id"].is_null() && event["tenant_id"].is_null()));
    println!("{refused} requests of {} kinds of nobody refused on {} routes", 8, ROUTES.len());
}

/// What the document says is open to everyone can be looked at, never changed.
#[tokio::test]
async fn c_37_what_is_open_to_everyone_changes_nothing() {
    let document = document(&server().await).await;
    for (method, path, operation) in operations(&document) {
        let row = ROUTES.iter().find(|row| (row.method, row.template) == (method.as_str(), path.as_str())).unwrap();
        let open = operation.get("security").is_some();
        assert_eq!(open, row.opens == Opens::Everyone, "{method} {path}: the document and the matrix differ");
        assert!(!open || method == "GET", "{method} {path} is open to everyone");
    }
}

#[tokio::test]
async fn c_34_each_scope_opens_its_own_routes_and_no_other() {
    let server = server().await;
    let mut refused = 0;
    let with = |scopes: &[Scope]| server.token_with("user:root", "default", scopes, &[]);
    for route in &ROUTES {
        let Opens::Scope(own) = route.opens else { continue };
        let others: Vec<_> = ALL_SCOPES.into_iter().filter(|scope| *scope != own).collect();
        let mut wrong: Vec<Vec<Scope>> = others.iter().map(|scope| vec![*scope]).collect();
        wrong.extend([Vec::new(), others]);
        for scopes in wrong {
            let answer = route.ask(&server, Some(&with(&scopes))).await;
            assert_eq!(answer.status(), 403, "{} {} with {scopes:?}", route.method, route.target);
            answer.expect_error(403, "insufficient_scope").await;
            refused += 1;
        }
    }
    assert_eq!(server.whole_audit("&success=false").await.len(), refused);
    assert_eq!(secrets_of(&server.root()).await, json!([]), "nothing was done");
    for route in &ROUTES {
        let token = match route.opens {
            Opens::Scope(scope) => with(&[scope]),
            Opens::AnyToken | Opens::Everyone => with(&[]),
        };
        let answer = route.ask(&server, Some(&token)).await;
        assert_eq!(answer.status(), route.status, "{} {}", route.method, route.target);
    }
    println!("{refused} requests without the scope refused");
}

/// CVE-2025-25188, CVE-2020-35177: what is refused and what is not there look alike.
#[tokio::test]
async fn c_29_c_35_a_stranger_cannot_tell_whether_a_secret_is_there() {
    let server = server().await;
    let answers = async |tenant: &str, subject: &str| {
        let token = server.token_with(subject, tenant, &ALL_SCOPES, &[]);
        let mut answers = Vec::new();
        // The log of the tenant is what its auditors share; metrics are numbers of the server, and its keys are the
        // default tenant's affair.
        let shared = |route: &&Route| {
            let whole = ["/v1/metrics", "/v1/audit/export"].contains(&route.template);
            whole || route.template.starts_with("/v1/keys") || (tenant, route.template) == LOGS
        };
        for route in ROUTES.iter().filter(|route| !shared(route)) {
            let (status, mut body) = route.ask(&server, Some(&token)).await.json().await;
            let text = body.to_string();
            assert!(!text.contains(CANARY), "{} {} as {subject} of {tenant}: {text}", route.method, route.target);
            blank(&mut body, tenant);
            answers.push((route.method, route.target, status, body));
        }
        answers
    };
    // `user:root` of another tenant may do everything there; `user:stranger` of this one has every scope and no rule.
    let (foreign, stranger) = (answers("zeta1", "user:root").await, answers("default", "user:stranger").await);
    let root = server.root();
    for _ in 0..2 {
        root.store("team/app/key", json!({"k": CANARY, CANARY: 1})).await;
    }
    root.store(CANARY, json!({})).await;
    root.patch("/v1/metadata/team/app/key", json!({"owner": CANARY, "tags": [CANARY]})).await;
    let before = secrets_of(&root).await;
    assert_eq!(answers("zeta2", "user:root").await, foreign);
    assert_eq!(answers("default", "user:stranger").await, stranger);
    for route in with_a_path() {
        let token = server.token("user:stranger");
        route.ask(&server, Some(&token)).await.expect_error(403, "access_denied").await;
    }
    assert_eq!(secrets_of(&root).await, before);
}

/// Takes out of an answer what differs from request to request.
fn blank(value: &mut Value, tenant: &str) {
    const NUMBERS: [&str; 7] = ["calls", "denials", "p50_us", "p99_us", "duration_ms", "micros", "last_reload"];
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !NUMBERS.contains(&name.as_str()));
            fields.values_mut().for_each(|value| blank(value, tenant));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| blank(value, tenant)),
        Value::String(text) if text.starts_with("req_") || text.starts_with("evt_") => "an id".clone_into(text),
        Value::String(text) if text.parse::<Timestamp>().is_ok() => "an instant".clone_into(text),
        Value::String(text) if text == tenant => "the tenant".clone_into(text),
        _ => (),
    }
}

/// The secrets, as one who may do everything sees them.
async fn secrets_of(root: &Client) -> Value {
    let mut listed = root.get("/v1/secrets?limit=1000").await.json().await.1["secrets"].clone();
    for secret in listed.as_array_mut().unwrap() {
        let path = secret["path"].as_str().unwrap().to_owned();
        secret["value"] = root.get(&format!("/v1/secrets/{path}")).await.json().await.1;
        secret["versions"] = root.get(&format!("/v1/versions/{path}")).await.json().await.1;
    }
    listed
}

/// Where the document says that a cursor goes in: method, path, whether in the query.
fn takes_a_cursor(document: &Value) -> BTreeSet<(String, String)> {
    let has_one = |operation: &Value| {
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let schema = |text: &str| {
            let name = text.split("#/components/schemas/").nth(1).map_or("", |rest| rest.split('"').next().unwrap());
            document["components"]["schemas"][name].clone()
        };
        let body = schema(&operation["requestBody"].to_string());
        let properties = json!([body, schema(&body["properties"]["options"].to_string())]);
        parameters.iter().any(|parameter| parameter["name"] == "cursor")
            || properties.to_string().contains("\"cursor\"")
    };
    operations(document).into_iter().filter(|(.., operation)| has_one(operation)).map(|(m, p, _)| (m, p)).collect()
}

/// CVE-2026-40264, CVE-2026-45808, CVE-2026-55774: a handle that somebody else was given.
#[tokio::test]
async fn c_35_a_cursor_serves_whom_it_was_given_and_for_what() {
    let server = TestServer::with_rules(&crate::support::ROOT_MAY_ALL.replace("user:root", "*")).await;
    let of =
        |subject: &str, tenant: &str| server.client_with_token(server.token_with(subject, tenant, &ALL_SCOPES, &[]));
    let who = [of("user:root", "default"), of("user:other", "default"), of("user:root", "acme")];
    for client in &who {
        for path in ["a", "b", "c"] {
            client.store(path, json!({})).await;
        }
    }
    let list = "/v1/secrets?limit=1";
    let logs = "/v1/audit/logs?limit=1";
    let batch = |cursor: Option<&str>| json!({"paths": ["*"], "expand_wildcards": true, "options": {"limit": 1, "cursor": cursor}});
    // Every route that takes a cursor, with how it is asked for its first page and for the page behind a cursor.
    let ways: [(&str, &str); 3] =
        [("GET", "/v1/secrets"), ("GET", "/v1/audit/logs"), ("POST", "/v1/secrets/batch/metadata")];
    let known: BTreeSet<_> = ways.iter().map(|(m, p)| ((*m).to_owned(), (*p).to_owned())).collect();
    assert_eq!(takes_a_cursor(&document(&server).await), known, "each route that takes a cursor is tried here");
    let page = async |client: &Client, way: usize, cursor: Option<&str>| {
        let behind = cursor.map_or_else(String::new, |cursor| format!("&cursor={cursor}"));
        match way {
            0 => client.get(&format!("{list}{behind}")).await,
            1 => client.get(&format!("{logs}{behind}")).await,
            _ => client.post("/v1/secrets/batch/metadata", batch(cursor)).await,
        }
    };
    let mut cursors = Vec::new();
    for (owner, client) in who.iter().enumerate() {
        for way in 0..ways.len() {
            let (status, body) = page(client, way, None).await.json().await;
            assert_eq!(status, 200, "{body}");
            cursors.push((owner, way, body["cursor"].as_str().unwrap().to_owned()));
        }
    }
    let mut refused = 0;
    for (owner, made_by, cursor) in &cursors {
        for (user, client) in who.iter().enumerate() {
            for way in 0..ways.len() {
                let answer = page(client, way, Some(cursor)).await;
                if (*owner, *made_by) == (user, way) {
                    assert_eq!(answer.status(), 200);
                } else {
                    answer.expect_error(400, "invalid_cursor").await;
                    refused += 1;
                }
            }
        }
    }
    assert_eq!(refused, 9 * 9 - 9);
}

/// CVE-2022-40186, CVE-2021-43998: who a principal is comes from the token's bytes; nothing widens it afterwards.
#[tokio::test]
async fn c_27_c_28_a_spelling_of_an_identity_is_another_identity_or_none() {
    let server = server().await;
    server.root().store("team/app/key", json!({"k": CANARY})).await;
    let spellings = [
        "user:Root",
        "user:ROOT",
        "User:root",
        "USER:root",
        "user:root ",
        " user:root",
        "user: root",
        "user:root\t",
        "user:root\u{0}",
        "user:ro\u{200b}ot",
        "user:r\u{43e}ot",
        "user:root@",
        "user:root/",
        "user:/root",
        "user:root.",
        "user:root@a@b",
        "user:root+x",
        "user:./root",
        "user:user:root",
        "sa:root",
        "root",
        "user:",
        "user:*",
        "*",
        "user:root\n",
        "user:root,user:root",
        "user:root|x",
        "user:ｒｏｏｔ",
        "group:root",
        "user:r%6fot",
        "user:\"root\"",
    ];
    let issuer = TokenIssuer::new(&server.root_key().token_seed(), "portcullis".into(), "portcullis".into()).unwrap();
    let (mut nobody, mut others) = (0, 0);
    for subject in spellings {
        let request = TokenRequest {
            subject: subject.to_owned(),
            tenant: TenantId::default_tenant(),
            scopes: ALL_SCOPES.into_iter().collect(),
            groups: Vec::new(),
            mfa: false,
            lifetime: std::time::Duration::from_mins(1),
        };
        // The grammar of subjects is one for those who issue and for those who verify.
        let Ok(token) = issuer.issue(&request, SystemClock.now(), "spelled") else {
            nobody += 1;
            continue;
        };
        others += 1;
        let client = server.client_with_token(token.clone());
        assert_eq!(client.get("/v1/auth/whoami").await.json().await.1["identity_id"], subject);
        for route in with_a_path() {
            route.ask(&server, Some(&token)).await.expect_error(403, "access_denied").await;
        }
        let events = server.audit(&format!("&identity_id={}", subject.replace('+', "%2B"))).await;
        assert_eq!(events.iter().filter(|event| event["code"] == "access_denied").count(), with_a_path().count());
    }
    assert!(nobody >= 15 && others >= 8, "{nobody} {others}");
}

/// CVE-2025-5999, CVE-2024-9180: a reserved word in another spelling.
#[tokio::test]
async fn c_26_no_spelling_of_a_scope_is_that_scope() {
    let words: Vec<&str> = Scope::ALL.iter().map(|(_, word)| *word).collect();
    for word in &words {
        let odd = [
            word.to_uppercase(),
            format!(" {word}"),
            format!("{word} "),
            format!("{word}\u{0}"),
            format!("{word}:*"),
            word.replace(':', "."),
            word.replace(':', "::"),
            word.replace('a', "\u{430}"),
            word.split(':').next().unwrap().to_owned() + ":*",
            "*".to_owned(),
        ];
        for spelling in odd.iter().filter(|spelling| !words.contains(&spelling.as_str())) {
            assert_eq!(Scope::parse(spelling), None, "{spelling:?}");
        }
        assert!(Scope::parse(word).is_some());
    }
}

/// CVE-2026-55775: a namespace that calls itself `root` and is taken for the parent of all.
#[tokio::test]
async fn c_02_no_tenant_resolves_upward() {
    let server = server().await;
    server.root().store("team/app/key", json!({"k": CANARY})).await;
    let odd = [
        "root",
        "sys",
        "admin",
        "default0",
        "default-",
        "default_",
        "0",
        "null",
        "undefined",
        "none",
        "global",
        "system",
        "",
        ".",
        "..",
        "/",
        "default/",
        "/default",
        "./default",
        "default/..",
        "Default",
        "DEFAULT",
        " default",
        "default ",
        "default\u{0}",
        "d%65fault",
        "def\u{430}ult",
        "*",
        "default,acme",
        "default\n",
        "\u{200b}default",
    ];
    let (mut tenants, mut none) = (0, 0);
    for name in odd {
        let Some(tenant) = TenantId::parse(name) else {
            none += 1;
            continue;
        };
        tenants += 1;
        assert_eq!(tenant.as_str(), name, "kept to the byte");
        let token = server.token_with("user:root", name, &[Scope::Admin], &[]);
        for route in &ROUTES {
            let (status, body) = route.ask(&server, Some(&token)).await.json().await;
            assert!(status < 500 && !body.to_string().contains(CANARY), "{name}: {} {}", route.method, route.target);
        }
        let logs = server.client_with_token(token).get("/v1/audit/logs?limit=1000").await.json().await.1;
        assert!(logs["logs"].as_array().unwrap().iter().all(|event| event["tenant_id"] == name), "{name}");
    }
    assert!(tenants >= 10 && none >= 15, "{tenants} {none}");
    let kept = server.root().get("/v1/secrets/team/app/key").await.json().await.1;
    assert_eq!((&kept["version"], &kept["data"]["k"]), (&json!(1), &json!(CANARY)));
}

/// What is done leaves its event, what is refused as well; only what the server says of itself to anybody leaves none.
#[tokio::test]
async fn what_is_done_and_what_is_refused_is_on_record() {
    let server = server().await;
    let admin = server.token_with("user:root", "default", &[Scope::Admin], &[]);
    for route in &ROUTES {
        let what = format!("{} {}", route.method, route.target);
        let done = route.ask(&server, Some(&admin)).await;
        assert_eq!(done.status(), route.status, "{what}");
        let id = done.header("x-request-id").unwrap();
        let events = server.whole_audit(&format!("&request_id={id}")).await;
        let told: Vec<_> = events.iter().map(|event| (&event["action"], &event["success"])).collect();
        let expected = route.action.map(|action| (json!(action), json!(route.status < 300)));
        assert_eq!(told, expected.iter().map(|(action, done)| (action, done)).collect::<Vec<_>>(), "{what}");
        let refused = route.ask(&server, None).await;
        let id = refused.header("x-request-id").unwrap();
        let events = server.whole_audit(&format!("&request_id={id}")).await;
        assert_eq!(events.len(), usize::from(route.opens != Opens::Everyone), "{what}, refused");
    }
}
