//! Whether a log is what was recorded. Two questions, answered apart: is what is there unaltered (integrity), and is all
//! of it there (completeness)?
//!
//! Within a chain, numbers without a gap and links that hang together answer both. What they cannot show is that rows
//! at the end are missing: that takes a signed note from elsewhere, a later checkpoint or a client's receipt.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use serde::Serialize;

use super::{
    CHECKPOINT,
    chain::{Anchor, AuditKeys, Checkpoint},
    note::{Note, NoteKind, Removed},
    pack::Packed,
};
use crate::domain::{AuditPlace, ChainHead, Link, StoredAuditRow};

/// A note that was kept elsewhere, and where.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// The text of the note.
    pub note: String,
    /// Who showed it, for people.
    pub origin: String,
}

/// Something that is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum Problem {
    /// The row is not what was recorded there, or the row before it is not.
    Altered {
        /// The chain.
        chain: u32,
        /// The row.
        number: i64,
    },
    /// Rows between others, or before the first, are not there, and no tombstone stands for them.
    Missing {
        /// The chain.
        chain: u32,
        /// The first that is missing.
        from: i64,
        /// The last that is missing.
        to: i64,
    },
    /// The chain ends before a row that a note vouches for.
    CutOff {
        /// The chain.
        chain: u32,
        /// Its last row now.
        last: i64,
        /// A row that it had.
        reached: i64,
        /// Who showed the note.
        origin: String,
    },
    /// The row that a note vouches for was another: what follows from there was written anew.
    Rewritten {
        /// The chain.
        chain: u32,
        /// The row.
        number: i64,
        /// Who showed the note.
        origin: String,
    },
    /// Rows stand where the vault writes none: somebody else put them there.
    Misplaced {
        /// How many.
        rows: u64,
    },
    /// A checkpoint in the log does not vouch for the rows before it.
    FalseCheckpoint {
        /// The chain.
        chain: u32,
        /// The row.
        number: i64,
    },
    /// A text that was shown as evidence, or a tombstone, was not signed by this vault. It proves nothing.
    ForgedNote {
        /// Who showed it.
        origin: String,
    },
}

impl Problem {
    /// Whether it is about what is missing, rather than about what is there.
    #[must_use]
    pub const fn is_incomplete(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::CutOff { .. } | Self::Rewritten { .. })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Altered { chain, number } => {
                write!(f, "chain {chain}, row {number}: it, or the row before it, is not what was recorded")
            }
            Self::Missing { chain, from, to } => write!(f, "chain {chain}: rows {from} to {to} are missing"),
            Self::CutOff { chain, last, reached, origin } => {
                write!(f, "chain {chain} ends at row {last}; {origin} proves that it had come to row {reached}")
            }
            Self::Rewritten { chain, number, origin } => {
                write!(f, "chain {chain}, row {number}: {origin} proves that another row stood here")
            }
            Self::FalseCheckpoint { chain, number } => {
                write!(f, "chain {chain}, row {number}: a checkpoint that does not vouch for what is before it")
            }
            Self::Misplaced { rows } => write!(f, "{rows} rows stand where the vault writes none"),
            Self::ForgedNote { origin } => write!(f, "{origin}: not signed by this vault, so it proves nothing"),
        }
    }
}

/// What was found of one chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChainReport {
    /// The chain.
    pub chain: u32,
    /// Its first row; what was before it a tombstone stands for.
    pub first: i64,
    /// Its last row.
    pub last: i64,
    /// How many rows were read.
    pub rows: u64,
    /// How many events they hold.
    pub events: u64,
    /// The last row that evidence from outside the chain vouches for.
    pub proven_to: Option<i64>,
}

/// What was found of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether everything that is there is what was recorded. Of a row behind a gap it says nothing: what it hangs from
    /// is not there.
    pub integrity: bool,
    /// Whether nothing is known to be missing.
    pub completeness: bool,
    /// Chain by chain.
    pub chains: Vec<ChainReport>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Who shows a tombstone.
const TOMBSTONE: &str = "a tombstone in the log";

