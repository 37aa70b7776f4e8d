//! What the only writer of a path knows of it: what was acknowledged, and what may or may not have taken place. Held
//! against what the vault has, and what its audit log tells, it shows every change that was lost, done twice, half done
//! or not recorded.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::{
    campaign::Dice,
    support::{Answer, Client},
    witness::{Events, Seen},
};

/// How many versions the secrets keep.
const KEPT: i64 = 5;
/// When a request is given up. Longer than any may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What is at a path.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// The newest version; 0 where there is nothing.
    pub latest: i64,
    /// The number in each version's value; none where it was destroyed.
    pub versions: BTreeMap<i64, Option<u64>>,
    /// The number in the metadata.
    pub note: Option<u64>,
    pub deleted: bool,
}

/// What a writer asks.
#[derive(Clone, Copy, Debug)]
enum Step {
    Put(u64),
    PutExpecting(u64, i64),
    Describe(u64),
    SoftDelete,
    Restore,
    Purge,
    Destroy(i64),
    Read,
}

/// What an answer says: a code, the version, the number in the value. Nothing of what such an answer does not say.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Told(String, Option<i64>, Option<u64>);

impl Facts {
    /// What a request makes of this, and what is answered.
    fn after(&self, step: Step) -> (Self, Told) {
        let done = |facts: Self, version| (facts, Told("ok".to_owned(), version, None));
        let refused = |code: &str| (self.clone(), Told(code.to_owned(), None, None));
        let absent = self.latest == 0 || self.deleted;
        match step {
            Step::Put(_) | Step::PutExpecting(..) if self.deleted => refused("secret_exists"),
            Step::PutExpecting(_, expected) if expected != self.latest => refused("version_conflict"),
            Step::Put(number) | Step::PutExpecting(number, _) => {
                let mut facts = Self { latest: self.latest + 1, ..self.clone() };
                facts.versions.insert(facts.latest, Some(number));
                facts.versions.retain(|version, _| *version > self.latest + 1 - KEPT);
                done(facts, Some(self.latest + 1))
            }
            Step::Restore if self.deleted => done(Self { deleted: false, ..self.clone() }, Some(self.latest)),
            Step::Purge if self.latest > 0 => done(Self::default(), None),
            Step::Restore | Step::Purge => refused("secret_not_found"),
            _ if absent => refused("secret_not_found"),
            Step::Describe(number) => done(Self { note: Some(number), ..self.clone() }, None),
            Step::SoftDelete => done(Self { deleted: true, ..self.clone() }, None),
            Step::Destroy(version) if self.versions.contains_key(&version) => {
                let mut facts = self.clone();
                facts.versions.insert(version, None);
                done(facts, None)
            }
            Step::Destroy(_) => refused("version_not_found"),
            Step::Read => match self.versions[&self.latest] {
                Some(number) => (self.clone(), Told("ok".to_owned(), Some(self.latest), Some(number))),
                None => refused("secret_not_found"),
            },
        }
    }
}

/// A request that was answered.
#[derive(Debug, Clone)]
pub struct Said {
    /// What the request called its user agent: a name of its own.
    pub tag: String,
    pub request_id: String,
    pub path: String,
    pub code: String,
    /// How many paths it named.
    pub paths: usize,
}

/// One way in which it may be.
#[derive(Clone, Debug)]
struct Belief {
    facts: Facts,
    /// Of what was not answered, what took place then.
    took_place: BTreeSet<String>,
}

/// The knowledge of a writer.
pub struct Ledger {
    pub path: String,
    neighbour: String,
    dice: Dice,
    serial: u64,
    beliefs: Vec<Belief>,
    /// The changes that were not answered.
    doubts: Vec<String>,
    said: Vec<Said>,
}

impl Ledger {
    /// The ledgers of some writers with paths of their own.
    pub fn several(number: usize, dice: &Dice) -> Vec<Self> {
        let one = |n: usize| Self {
            path: format!("w/{n}"),
            neighbour: format!("w/{}", (n + 1) % number),
            dice: dice.of(n),
            serial: 0,
            beliefs: vec![Belief { facts: Facts::default(), took_place: BTreeSet::new() }],
            doubts: Vec::new(),
            said: Vec::new(),
        };
        (0..number).map(one).collect()
    }

    /// Asks one thing after the other until told to stop, or until something is not answered.
    pub async fn work(mut self, client: Client, stop: Arc<AtomicBool>) -> Self {
        while !stop.load(Relaxed) && self.step(&client, PATIENCE).await {}
        self
    }

    /// Asks for something, and waits so long for the answer. Whether it was answered.
    pub async fn step(&mut self, client: &Client, patience: Duration) -> bool {
        let step = self.choose();
        self.serial += 1;
        let tag = format!("{}/{}", self.path, self.serial);
        let request = self.request(client, step).header("user-agent", &tag);
        let answered = tokio::time::timeout(patience, answer(request, step, &self.path)).await;
        let Ok(Some((request_id, told))) = answered else {
            self.doubt(step, tag);
            return false;
        };
        let before = self.beliefs.clone();
        self.beliefs.retain_mut(|belief| {
            let (facts, expected) = belief.facts.after(step);
            belief.facts = facts;
            expected == told
        });
        assert!(!self.beliefs.is_empty(), "{tag} {step:?}: {told:?} where {before:?}");
        let paths = if matches!(step, Step::Read) { 2 } else { 1 };
        self.said.push(Said { tag, request_id, path: self.path.clone(), code: told.0, paths });
        true
    }

