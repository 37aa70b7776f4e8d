//! Several modules in force: how their answers become one.

use serde_json::{Value, json};

use crate::{
    guests::Directory,
    hostile_policies::outcomes,
    support::{Client, TestServer},
};

const PATIENT: &str = "deadline = \"5s\"";

/// The answer to a read of a path that ends in `x`, where `deny` denies: `read`, or the code of the refusal.
async fn verdict(client: &Client, path: &str) -> String {
    let (status, body) = client.get(&format!("/v1/secrets/{path}")).await.json().await;
    if status == 200 { "read".to_owned() } else { body["error"]["code"].as_str().unwrap().to_owned() }
}

/// A server with these modules in this order: `guest`, `guest!shadow` or `guest!off`.
async fn server(modules: &[&str]) -> TestServer {
    let mut directory = Directory::new();
    for (index, module) in modules.iter().enumerate() {
        let (guest, mode) = module.split_once('!').unwrap_or((module, "enforce"));
        directory = directory.named(&format!("m{index}"), guest, &format!("{PATIENT}\nmode = {mode:?}"));
    }
    directory.server().await
}

#[tokio::test]
async fn deny_overrides_and_silence_denies() {
    let table: [(&[&str], &str); 22] = [
        (&["allow"], "secret_not_found"),
        (&["deny"], "access_denied"),
        (&["abstain"], "access_denied"),
        (&["abstain", "abstain"], "access_denied"),
        (&["abstain", "allow"], "secret_not_found"),
        (&["allow", "abstain"], "secret_not_found"),
        (&["allow", "deny"], "access_denied"),
        (&["deny", "allow"], "access_denied"),
        (&["allow", "allow", "deny_mfa"], "mfa_required"),
        (&["deny", "deny_mfa"], "access_denied"),
        (&["deny_mfa", "deny"], "mfa_required"),
        (&["allow", "unreachable"], "policy_error"),
        (&["unreachable", "allow"], "policy_error"),
        (&["unreachable", "deny_mfa"], "policy_error"),
        (&["allow", "unknown_duty"], "policy_error"),
        (&["unknown_duty", "allow"], "policy_error"),
        (&["allow", "deny!shadow"], "secret_not_found"),
        (&["allow", "unreachable!shadow"], "secret_not_found"),
        (&["allow!shadow"], "access_denied"),
        (&["abstain", "allow!shadow"], "access_denied"),
        (&["allow", "deny!off"], "secret_not_found"),
        (&["allow!off"], "access_denied"),
    ];
    for (modules, expected) in table {
        let server = server(modules).await;
        assert_eq!(verdict(&server.root(), "ax").await, expected, "{modules:?}");
        let reason = &server.audit("&path_prefix=ax").await[0]["decision"];
        let decided = reason["module"].as_str();
        assert_eq!(decided.is_none(), expected == "access_denied" && reason["reason"] == "no_policy", "{modules:?}");
    }
}

#[tokio::test]
async fn a_shadow_is_always_asked_and_only_its_disagreements_are_counted() {
    // Modules, and the disagreements of the last one after one denied-by-`deny` path and one plain path.
    let table: [(&[&str], u64); 9] = [
        (&["allow", "allow!shadow"], 0),
        (&["allow", "deny!shadow"], 1),
        (&["allow", "abstain!shadow"], 0),
        (&["allow", "unreachable!shadow"], 1),
        (&["allow", "unknown_duty!shadow"], 1),
        (&["allow", "unknown_wish!shadow"], 0),
        (&["deny", "allow!shadow"], 1),
        (&["deny", "deny!shadow"], 0),
        (&["abstain", "allow!shadow"], 2),
    ];
    for (modules, expected) in table {
        let server = server(modules).await;
        let batch = server.root().batch(&["ax", "b"]).await;
        let alone = self::server(&modules[..1]).await.root().batch(&["ax", "b"]).await;
        assert_eq!(batch, alone, "{modules:?}: the answer is as without the shadow");
        let asked: u64 = outcomes(&server, "m1").await.values().sum();
        assert_eq!(asked, 2, "{modules:?}");
        let (_, shadow) = server.root().get("/v1/policies/m1").await.json().await;
        assert_eq!(shadow["disagreements"], expected, "{modules:?}");
        let listed = shadow["latest_disagreements"].as_array().map_or(0, Vec::len);
        assert_eq!(u64::try_from(listed).unwrap(), expected, "{modules:?}: each is listed");
        let text = server.http.get(format!("{}/v1/metrics", server.url)).send().await.unwrap().text().await.unwrap();
        let counted = format!("portcullis_policy_shadow_disagreements_total{{policy=\"m1\"}} {expected}");
        assert!(text.contains(&counted), "{modules:?}");
    }
}

