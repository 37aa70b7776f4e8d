//! Rules that are read one way for one question and another way for the next (2a of the list).

use std::{collections::BTreeSet, fmt::Write as _};

use portcullis::domain::Scope;
use serde_json::{Value, json};

use super::{
    Random, number,
    routes::{Route, with_a_path},
};
use crate::support::{ALL_SCOPES, Client, ROOT_MAY_ALL, TestServer};

/// GHSA-xp3c-3jw3-4vcr: a deny below `x/private/` that did not count for a listing of `x/private`.
#[tokio::test]
async fn c_08_a_deny_counts_for_every_action() {
    let denies = [
        ("x/private/**", vec!["x/private", "x/private/k", "x/private/deep/k"]),
        ("x/private/*", vec!["x/private/k"]),
        ("x/p*/**", vec!["x/private", "x/private/k", "x/private/deep/k", "x/privates"]),
        ("**/private/**", vec!["x/private", "x/private/k", "x/private/deep/k"]),
        ("*/?rivate/k", vec!["x/private/k"]),
        ("**/k", vec!["x/k", "x/private/k", "x/private/deep/k"]),
    ];
    let mut rules = ROOT_MAY_ALL.to_owned();
    for (number, (pattern, _)) in denies.iter().enumerate() {
        let of = |pattern: &str, effect: &str| {
            format!(
                "[[policy.rules]]\npath_pattern = {pattern:?}\npermissions = [\"read\", \"write\", \"delete\", \
                 \"list\"]\neffect = {effect:?}\n"
            )
        };
        let (wide, deny) = (of("**", "allow"), of(pattern, "deny"));
        write!(rules, "[[policy]]\nname = \"p{number}\"\nbindings = [\"sa:s{number}\"]\n{deny}{wide}{wide}").unwrap();
    }
    let server = TestServer::with_rules(&rules).await;
    let all = ["x/k", "x/other", "x/private", "x/private/deep/k", "x/private/k", "x/privates"];
    for path in all {
        server.root().store(path, json!({"k": "c4n4ry"})).await;
    }
    let mut asked = 0;
    for (number, (pattern, denied)) in denies.iter().enumerate() {
        let token = server.token(&format!("sa:s{number}"));
        for (path, route) in denied.iter().flat_map(|path| with_a_path().map(move |route| (path, route))) {
            let target = format!("{}{path}", route.prefix().unwrap());
            let answer = route.ask_at(&server, Some(&token), &target).await;
            assert_eq!(answer.status(), 403, "{pattern}: {} {target}", route.method);
            asked += 1;
        }
        let client = server.client_with_token(token);
        let permitted: BTreeSet<_> = all.into_iter().filter(|path| !denied.contains(path)).collect();
        for prefix in ["", "x", "x/", "x/p", "x/private", "x/private/", "x/private/deep", "x/private/k", "x/k"] {
            let expected: Vec<_> = permitted.iter().filter(|path| path.starts_with(prefix)).collect();
            assert_eq!(listed(&client, prefix).await, json!(expected), "{pattern}: a listing of {prefix:?}");
            asked += 1;
        }
        for glob in ["**", "x/*", "x/**", "x/private/*", "x/private/**", "*/*/*", "x/p*", "**/k", "x/private"] {
            let found = expanded(&client, glob).await;
            assert!(found.iter().all(|path| permitted.contains(path.as_str())), "{pattern}: {glob} shows {found:?}");
            asked += 1;
        }
        let batch = client.batch(&all).await;
        assert_eq!(
            batch["secrets"].as_object().unwrap().keys().collect::<Vec<_>>(),
            permitted.iter().collect::<Vec<_>>()
        );
    }
    println!("{asked} questions about {} denies", denies.len());
}

