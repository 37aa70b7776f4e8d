//! Histories of what clients asked at the same time and were told, and whether there is an order in which a vault that
//! does one thing at a time would have told the same: the search of Wing and Gong, with Lowe's memory of what was tried.

use std::collections::HashSet;

/// What is asked, about keys that are numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Write this value, where the newest version is the expected one.
    Put(usize, u64, Option<i64>),
    Get(usize),
    Delete(usize),
    Restore(usize),
    Purge(usize),
    /// Which keys there are, and their newest versions.
    List,
    /// All keys at once.
    Batch,
}

/// What is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Version(i64),
    /// The newest version and its value.
    Value(i64, u64),
    Done,
    Absent,
    Conflict(i64),
    /// The key is held by a deleted secret.
    Held,
    Listed(Vec<Option<i64>>),
    Values(Vec<Option<(i64, u64)>>),
}

/// A question with its answer, and when both were, by a clock that no two of them share a tick of.
#[derive(Clone, Debug)]
pub struct Event {
    pub client: usize,
    pub ask: Ask,
    pub called: u64,
    /// None where nobody heard of it again: it took place at any time since, or never.
    pub told: Option<(Told, u64)>,
}

impl Event {
    fn returned(&self) -> u64 {
        self.told.as_ref().map_or(u64::MAX, |(_, at)| *at)
    }
}

/// What is at a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Secret {
    pub latest: i64,
    pub value: u64,
    pub deleted: bool,
}

/// A vault that does one thing at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Model(pub Vec<Option<Secret>>);

impl Model {
    pub fn new(keys: usize) -> Self {
        Self(vec![None; keys])
    }

    pub fn live(&self, key: usize) -> Option<Secret> {
        self.0[key].filter(|secret| !secret.deleted)
    }

    /// Does it, and tells.
    pub fn ask(&mut self, ask: &Ask) -> Told {
        match *ask {
            Ask::Put(key, value, expected) => self.put(key, value, expected),
            Ask::Get(key) => self.live(key).map_or(Told::Absent, |secret| Told::Value(secret.latest, secret.value)),
            Ask::Delete(key) => {
                let secret = self.live(key).map(|secret| Secret { deleted: true, ..secret });
                self.replace(key, secret, Told::Done)
            }
            Ask::Restore(key) => {
                let deleted = self.0[key].filter(|secret| secret.deleted);
                let told = deleted.map_or(Told::Absent, |secret| Told::Version(secret.latest));
                self.replace(key, deleted.map(|secret| Secret { deleted: false, ..secret }), told)
            }
            Ask::Purge(key) => self.0[key].take().map_or(Told::Absent, |_| Told::Done),
            Ask::List => Told::Listed(self.keys().map(|key| self.live(key).map(|secret| secret.latest)).collect()),
            Ask::Batch => {
                let value = |key| self.live(key).map(|secret| (secret.latest, secret.value));
                Told::Values(self.keys().map(value).collect())
            }
        }
    }

    fn put(&mut self, key: usize, value: u64, expected: Option<i64>) -> Told {
        let latest = self.0[key].map_or(0, |secret| secret.latest);
        if self.0[key].is_some_and(|secret| secret.deleted) {
            return Told::Held;
        }
        if expected.is_some_and(|expected| expected != latest) {
            return Told::Conflict(latest);
        }
        self.0[key] = Some(Secret { latest: latest + 1, value, deleted: false });
        Told::Version(latest + 1)
    }

    fn replace(&mut self, key: usize, secret: Option<Secret>, told: Told) -> Told {
        let Some(secret) = secret else { return Told::Absent };
        self.0[key] = Some(secret);
        told
    }

    fn keys(&self) -> std::ops::Range<usize> {
        0..self.0.len()
    }
}

/// Whether an order exists. What is about one key alone is looked at key by key: the keys of such a history have
/// nothing to do with one another.
pub fn is_linearizable(keys: usize, history: &[Event]) -> bool {
    let key = |event: &Event| match event.ask {
        Ask::Put(key, ..) | Ask::Get(key) | Ask::Delete(key) | Ask::Restore(key) | Ask::Purge(key) => Some(key),
        Ask::List | Ask::Batch => None,
    };
    if history.iter().any(|event| key(event).is_none()) {
        return Search::new(history.to_vec()).finds_an_order(&Model::new(keys));
    }
    let of_key = |wanted| history.iter().filter(|event| key(event) == Some(wanted)).cloned().collect();
    (0..keys).all(|wanted| Search::new(of_key(wanted)).finds_an_order(&Model::new(keys)))
}

/// How many events a history may have.
const MOST: usize = 192;

/// Which events are not yet in order, by their places: a bit for each.
type Left = [u64; MOST / 64];

struct Search {
    events: Vec<Event>,
    left: Left,
    /// What was tried: what was left then, and how the vault was.
    tried: HashSet<(Left, Model)>,
}

impl Search {
    fn new(mut events: Vec<Event>) -> Self {
        // A read that nobody heard of says nothing.
        let reads = |event: &Event| matches!(event.ask, Ask::Get(_) | Ask::List | Ask::Batch);
        events.retain(|event| event.told.is_some() || !reads(event));
        events.sort_by_key(|event| event.called);
        assert!(events.len() <= MOST, "the history is too long");
        let mut search = Self { left: [0; MOST / 64], tried: HashSet::new(), events };
        (0..search.events.len()).for_each(|place| search.flip(place));
        search
    }

    fn flip(&mut self, place: usize) {
        self.left[place / 64] ^= 1 << (place % 64);
    }

    /// The places of what is not yet in order, by the time of the calls.
    fn left(&self) -> impl Iterator<Item = usize> {
        (0..self.events.len()).filter(|place| self.left[place / 64] & (1 << (place % 64)) != 0)
    }

    /// Whether what is left can follow.
    fn finds_an_order(&mut self, model: &Model) -> bool {
        // What nobody heard of need not take place.
        if self.left().all(|place| self.events[place].told.is_none()) {
            return true;
        }
        if !self.tried.insert((self.left, model.clone())) {
            return false;
        }
        // Only what was called before anything else returned can be the next.
        let first_return = self.left().map(|place| self.events[place].returned()).min().unwrap_or(u64::MAX);
        let next: Vec<usize> = self.left().take_while(|place| self.events[*place].called < first_return).collect();
        next.into_iter().any(|place| self.goes_on_with(place, model))
    }

    fn goes_on_with(&mut self, place: usize, model: &Model) -> bool {
        let event = &self.events[place];
        let mut after = model.clone();
        let told = after.ask(&event.ask);
        let fits = match &event.told {
            Some((heard, _)) => *heard == told,
            // What changes nothing need not be tried.
            None => after != *model,
        };
        if !fits {
            return false;
        }
        self.flip(place);
        let found = self.finds_an_order(&after);
        self.flip(place);
        found
    }
}