/// Reads a log, chain by chain and row by row.
#[derive(Clone)]
pub struct Verifier {
    keys: Arc<AuditKeys>,
    /// What was removed on purpose, by chain.
    removed: BTreeMap<u32, ChainHead>,
    /// What the chains had come to, as it was shown from outside.
    reached: BTreeMap<AuditPlace, (Link, String)>,
    /// The checkpoints of each chain, for the other chains' words about them.
    checkpoints: BTreeMap<AuditPlace, Link>,
    /// What other chains say of rows that were not read yet.
    anchored: BTreeMap<AuditPlace, (Link, String)>,
    chains: BTreeMap<u32, Progress>,
    problems: Vec<Problem>,
}

#[derive(Clone)]
struct Progress {
    head: ChainHead,
    first: i64,
    rows: u64,
    events: u64,
    proven_to: Option<i64>,
}

impl Verifier {
    /// A verifier that was shown these tombstones, and this evidence of how far the chains had come.
    #[must_use]
    pub fn new(keys: Arc<AuditKeys>, tombstones: &[String], evidence: &[Evidence]) -> Self {
        let Removed { until, forged } = Removed::read(tombstones, &keys.verifying_key());
        let mut verifier = Self {
            keys,
            removed: until,
            reached: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            anchored: BTreeMap::new(),
            chains: BTreeMap::new(),
            problems: vec![Problem::ForgedNote { origin: TOMBSTONE.to_owned() }; forged],
        };
        for shown in evidence {
            verifier.take(shown);
        }
        verifier
    }

    fn take(&mut self, shown: &Evidence) {
        let note = Note::verify(shown.note.trim(), &self.keys.verifying_key());
        let Some(Note { head, .. }) = note.filter(|note| note.kind == NoteKind::Reached) else {
            self.problems.push(Problem::ForgedNote { origin: shown.origin.clone() });
            return;
        };
        let known = self.reached.insert(head.place, (head.link, shown.origin.clone()));
        // Two notes that contradict one another: one of them was given for a log that is not this one.
        if known.is_some_and(|(link, _)| link != head.link) {
            let AuditPlace { chain, number } = head.place;
            self.problems.push(Problem::Rewritten { chain, number, origin: shown.origin.clone() });
        }
    }

    /// Reads the next row. They come chain by chain, in the order of their numbers.
    pub fn row(&mut self, row: &StoredAuditRow) {
        let AuditPlace { chain, number } = row.place;
        let before = self.head(chain);
        let found: Option<Link> = row.link.as_slice().try_into().ok().map(Link);
        if number > before.place.number + 1 {
            // What it hangs from is not there, so nothing can be said of the row itself.
            self.problems.push(Problem::Missing { chain, from: before.place.number + 1, to: number - 1 });
        } else if number <= before.place.number || found != Some(self.keys.link(&before, &row.row)) {
            self.problems.push(Problem::Altered { chain, number });
        } else if row.row.action == CHECKPOINT {
            self.checkpoint(&before, row);
        }
        let link = found.unwrap_or_default();
        if row.row.action == CHECKPOINT {
            self.checkpoints.insert(row.place, link);
        }
        self.step(row.place, link, row.row.events);
    }

    /// Reads a row that is there and cannot be read.
    pub fn damaged_row(&mut self, place: AuditPlace) {
        let before = self.head(place.chain);
        if place.number != before.place.number + 1 {
            let (from, to) = (before.place.number + 1, place.number - 1);
            self.problems.push(Problem::Missing { chain: place.chain, from, to });
        }
        self.problems.push(Problem::Altered { chain: place.chain, number: place.number });
        self.step(place, Link::default(), 0);
    }

    /// What was found.
    #[must_use]
    pub fn finish(mut self) -> Report {
        for (chain, (reached, origin)) in self.expected() {
            let last = self.head(chain).place.number;
            if last < reached {
                self.problems.push(Problem::CutOff { chain, last, reached, origin });
            }
        }
        let chains = self.chains.iter().map(|(chain, progress)| ChainReport {
            chain: *chain,
            first: progress.first,
            last: progress.head.place.number,
            rows: progress.rows,
            events: progress.events,
            proven_to: progress.proven_to,
        });
        Report {
            integrity: self.problems.iter().all(Problem::is_incomplete),
            completeness: !self.problems.iter().any(Problem::is_incomplete),
            chains: chains.collect(),
            problems: self.problems,
        }
    }

