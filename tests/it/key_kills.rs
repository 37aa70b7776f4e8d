//! The program is killed while keys are turned under load. After each restart every secret opens with the right value.

use std::{
    env, fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use portcullis::{
    crypto::{RootKey, RootKeySource},
    domain::{Entropy, Scope},
    server::SystemEntropy,
};
use serde_json::{Value, json};
use sqlx::Row;
use tokio::task::JoinSet;

use crate::{
    process::{Process, raw},
    support::{Answer, Client},
};

const SECRETS: usize = 600;
const WRITERS: usize = 3;

fn client(vault: &Process, scopes: &[Scope]) -> Client {
    let token = vault.server.token_with("user:root", "default", scopes, &[]);
    Client { token, ..vault.client("user:root") }
}

fn fingerprint(file: &Path) -> Vec<u8> {
    RootKey::load(&RootKeySource::File(file.to_owned())).unwrap().fingerprint()
}

/// Does what the operator is told to do after a rotation, and makes the next key. True where the root key was replaced.
async fn settle(vault: &Process) -> bool {
    let (key, next) = (vault.data_dir().join("root.key"), vault.data_dir().join("root.key.next"));
    let row = sqlx::query("SELECT fingerprint FROM root_key").fetch_one(&mut raw(&vault.data_dir()).await).await;
    let kept: Vec<u8> = row.unwrap().get(0);
    let replaced = next.exists() && fingerprint(&next) == kept;
    if replaced {
        fs::rename(&next, &key).unwrap();
    }
    assert_eq!(fingerprint(&key), kept, "one of the two is the vault's");
    let mut bytes = [0; 32];
    SystemEntropy.fill(&mut bytes);
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&next).unwrap();
    file.write_all(&bytes).unwrap();
    replaced
}

/// Every secret, with the right value; of what was written under the kill, what was acknowledged or attempted last.
async fn all_opens(client: &Client, written: &[(usize, usize)]) {
    let paths: Vec<String> = (0..SECRETS).map(|n| format!("s/{n}")).collect();
    for some in paths.chunks(100) {
        let body = client.batch(&some.iter().map(String::as_str).collect::<Vec<_>>()).await;
        for path in some {
            assert_eq!(body["secrets"][path]["data"]["is"], json!(path), "{body}");
        }
    }
    for (worker, (acknowledged, attempted)) in written.iter().enumerate() {
        let path = format!("w/{worker}");
        let body = client.batch(&[&path]).await;
        let Some(n) = body["secrets"][&path]["data"]["n"].as_u64() else {
            assert!(*acknowledged == 0 && body["errors"][&path]["code"] == "secret_not_found", "{body}");
            continue;
        };
        let n = usize::try_from(n).unwrap();
        assert!((*acknowledged..=*attempted).contains(&n), "{path}: {acknowledged} {n} {attempted}");
    }
}

/// Writes and reads until nobody answers. Answers what was acknowledged and what was attempted last.
async fn write_on(client: Client, worker: usize, (mut acknowledged, mut attempted): (usize, usize)) -> (usize, usize) {
    let path = format!("/v1/secrets/w/{worker}");
    loop {
        attempted += 1;
        let body = json!({"data": {"n": attempted}}).to_string();
        let put = client.request(reqwest::Method::PUT, &path).header("content-type", "application/json").body(body);
        match put.send().await {
            Ok(answer) if answer.status().is_success() => acknowledged = attempted,
            // Writing and a removal of keys may meet; nothing else may refuse.
            Ok(answer) => assert_eq!(answer.status(), 503),
            Err(_) => return (acknowledged, attempted),
        }
        let n = acknowledged * 7 % SECRETS;
        let read = client.request(reqwest::Method::GET, &format!("/v1/secrets/s/{n}")).send().await;
        let Ok(answer) = read else { return (acknowledged, attempted) };
        let status = answer.status();
        let Ok(text) = answer.text().await else { return (acknowledged, attempted) };
        let body: Value = serde_json::from_str(&text).unwrap();
        assert!(status == 200 && body["data"]["is"] == format!("s/{n}"), "{status} {body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_while_keys_are_turned_leaves_every_secret_readable() {
    let kills = env::var("PORTCULLIS_KEY_KILLS").map_or(9, |kills| kills.parse::<usize>().unwrap());
    let vault = Process::new().await;
    let mut process = vault.start_with_another_key().await;
    let all = [Scope::Admin];
    let root = client(&vault, &all);
    for n in 0..SECRETS {
        root.store(&format!("s/{n}"), json!({"is": format!("s/{n}")})).await;
    }
    settle(&vault).await;
    let mut written = vec![(0, 0); WRITERS];
    let (mut replaced, mut cut) = (0, 0);
    for kill in 0..kills {
        let root = client(&vault, &all);
        let mut load = JoinSet::new();
        for (worker, before) in written.iter().enumerate() {
            let (client, before) = (root.clone(), *before);
            load.spawn(async move { (worker, write_on(client, worker, before).await) });
        }
        let (target, body) =
            [("rotate", json!({})), ("rewrap", json!({"drop_unused": true})), ("rotate-root", json!({}))][kill % 3]
                .clone();
        let answered = Arc::new(AtomicBool::new(false));
        let turning = tokio::spawn({
            let (root, answered) = (root.clone(), Arc::clone(&answered));
            async move {
                let request = root.request(reqwest::Method::POST, &format!("/v1/keys/{target}"));
                let request = request.header("content-type", "application/json").body(body.to_string());
                if let Ok(answer) = request.send().await {
                    answered.store(true, Ordering::Relaxed);
                    let (status, body) = Answer(answer).json().await;
                    assert!(matches!(status, 200 | 202), "{target}: {status} {body}");
                }
            }
        });
        let mut delay = [0];
        SystemEntropy.fill(&mut delay);
        // A re-wrapping goes on after its answer; the others take a few milliseconds.
        let unit = if target == "rewrap" { 200 } else { 25 };
        tokio::time::sleep(Duration::from_micros(u64::from(delay[0]) * unit)).await;
        drop(process);
        cut += usize::from(!answered.load(Ordering::Relaxed));
        turning.await.unwrap();
        while let Some(ended) = load.join_next().await {
            let (worker, now) = ended.unwrap();
            written[worker] = now;
        }
        // With the configuration as it was, whichever of the two keys is the vault's.
        process = vault.start_with_another_key().await;
        replaced += usize::from(settle(&vault).await);
        all_opens(&client(&vault, &all), &written).await;
    }
    println!("{kills} kills, {cut} of them before the answer, {replaced} root keys replaced, writes {written:?}");
    drop(process);
}
