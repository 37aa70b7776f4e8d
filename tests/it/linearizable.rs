//! Eight clients at once on a few secrets, on both stores and at two servers on one database, some of them hanging up:
//! for every history of what they were told, a vault that does one thing at a time could have told the same.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    campaign::{Dice, count, seed},
    history::{Ask, Event, Secret, Told, is_linearizable},
    postgres,
    support::{Answer, Client, Options, TestServer},
};

pub const CLIENTS: usize = 8;
pub const KEYS: usize = 3;
/// How often each client asks in a history.
const ASKED: usize = 20;
/// How many histories, with secrets of their own, are made at the same time.
const AT_ONCE: usize = 6;

/// What a client may ask next, with a value that no other has; `known` is what it may know of a key.
pub fn any_ask(dice: &mut Dice, value: u64, known: impl Fn(usize) -> Option<Secret>) -> Ask {
    let key = dice.below(KEYS);
    match dice.below(20) {
        0..5 => Ask::Put(key, value, None),
        5..8 => {
            let newest = known(key).map_or(0, |secret| secret.latest);
            // Now and then an expectation that nobody ever told.
            Ask::Put(key, value, Some(if dice.percent(20) { newest + 1 } else { newest }))
        }
        8..12 => Ask::Get(key),
        12..14 => Ask::Delete(key),
        14..16 => Ask::Restore(key),
        16 => Ask::Purge(key),
        17 => Ask::List,
        _ => Ask::Batch,
    }
}

/// A client of one history.
struct Reader {
    client: Client,
    number: usize,
    prefix: String,
    clock: Arc<AtomicU64>,
    dice: Dice,
    /// What it was told last of each key.
    known: [i64; KEYS],
    single_keys: bool,
}

impl Reader {
    async fn run(mut self) -> Vec<Event> {
        let mut events = Vec::with_capacity(ASKED);
        for n in 0..ASKED {
            let value = (self.number * ASKED + n + 1) as u64;
            let known = self.known;
            let secret = |key: usize| Some(Secret { latest: known[key], value: 0, deleted: false });
            let ask = match any_ask(&mut self.dice, value, secret) {
                Ask::List | Ask::Batch if self.single_keys => Ask::Get(n % KEYS),
                ask => ask,
            };
            let request = self.request(&ask);
            // Some hang up, as soon as they have asked or a little later.
            let patience = if self.dice.percent(2) {
                Duration::from_micros(self.dice.word() % 3_000)
            } else {
                Duration::from_mins(1)
            };
            let called = self.clock.fetch_add(1, SeqCst);
            let told = tokio::time::timeout(patience, self.told(&ask, request)).await.ok().flatten();
            let told = told.map(|told| (told, self.clock.fetch_add(1, SeqCst)));
            if let (Ask::Put(key, ..) | Ask::Get(key), Some((told, _))) = (&ask, &told) {
                self.known[*key] = match told {
                    Told::Version(version) | Told::Value(version, _) | Told::Conflict(version) => *version,
                    _ => 0,
                };
            }
            events.push(Event { client: self.number, ask, called, told });
        }
        events
    }

    fn path(&self, key: usize) -> String {
        format!("{}/{key}", self.prefix)
    }

    fn request(&self, ask: &Ask) -> RequestBuilder {
        let (method, target, body) = match ask {
            Ask::Put(key, value, expected) => {
                let body = json!({"data": {"n": value}, "options": {"expected_version": expected}});
                (Method::PUT, format!("/v1/secrets/{}", self.path(*key)), body)
            }
            Ask::Get(key) => (Method::GET, format!("/v1/secrets/{}", self.path(*key)), Value::Null),
            Ask::Delete(key) => (Method::DELETE, format!("/v1/secrets/{}", self.path(*key)), Value::Null),
            Ask::Restore(key) => (Method::POST, format!("/v1/restore/{}", self.path(*key)), json!({})),
            Ask::Purge(key) => (Method::DELETE, format!("/v1/secrets/{}?permanent=true", self.path(*key)), Value::Null),
            Ask::List => (Method::GET, format!("/v1/secrets?prefix={}/", self.prefix), Value::Null),
            Ask::Batch => {
                let paths: Vec<_> = (0..KEYS).map(|key| self.path(key)).collect();
                (Method::POST, "/v1/secrets/batch".to_owned(), json!({ "paths": paths }))
            }
        };
        let request = self.client.request(method, &target);
        match body {
            Value::Null => request,
            body => request.header("content-type", "application/json").body(body.to_string()),
        }
    }