    /// The last row that each chain must have, and who shows that.
    fn expected(&self) -> BTreeMap<u32, (i64, String)> {
        // A tombstone always leaves a row behind it.
        let left = |head: &ChainHead| (head.place.chain, (head.place.number + 1, TOMBSTONE.to_owned()));
        let mut expected: BTreeMap<u32, (i64, String)> = self.removed.values().map(left).collect();
        for (place, (_, origin)) in self.reached.iter().chain(&self.anchored) {
            let known = expected.entry(place.chain).or_insert((place.number, origin.clone()));
            if known.0 < place.number {
                *known = (place.number, origin.clone());
            }
        }
        expected
    }

    /// The last rows read of chains of which others know more: where servers are at work, there is more to read.
    #[must_use]
    pub fn behind(&self) -> Vec<AuditPlace> {
        let anchored: BTreeSet<u32> = self.anchored.keys().map(|place| place.chain).collect();
        anchored.into_iter().map(|chain| self.head(chain).place).collect()
    }

    /// Rows at places where the vault writes none. No query shows them.
    pub fn misplaced(&mut self, rows: u64) {
        if rows > 0 {
            self.problems.push(Problem::Misplaced { rows });
        }
    }

    /// What the next row of a chain has to follow.
    fn head(&self, chain: u32) -> ChainHead {
        let removed = || self.removed.get(&chain).copied();
        self.chains.get(&chain).map(|progress| progress.head).or_else(removed).unwrap_or(ChainHead::origin(chain))
    }

    fn step(&mut self, place: AuditPlace, link: Link, events: u32) {
        let start = Progress { head: ChainHead::origin(0), first: place.number, rows: 0, events: 0, proven_to: None };
        let progress = self.chains.entry(place.chain).or_insert(start);
        progress.head = ChainHead { place, link };
        progress.rows += 1;
        progress.events += u64::from(events);
        let anchored = self.anchored.remove(&place);
        for (proven, origin) in self.reached.get(&place).cloned().into_iter().chain(anchored) {
            self.compare(place, link, proven, origin);
        }
    }

    /// Holds a row that was read against what somebody vouches for.
    fn compare(&mut self, place: AuditPlace, link: Link, proven: Link, origin: String) {
        if proven != link {
            self.problems.push(Problem::Rewritten { chain: place.chain, number: place.number, origin });
        } else if let Some(progress) = self.chains.get_mut(&place.chain) {
            progress.proven_to = progress.proven_to.max(Some(place.number));
        }
    }

    /// Another chain's word: held against the row that it is about, now or when that is read.
    fn anchor(&mut self, other: ChainHead, origin: String) {
        let ChainHead { place, link: proven } = other;
        match (self.chains.get(&place.chain), self.checkpoints.get(&place)) {
            (Some(progress), None) if place.number < progress.first => (),
            (Some(progress), found) if place <= progress.head.place => {
                let link = found.copied().unwrap_or_default();
                self.compare(place, link, proven, origin);
            }
            _ => drop(self.anchored.insert(place, (proven, origin))),
        }
    }

    /// A checkpoint vouches for the row before it, and for the other chains.
    fn checkpoint(&mut self, before: &ChainHead, row: &StoredAuditRow) {
        let AuditPlace { chain, number } = row.place;
        let checkpoint = checkpoint_in(&row.row.body);
        let vouches = |checkpoint: &Checkpoint| {
            let note = Note::verify(&checkpoint.note, &self.keys.verifying_key());
            note.is_some_and(|note| note.kind == NoteKind::Reached && note.head == *before)
        };
        let Some(checkpoint) = checkpoint.filter(vouches) else {
            self.problems.push(Problem::FalseCheckpoint { chain, number });
            return;
        };
        for other in checkpoint.others.iter().filter_map(Anchor::head) {
            self.anchor(other, format!("a checkpoint of chain {chain} (row {number})"));
        }
    }
}

/// The signed note in the body of a checkpoint's row; not verified.
#[must_use]
pub fn checkpoint_note(body: &[u8]) -> Option<String> {
    checkpoint_in(body).map(|checkpoint| checkpoint.note)
}

fn checkpoint_in(body: &[u8]) -> Option<Checkpoint> {
    let details = serde_json::from_slice::<Packed>(body).ok()?.details?;
    serde_json::from_value(details).ok()
}
