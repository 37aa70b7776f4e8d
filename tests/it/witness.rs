//! What a vault has and what its audit log tells, seen from outside: the rows of its tables, the values that it gives
//! out, the events.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row};

use crate::{
    ledger::{Facts, Said},
    postgres::connect,
    process::raw,
    support::Client,
};

/// Where the tables are.
pub enum Place {
    Sqlite(PathBuf),
    Postgres(String),
}

impl Place {
    /// Rows of texts.
    async fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        match self {
            Self::Sqlite(data_dir) => {
                let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut raw(data_dir).await).await.unwrap();
                rows.iter().map(|row| (0..row.len()).map(|column| row.get(column)).collect()).collect()
            }
            Self::Postgres(url) => {
                let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut connect(url).await).await.unwrap();
                rows.iter().map(|row| (0..row.len()).map(|column| row.get(column)).collect()).collect()
            }
        }
    }
}

/// What the tables and the vault show below `w/`, while nobody writes.
pub struct Seen {
    heads: BTreeMap<String, Head>,
    values: BTreeMap<(String, i64), u64>,
}

#[derive(Debug, Default)]
struct Head {
    latest: i64,
    deleted: bool,
    note: Option<u64>,
    /// Whether each version is still whole.
    versions: BTreeMap<i64, bool>,
}

impl Seen {
    /// Looks at everything. A version without its secret, or a secret without its newest version, is a failure here.
    pub async fn look(place: &Place, root: &Client) -> Self {
        let mut heads = heads(place).await;
        let versions = "SELECT path, CAST(version AS TEXT), CASE WHEN ciphertext IS NULL THEN '' ELSE 'whole' END
                        FROM versions WHERE path LIKE 'w/%'";
        for row in place.rows(versions).await {
            let head = heads.get_mut(&row[0]).unwrap_or_else(|| panic!("a version without its secret: {row:?}"));
            head.versions.insert(row[1].parse().unwrap(), row[2] == "whole");
        }
        for (path, head) in &heads {
            assert!(head.versions.contains_key(&head.latest), "{path} without its newest version: {head:?}");
        }
        let mut wanted: BTreeSet<(String, i64)> = BTreeSet::new();
        for (path, head) in heads.iter().filter(|(_, head)| !head.deleted) {
            wanted.extend(head.versions.iter().filter(|(_, whole)| **whole).map(|(n, _)| (path.clone(), *n)));
        }
        Self { heads, values: values(root, wanted).await }
    }

    /// Whether this is what is at a path.
    pub fn shows(&self, path: &str, facts: &Facts) -> bool {
        let Some(head) = self.heads.get(path) else { return *facts == Facts::default() };
        let wholes: BTreeMap<i64, bool> = facts.versions.iter().map(|(n, number)| (*n, number.is_some())).collect();
        let same = (head.latest, head.deleted, head.note) == (facts.latest, facts.deleted, facts.note);
        let value = |version: i64| self.values.get(&(path.to_owned(), version)).copied();
        same && head.versions == wholes
            && (head.deleted || facts.versions.iter().all(|(version, number)| value(*version) == *number))
    }

    pub fn of(&self, path: &str) -> String {
        let values = self.values.range((path.to_owned(), 0)..=(path.to_owned(), i64::MAX));
        format!("{:?} {:?}", self.heads.get(path), values.collect::<Vec<_>>())
    }
}

async fn heads(place: &Place) -> BTreeMap<String, Head> {
    let sql = "SELECT path, CAST(latest AS TEXT), CASE WHEN deleted_at IS NULL THEN '' ELSE 'deleted' END, metadata
               FROM secrets WHERE path LIKE 'w/%'";
    let head = |row: &Vec<String>| {
        let metadata: Value = serde_json::from_str(&row[3]).unwrap();
        let note = metadata["description"].as_str().map(|number| number.parse().unwrap());
        Head { latest: row[1].parse().unwrap(), deleted: row[2] == "deleted", note, versions: BTreeMap::new() }
    };
    place.rows(sql).await.iter().map(|row| (row[0].clone(), head(row))).collect()
}

/// The numbers in these values. A batch reads one version of each path.
async fn values(root: &Client, mut wanted: BTreeSet<(String, i64)>) -> BTreeMap<(String, i64), u64> {
    let mut values = BTreeMap::new();
    while !wanted.is_empty() {
        let turn: BTreeMap<String, i64> = wanted.iter().take(100).cloned().collect();
        let paths: Vec<&String> = turn.keys().collect();
        let body = json!({"paths": paths, "options": {"versions": turn}});
        let ask = async || root.post("/v1/secrets/batch", body.clone()).await.json().await;
        let mut answer = ask().await;
        // A machine that is busy with other tests is no fault of the vault's: it says so, and is asked again.
        for _ in 0..5 {
            if answer.0 != 503 {
                break;
            }
            answer = ask().await;
        }
        let (status, body) = answer;
        assert_eq!((status, &body["failed"]), (200, &json!(0)), "{body}");
        for (path, version) in turn {
            let found = &body["secrets"][&path];
            assert_eq!((&found["version"], &found["data"]["path"]), (&json!(version), &json!(path)), "{body}");
            wanted.remove(&(path.clone(), version));
            values.insert((path, version), found["data"]["n"].as_u64().unwrap());
        }
    }
    values
}

/// What the audit log tells of requests that have names.
pub struct Events(BTreeMap<String, Vec<Value>>);

impl Events {
    /// What it tells of the time from this instant.
    pub async fn since(auditor: &Client, from: &str) -> Self {
        let mut by_tag: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for event in auditor.audit(&format!("&from={from}")).await {
            if let Some(tag) = event["user_agent"].as_str().filter(|tag| tag.starts_with("w/")) {
                by_tag.entry(tag.to_owned()).or_default().push(event);
            }
        }
        Self(by_tag)
    }

    /// What was answered is told as it was: once for each path, under the request's id.
    pub fn tell(&self, said: &Said) {
        let events = self.0.get(&said.tag).unwrap_or_else(|| panic!("no event of what was answered: {said:?}"));
        let of_request = |event: &Value| event["request_id"] == said.request_id.as_str();
        assert!(events.len() == said.paths && events.iter().all(of_request), "{said:?}: {events:?}");
        let own: Vec<_> = events.iter().filter(|event| event["secret_path"] == said.path.as_str()).collect();
        assert_eq!(own.len(), 1, "{said:?}: {events:?}");
        assert_eq!(own[0]["code"], said.code.as_str(), "{said:?}: {events:?}");
    }

    /// Whether a change that nobody was told of is told here.
    pub fn took_place(&self, tag: &str) -> bool {
        let done = self.0.get(tag).into_iter().flatten().filter(|event| event["code"] == "ok").count();
        assert!(done <= 1, "{tag} is told {done} times");
        done == 1
    }
}