    /// What the answer says; nothing where there is none.
    async fn told(&self, ask: &Ask, request: RequestBuilder) -> Option<Told> {
        let (status, body) = Answer(request.send().await.ok()?).json().await;
        let error = &body["error"];
        match (status, error["code"].as_str()) {
            (503, _) => return None,
            (404, Some("secret_not_found")) => return Some(Told::Absent),
            (409, Some("secret_exists")) => return Some(Told::Held),
            (409, Some("version_conflict")) => {
                return Some(Told::Conflict(error["details"]["current_version"].as_i64().unwrap()));
            }
            (200..300, _) => (),
            _ => panic!("{ask:?}: {status} {body}"),
        }
        let version = |found: &Value| found["version"].as_i64();
        let value = |found: &Value| Some((version(found)?, found["data"]["n"].as_u64().unwrap()));
        Some(match ask {
            Ask::Put(..) | Ask::Restore(_) => Told::Version(version(&body).unwrap()),
            Ask::Get(_) => value(&body).map(|(version, value)| Told::Value(version, value)).unwrap(),
            Ask::Delete(_) | Ask::Purge(_) => Told::Done,
            Ask::Batch => Told::Values((0..KEYS).map(|key| value(&body["secrets"][self.path(key)])).collect()),
            Ask::List => {
                let listed = body["secrets"].as_array().unwrap();
                let of = |key| listed.iter().find(|entry| entry["path"] == self.path(key)).and_then(version);
                Told::Listed((0..KEYS).map(of).collect())
            }
        })
    }
}

/// Records histories and looks at each. Answers how many operations there were, and how many nobody heard of.
async fn histories(servers: &[TestServer], number: usize, dice: &Dice) -> (usize, usize) {
    let clients: Vec<Client> = servers.iter().map(TestServer::root).collect();
    let (mut asked, mut unheard) = (0, 0);
    for turn in (0..number).step_by(AT_ONCE) {
        let mut at_once = JoinSet::new();
        for n in turn..number.min(turn + AT_ONCE) {
            at_once.spawn(one_history(clients.clone(), n, dice.of(n)));
        }
        for (all, lost) in at_once.join_all().await {
            asked += all;
            unheard += lost;
        }
    }
    (asked, unheard)
}

async fn one_history(clients: Vec<Client>, n: usize, dice: Dice) -> (usize, usize) {
    let clock = Arc::new(AtomicU64::new(0));
    let mut readers = JoinSet::new();
    for client in 0..CLIENTS {
        let reader = Reader {
            client: clients[client % clients.len()].clone(),
            number: client,
            prefix: format!("h{n}"),
            clock: Arc::clone(&clock),
            dice: dice.of(client),
            known: [0; KEYS],
            single_keys: n.is_multiple_of(4),
        };
        readers.spawn(reader.run());
    }
    let history = readers.join_all().await.concat();
    assert!(is_linearizable(KEYS, &history), "history {n} has no order: {}", told(history));
    (history.len(), history.iter().filter(|event| event.told.is_none()).count())
}

/// A history for people, by the time of the calls.
fn told(mut history: Vec<Event>) -> String {
    history.sort_by_key(|event| event.called);
    let line =
        |event: &Event| format!("\n{:4} client {} {:?}: {:?}", event.called, event.client, event.ask, event.told);
    history.iter().map(line).collect()
}

fn report(where_: &str, number: usize, (asked, unheard): (usize, usize), began: Instant) {
    println!(
        "{number} histories {where_} passed, 0 failed: {asked} operations of {CLIENTS} clients, {unheard} of them \
         unheard of; {:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_history_on_sqlite_has_an_order() {
    let (number, dice, began) = (count("PORTCULLIS_HISTORIES", 1_400), Dice::new(seed()), Instant::now());
    let counts = histories(&[TestServer::new().await], number, &dice).await;
    report("on SQLite", number, counts, began);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_history_on_postgres_has_an_order() {
    let Some(url) = postgres::database().await else { return };
    let shared = tempfile::tempdir().unwrap();
    let options =
        || Options { database_url: Some(url.clone()), data_dir: Some(shared.path().to_owned()), ..Options::default() };
    let (number, dice) = (count("PORTCULLIS_HISTORIES", 600) / 2, Dice::new(seed()));
    let (began, one) = (Instant::now(), TestServer::start(options()).await);
    let servers = [one, TestServer::start(options()).await];
    let counts = histories(&servers, number, &dice).await;
    report("at two servers on one PostgreSQL", number, counts, began);
    let [mut one, two] = servers;
    drop(two);
    // Paths of the histories before would be found.
    let began = Instant::now();
    one.stop().await;
    let Some(url) = postgres::database().await else { return };
    let one = TestServer::start(Options { database_url: Some(url), ..Options::default() }).await;
    let counts = histories(&[one], number, &dice.of(number)).await;
    report("on PostgreSQL", number, counts, began);
}
