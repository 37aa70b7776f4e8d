//! Policies swapped under full load, broken ones offered in between: every answer must be that of one generation, and of
//! the one that it names.

use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use serde_json::{Value, json};

use crate::{
    reload::{UNWATCHED, replace, speaking},
    support::{Client, Options, TestServer},
};

/// How many different generations of policies take turns.
const SPEAKERS: usize = 24;
const BATCH: usize = 100;
const READERS: usize = 2;

/// What is to be reached: swaps, decisions, broken bundles. The figures of the design with `PORTCULLIS_TORTURE=full`.
fn goals() -> (usize, usize, usize) {
    match env::var("PORTCULLIS_TORTURE").as_deref() {
        Ok("full") => (20_000, 2_000_000, 5_000),
        _ => (400, 40_000, 120),
    }
}

/// Every second speaker permits, but for paths that end in `x`.
fn permits(speaker: usize) -> bool {
    speaker.is_multiple_of(2)
}

fn manifest(module: &str) -> String {
    format!("[[policy]]\nname = \"m\"\nmodule = {module:?}\ndeadline = \"2s\"\n")
}

/// What breaks a bundle, a dozen ways and one more: the manifest, and what is written to `broken.wasm`.
fn breakages(good: &[u8]) -> Vec<(String, Vec<u8>)> {
    let usual = manifest("broken.wasm");
    let garbled = good.iter().map(|byte| byte ^ 0x5a).collect();
    vec![
        (String::from("[[policy"), good.to_vec()),
        (usual.clone() + "fail_open = true\n", good.to_vec()),
        (usual.clone() + &format!("sha256 = \"{}\"\n", "0".repeat(64)), good.to_vec()),
        (usual.clone() + "settings = \"gone.toml\"\n", good.to_vec()),
        (usual.clone() + "deadline = \"1h\"\n", good.to_vec()),
        (usual.clone() + "paths = []\n", good.to_vec()),
        (usual.repeat(2), good.to_vec()),
        (manifest("../broken.wasm"), good.to_vec()),
        (manifest("gone.wasm"), good.to_vec()),
        (usual.clone(), Vec::new()),
        (usual.clone(), good[..good.len() / 2].to_vec()),
        (usual.clone(), garbled),
        (usual, b"\0asm\x01\0\0\0".to_vec()),
    ]
}

/// What a reader saw: for each generation named, the speakers that answered under it.
type Seen = BTreeMap<u64, Vec<usize>>;

/// The one speaker behind a batch's answer; panics where there are two, or where it does not decide as that one does.
fn speaker_of(answer: &Value) -> usize {
    let errors = answer["errors"].as_object().unwrap();
    let mut reasons: Vec<&str> = errors.values().filter_map(|error| error["details"]["reason"].as_str()).collect();
    reasons.sort_unstable();
    reasons.dedup();
    assert_eq!(reasons.len(), 1, "one batch, one generation: {reasons:?}");
    let speaker: usize = reasons[0].strip_prefix("speaker ").unwrap().parse().unwrap();
    for (path, error) in errors {
        let denied = error["code"] == "access_denied";
        assert_eq!(denied, path.ends_with('x') || !permits(speaker), "{path} by speaker {speaker}: {error}");
    }
    assert_eq!(answer["retrieved"].as_u64().unwrap() > 0, permits(speaker));
    speaker
}

async fn read_on(root: Client, decisions: Arc<AtomicUsize>, done: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::new();
    let paths: Vec<String> =
        (0..BATCH).map(|index| format!("t/{index}{}", if index % 2 == 0 { "x" } else { "y" })).collect();
    while !done.load(Relaxed) {
        let answer = root.post("/v1/secrets/batch", json!({ "paths": paths })).await;
        let generation = answer.header("x-policy-generation").unwrap().parse().unwrap();
        let (status, body) = answer.json().await;
        assert_eq!(status, 200, "{body}");
        let speaker = speaker_of(&body);
        let speakers = seen.entry(generation).or_default();
        if !speakers.contains(&speaker) {
            speakers.push(speaker);
        }
        decisions.fetch_add(BATCH, Relaxed);
    }
    seen
}

/// Puts a good bundle in the place of the one before, and expects that it is taken.
async fn swap(root: &Client, policies: &Path, speaker: usize) -> u64 {
    replace(&policies.join("policies.toml"), manifest(&format!("speaker-{speaker}.wasm")).as_bytes());
    let (status, body) = root.post("/v1/policies/reload", Value::Null).await.json().await;
    assert_eq!((status, &body["result"]), (200, &json!("loaded")), "{body}");
    body["generation"].as_u64().unwrap()
}

/// Offers a broken bundle, and expects that it is refused and changes nothing.
async fn offend(root: &Client, policies: &Path, (text, module): &(String, Vec<u8>), generation: u64) {
    fs::write(policies.join("broken.wasm"), module).unwrap();
    replace(&policies.join("policies.toml"), text.as_bytes());
    let (status, body) = root.post("/v1/policies/reload", Value::Null).await.json().await;
    assert_eq!((status, &body["error"]["code"]), (422, &json!("policy_rejected")), "{text}: {body}");
    assert_eq!(body["error"]["details"]["generation"], generation, "the old one serves");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_batch_is_ever_of_two_generations() {
    let (swaps, wanted, broken) = goals();
    let directory = tempfile::tempdir().unwrap();
    let policies = directory.path().to_owned();
    for speaker in 0..SPEAKERS {
        let module = speaking(&format!("speaker {speaker}"), permits(speaker));
        fs::write(policies.join(format!("speaker-{speaker}.wasm")), module).unwrap();
    }
    fs::write(policies.join("policies.toml"), manifest("speaker-0.wasm")).unwrap();
    let options = Options { policies: Some(policies.clone()), config: UNWATCHED.to_owned(), ..Options::default() };
    let server = TestServer::start(options).await;
    let root = server.root();
    for index in (1..BATCH).step_by(2) {
        root.store(&format!("t/{index}y"), json!({"k": "v"})).await;
    }

    let (decisions, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let reader = |_| tokio::spawn(read_on(server.root(), Arc::clone(&decisions), Arc::clone(&done)));
    let readers: Vec<_> = (0..READERS).map(reader).collect();
    let mut oracle = BTreeMap::from([(1, 0)]);
    let breakages = breakages(&fs::read(policies.join("speaker-1.wasm")).unwrap());
    let (mut swapped, mut offended, mut generation) = (0, 0, 1);
    while swapped < swaps || offended < broken || decisions.load(Relaxed) < wanted {
        assert!(readers.iter().all(|reader| !reader.is_finished()), "a reader met what must not be");
        if swapped < swaps {
            swapped += 1;
            let speaker = swapped % SPEAKERS;
            generation = swap(&root, &policies, speaker).await;
            oracle.insert(generation, speaker);
        }
        if offended * swaps < swapped * broken {
            offend(&root, &policies, &breakages[offended % breakages.len()], generation).await;
            offended += 1;
        }
    }
    done.store(true, Relaxed);
    let mut observed = 0;
    for reader in readers {
        for (generation, speakers) in reader.await.unwrap() {
            assert_eq!(speakers, [oracle[&generation]], "generation {generation}");
            observed += 1;
        }
    }
    assert_eq!(generation, 1 + swaps as u64, "each swap is a generation");
    let (_, status) = root.get("/v1/policies/status").await.json().await;
    assert_eq!(status["live_generations"], 1, "nothing is left of the old ones");
    println!(
        "{swapped} swaps, {offended} broken bundles of {} kinds, {} decisions; generations seen by readers: {observed}",
        breakages.len(),
        decisions.load(Relaxed),
    );
}