/// The paths of a listing, page by page.
async fn listed(client: &Client, prefix: &str) -> Value {
    let (mut paths, mut cursor) = (Vec::new(), String::new());
    loop {
        let (status, page) = client.get(&format!("/v1/secrets?limit=3&prefix={prefix}{cursor}")).await.json().await;
        assert_eq!(status, 200, "{page}");
        paths.extend(page["secrets"].as_array().unwrap().iter().map(|secret| secret["path"].clone()));
        match page["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Value::Array(paths),
        }
    }
}

/// The paths that a pattern finds in a batch of metadata.
async fn expanded(client: &Client, pattern: &str) -> Vec<String> {
    let body = json!({"paths": [pattern], "expand_wildcards": true, "options": {"limit": 1000}});
    let (status, page) = client.post("/v1/secrets/batch/metadata", body).await.json().await;
    assert_eq!(status, 200, "{page}");
    page["metadata"].as_object().unwrap().keys().cloned().collect()
}

const PERMISSIONS: [&str; 4] = ["read", "write", "delete", "list"];

/// Random rules for some service accounts, one string for each policy.
fn random_policies(random: &mut Random, subjects: usize) -> Vec<String> {
    let segments = ["a", "b", "c", "*", "a*", "?", "**"];
    let mut policies = Vec::new();
    for subject in 0..subjects {
        for part in 0..=random.below(3) {
            let mut text = format!("[[policy]]\nname = \"s{subject}-{part}\"\nbindings = [\"sa:s{subject}\"]\n");
            for _ in 0..=random.below(3) {
                let pattern = (0..=random.below(3)).map(|_| random.of(&segments)).collect::<Vec<_>>().join("/");
                let effect = random.of(&["allow", "allow", "allow", "deny"]);
                let (one, other) = (random.of(&PERMISSIONS), random.of(&PERMISSIONS));
                write!(
                    text,
                    "[[policy.rules]]\npath_pattern = {pattern:?}\npermissions = [{one:?}, {other:?}]\neffect = \
                     {effect:?}\n"
                )
                .unwrap();
            }
            policies.push(text);
        }
    }
    policies
}

async fn with_all(policies: &[String], paths: &[String]) -> TestServer {
    let server = TestServer::with_rules(&format!("{ROOT_MAY_ALL}{}", policies.concat())).await;
    for path in paths {
        server.root().store(path, json!({"k": path})).await;
    }
    server
}

/// `SpiceDB` CVE-2022-21646, `OpenFGA` CVE-2022-39341, etcd CVE-2026-73499 and CVE-2026-33343: a question about many that is
/// decided otherwise than the same questions one by one. And Kyverno CVE-2025-46342: the order of rules counts nowhere.
#[tokio::test]
async fn c_11_c_12_c_13_c_16_many_are_decided_as_each() {
    let mut random = Random(11);
    let subjects = number(12, 60);
    let policies = random_policies(&mut random, subjects);
    let paths: Vec<String> = {
        let names = ["a", "b", "c", "ab"];
        let two = names.iter().flat_map(|one| names.iter().map(move |other| format!("{one}/{other}")));
        names.iter().map(|&name| name.to_owned()).chain(two).chain(["a/b/c".into(), "c/a/b".into()]).collect()
    };
    let names: Vec<&str> = paths.iter().map(String::as_str).collect();
    let server = with_all(&policies, &paths).await;
    let mut permuted = policies.clone();
    permuted.reverse();
    let other = with_all(&permuted, &paths).await;
    let (mut shown, mut hidden) = (0, 0);
    for subject in 0..subjects {
        let client = server.client(&format!("sa:s{subject}"));
        let may_list = each(&client, "/v1/metadata/", &paths).await;
        let may_read = each(&client, "/v1/secrets/", &paths).await;
        assert_eq!(tried(&server.root(), subject, "list", &paths).await, may_list, "s{subject}: a dry run");
        assert_eq!(tried(&server.root(), subject, "read", &paths).await, may_read, "s{subject}: a dry run");
        for prefix in ["", "a", "a/", "b/", "c/a", "ab"] {
            let expected: Vec<_> = may_list.iter().filter(|path| path.starts_with(prefix)).collect();
            assert_eq!(listed(&client, prefix).await, json!(expected), "s{subject}: {prefix:?}");
        }
        assert_eq!(expanded(&client, "**").await, may_list, "s{subject}");
        let below: Vec<_> = may_list.iter().filter(|path| *path == "a" || path.starts_with("a/")).cloned().collect();
        assert_eq!(expanded(&client, "a/**").await, below, "s{subject}");
        let batch = client.batch(&names).await;
        assert_eq!(batch["secrets"].as_object().unwrap().keys().cloned().collect::<Vec<_>>(), may_read);
        let elsewhere = other.client(&format!("sa:s{subject}"));
        assert_eq!(each(&elsewhere, "/v1/metadata/", &paths).await, may_list, "s{subject}: in another order");
        assert_eq!(each(&elsewhere, "/v1/secrets/", &paths).await, may_read, "s{subject}: in another order");
        shown += may_list.len() + may_read.len();
        hidden += 2 * paths.len() - may_list.len() - may_read.len();
    }
    assert!(shown > 30 && hidden > 30, "{shown} {hidden}");
    println!("{subjects} sets of rules: {shown} accesses allowed and {hidden} denied, in every way to ask");
}