#[tokio::test]
async fn a_module_is_asked_where_it_applies_alone() {
    let directory = Directory::new()
        .named("everything", "allow", PATIENT)
        .named("no-deletes", "deny", &format!("actions = [\"delete\", \"list\"]\n{PATIENT}"))
        .named("no-payroll", "deny", &format!("paths = [\"payroll/**\", \"*/payroll/*\"]\n{PATIENT}"))
        .named("elsewhere", "deny", &format!("paths = [\"elsewhere/**\"]\n{PATIENT}"))
        .named("governs", "deny", &format!("actions = [\"admin\"]\n{PATIENT}"));
    let server = directory.server().await;
    let root = server.root();
    for (path, expected) in [
        ("free/x", "secret_not_found"),
        ("payroll/x", "access_denied"),
        ("payroll/a/b/x", "access_denied"),
        ("payrolls/x", "secret_not_found"),
        ("eu/payroll/x", "access_denied"),
        ("eu/payroll/a/x", "secret_not_found"),
        ("Payroll/x", "secret_not_found"),
    ] {
        assert_eq!(verdict(&root, path).await, expected, "{path}");
    }
    assert_eq!(root.put("/v1/secrets/free/x", json!({"data": {"k": 1}})).await.status(), 201);
    assert_eq!(verdict(&root, "free/x").await, "read");
    for refused in [root.delete("/v1/secrets/free/x").await, root.get("/v1/metadata/free/x").await] {
        refused.expect_error(403, "access_denied").await;
    }
    assert_eq!(root.get("/v1/secrets").await.json().await.1["secrets"], json!([]));
    for silent in ["elsewhere", "governs"] {
        assert!(outcomes(&server, silent).await.is_empty(), "{silent}");
    }
}

const ALL_FIELDS: &str = r#"{"nested":{"password":"q"},"password":"p","port":1.50,"user":"u"}"#;

/// Data of a server on which nobody had duties yet: `kept/x` and `free/ok` have all fields.
async fn data_without_duties() -> TestServer {
    let mut server = Directory::new().with("allow", PATIENT).server().await;
    for path in ["kept/x", "free/ok"] {
        server.root().store(path, serde_json::from_str(ALL_FIELDS).unwrap()).await;
    }
    server.stop().await;
    server
}

/// A server on that data on which each module's duty about fields holds at paths that end in `x`.
async fn with_duties(data: &TestServer, duties: &[&str]) -> TestServer {
    let mut directory = Directory::new();
    for (index, duty) in duties.iter().enumerate() {
        let settings = format!("{index}.toml");
        let lines = format!("{PATIENT}\nactions = [\"read\", \"write\"]\nsettings = {settings:?}");
        directory = directory.with_file(&settings, duty).named(&format!("m{index}"), "fields", &lines);
    }
    directory.with("allow", PATIENT).server_on(data.data_dir.clone()).await
}

#[tokio::test]
async fn duties_about_fields_are_joined_to_the_stricter() {
    let data = data_without_duties().await;
    let all: Value = serde_json::from_str(ALL_FIELDS).unwrap();
    let table: [(&[&str], Value); 8] = [
        (&["only-fields:user"], json!({"user": "u"})),
        (&["only-fields:user", "only-fields:user"], json!({"user": "u"})),
        (&["only-fields:user", "only-fields:password"], json!({})),
        (&["only-fields:absent"], json!({})),
        (&["without-fields:password"], json!({"user": "u", "port": 1.50, "nested": {"password": "q"}})),
        (&["without-fields:password", "without-fields:user"], json!({"port": 1.50, "nested": {"password": "q"}})),
        (&["only-fields:user", "without-fields:user"], json!({})),
        (&["only-fields:nested", "without-fields:password"], json!({"nested": {"password": "q"}})),
    ];
    for (duties, shown) in table {
        let mut server = with_duties(&data, duties).await;
        let root = server.root();
        assert_eq!(root.get("/v1/secrets/kept/x?version=1").await.json().await.1["data"], shown, "{duties:?}");
        let body = json!({"paths": ["kept/x", "free/ok"], "options": {"version": 1}});
        let batch = root.post("/v1/secrets/batch", body).await.json().await.1;
        assert_eq!(batch["secrets"]["kept/x"]["data"], shown, "{duties:?}");
        assert_eq!(batch["secrets"]["free/ok"]["data"], all, "a duty holds at its path alone");

        let versions =
            async || root.get("/v1/versions/kept/x").await.json().await.1["versions"].as_array().unwrap().len();
        let before = versions().await;
        for (field, value) in all.as_object().unwrap() {
            let put = root.put("/v1/secrets/kept/x", json!({"data": {(field): value}})).await;
            assert_eq!(put.status(), if shown.get(field).is_some() { 200 } else { 403 }, "{duties:?} {field}");
        }
        root.put("/v1/secrets/kept/x", json!({"data": all})).await.expect_error(403, "access_denied").await;
        assert_eq!(server.audit("&path_prefix=kept/x").await[0]["code"], "access_denied");
        root.post("/v1/rollback/kept/x", json!({"version": 1})).await.expect_error(403, "access_denied").await;
        assert_eq!(versions().await, before + shown.as_object().unwrap().len(), "what was refused was not written");
        root.store("free/ok", all.clone()).await;
        server.stop().await;
    }
}

#[tokio::test]
async fn a_disagreement_is_listed_for_its_tenant_alone() {
    let server = server(&["allow", "deny!shadow"]).await;
    let stranger = server.client_with_token(server.token_with("user:root", "acme", &crate::support::ALL_SCOPES, &[]));
    let request_id = server.root().get("/v1/secrets/a/x").await.header("x-request-id").unwrap();
    let (_, told) = server.root().get("/v1/policies/m1").await.json().await;
    let listed = &told["latest_disagreements"][0];
    let said = (&listed["request_id"], &listed["action"], &listed["path"], &listed["would"]);
    assert_eq!(said, (&json!(request_id), &json!("read"), &json!("a/x"), &json!("deny")));
    let (_, told) = stranger.get("/v1/policies/m1").await.json().await;
    assert_eq!((&told["disagreements"], told.get("latest_disagreements")), (&json!(1), None));
}