    fn doubt(&mut self, step: Step, tag: String) {
        if matches!(step, Step::Read) {
            return;
        }
        let done = |belief: &Belief| {
            let (facts, told) = belief.facts.after(step);
            let mut took_place = belief.took_place.clone();
            took_place.insert(tag.clone());
            (told.0 == "ok").then_some(Belief { facts, took_place })
        };
        let if_done: Vec<Belief> = self.beliefs.iter().filter_map(done).collect();
        self.beliefs.extend(if_done);
        self.doubts.push(tag);
    }

    /// Holds it against what the vault has and tells. Answers what was said, and how many of the doubts took place.
    pub fn settle(&mut self, seen: &Seen, events: &Events) -> (Vec<Said>, usize) {
        for said in &self.said {
            events.tell(said);
        }
        let before = self.beliefs.clone();
        let agrees = |belief: &Belief| {
            let told = |tag: &String| events.took_place(tag) == belief.took_place.contains(tag);
            seen.shows(&self.path, &belief.facts) && self.doubts.iter().all(told)
        };
        self.beliefs.retain(agrees);
        let told: Vec<_> = self.doubts.iter().map(|tag| (tag, events.took_place(tag))).collect();
        assert!(!self.beliefs.is_empty(), "{}: {}\nevents {told:?}\nof {before:#?}", self.path, seen.of(&self.path));
        self.beliefs.truncate(1);
        self.doubts.clear();
        let took_place = std::mem::take(&mut self.beliefs[0].took_place).len();
        (std::mem::take(&mut self.said), took_place)
    }

    fn choose(&mut self) -> Step {
        let facts = &self.beliefs[0].facts;
        let number = self.serial;
        if facts.deleted {
            return [Step::Restore, Step::Purge, Step::Put(number), Step::Read][self.dice.below(4)];
        }
        let known = facts.latest;
        match self.dice.below(20) {
            0..6 => Step::Put(number),
            6..9 => Step::PutExpecting(number, known),
            9 => Step::PutExpecting(number, known + 1),
            10..13 => Step::Describe(number),
            13 => Step::SoftDelete,
            14 => Step::Purge,
            15 => Step::Destroy((known - 1).max(1)),
            16 => Step::Restore,
            _ => Step::Read,
        }
    }

    fn request(&self, client: &Client, step: Step) -> RequestBuilder {
        let path = &self.path;
        let secret = format!("/v1/secrets/{path}");
        let put = |number: u64, expected: Value| {
            let options = json!({"max_versions": KEPT, "expected_version": expected});
            (Method::PUT, secret.clone(), json!({"data": {"path": path, "n": number}, "options": options}))
        };
        let (method, target, body) = match step {
            Step::Put(number) => put(number, Value::Null),
            Step::PutExpecting(number, expected) => put(number, json!(expected)),
            Step::Describe(number) => {
                (Method::PATCH, format!("/v1/metadata/{path}"), json!({"description": number.to_string()}))
            }
            Step::SoftDelete => (Method::DELETE, secret, Value::Null),
            Step::Purge => (Method::DELETE, format!("{secret}?permanent=true"), Value::Null),
            Step::Restore => (Method::POST, format!("/v1/restore/{path}"), json!({})),
            Step::Destroy(version) => (Method::POST, format!("/v1/destroy/{path}"), json!({"versions": [version]})),
            Step::Read => (Method::POST, "/v1/secrets/batch".to_owned(), json!({"paths": [path, self.neighbour]})),
        };
        let request = client.request(method, &target);
        match body {
            Value::Null => request,
            body => request.header("content-type", "application/json").body(body.to_string()),
        }
    }
}

/// The request's id and what the answer says; nothing where there is no answer, or one that says that it cannot be done
/// now: it may still have been.
async fn answer(request: RequestBuilder, step: Step, path: &str) -> Option<(String, Told)> {
    let answer = Answer(request.send().await.ok()?);
    let request_id = answer.header("x-request-id").unwrap();
    let status = answer.status();
    let body = answer.0.text().await.ok()?;
    if status == 503 {
        return None;
    }
    let body: Value = if body.is_empty() { Value::Null } else { serde_json::from_str(&body).ok()? };
    let found = if matches!(step, Step::Read) { &body["secrets"][path] } else { &body };
    let error = if matches!(step, Step::Read) { &body["errors"][path]["code"] } else { &body["error"]["code"] };
    if let Some(code) = error.as_str() {
        return Some((request_id, Told(code.to_owned(), None, None)));
    }
    assert!((200..300).contains(&status), "{status} {body}");
    let tells_version = matches!(step, Step::Put(_) | Step::PutExpecting(..) | Step::Restore | Step::Read);
    let version = if tells_version { Some(found["version"].as_i64().unwrap()) } else { None };
    let number = if matches!(step, Step::Read) {
        assert_eq!(found["data"]["path"], path, "a value of another path");
        Some(found["data"]["n"].as_u64().unwrap())
    } else {
        None
    };
    Some((request_id, Told("ok".to_owned(), version, number)))
}