/// The paths at which a dry run says that an access would be allowed: what the policies say, by another road.
async fn tried(root: &Client, subject: usize, action: &str, paths: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for path in paths {
        let body = json!({"identity": {"id": format!("sa:s{subject}")}, "action": action, "path": path});
        let (status, answer) = root.post("/v1/policies/test", body).await.json().await;
        assert_eq!(status, 200, "{answer}");
        found.extend((answer["allowed"] == true).then(|| path.clone()));
    }
    found.sort();
    found
}

/// The paths at which a GET succeeds, in the order of their bytes.
async fn each(client: &Client, prefix: &str, paths: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for path in paths {
        match client.get(&format!("{prefix}{path}")).await.status() {
            200 => found.push(path.clone()),
            403 => (),
            status => panic!("{status} at {path}"),
        }
    }
    found.sort();
    found
}

/// GHSA-59w7-v8rr-pr4p: a name that became a pattern. Names of people and groups are compared, never read.
#[tokio::test]
async fn c_09_no_name_is_a_pattern() {
    let rules = r#"
        [[policy]]
        name = "admins"
        bindings = ["group:admins", "user:ada", "group:team/a,b+c"]
        [[policy.rules]]
        path_pattern = "**"
        permissions = ["read", "write", "delete", "list"]
    "#;
    let server = TestServer::with_rules(rules).await;
    let group = |name: &str| server.token_with("user:bob", "default", &ALL_SCOPES, &[name]);
    for name in [
        "*",
        "**",
        "?",
        "admin?",
        "admin*",
        "a*",
        "Admins",
        "admins ",
        " admins",
        "admins,x",
        "x,admins",
        "admins/x",
        "group:admins",
        "admins\u{200b}",
        "team/a",
        "b+c",
        "team/*",
        "team/a,b",
        "user:ada",
        "sa:*",
        "%61dmins",
        "+",
        "admins|x",
        "(admins)",
        "[a]dmins",
        "adm\u{456}ns",
    ] {
        for route in with_a_path() {
            let answer = route.ask(&server, Some(&group(name))).await;
            assert_eq!(answer.status(), 403, "{name:?}: {} {}", route.method, route.target);
        }
    }
    let write = with_a_path().find(|route: &&Route| route.method == "PUT").unwrap();
    assert_eq!(write.ask(&server, Some(&group("admins"))).await.status(), 201);
    assert_eq!(write.ask(&server, Some(&group("team/a,b+c"))).await.status(), 200);
    let admin = server.token_with("user:bob", "default", &[Scope::Admin], &["*"]);
    assert_eq!(write.ask(&server, Some(&admin)).await.status(), 403, "a scope is no permission");
}
