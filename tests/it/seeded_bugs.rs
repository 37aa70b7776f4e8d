//! Is the search for an order worth anything? Vaults with one defect each, whose histories it must refuse, and one
//! without, whose histories it must accept.

use crate::{
    campaign::{Dice, seed},
    history::{Ask, Event, Model, Secret, Told, is_linearizable},
    linearizable::{CLIENTS, KEYS, any_ask},
};

/// What is wrong with a vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    StaleRead,
    LostUpdate,
    SkippedVersion,
    DuplicateVersion,
    UncheckedExpectation,
    FalseConflict,
    ReadableAfterDelete,
    ForgottenDelete,
    RestoreOfOlderValue,
    ListWithoutTheNewest,
    BatchOfTwoMoments,
    FailedWriteThatStands,
    PurgeThatKeepsTheNumber,
}

const DEFECTS: [Defect; 13] = [
    Defect::StaleRead,
    Defect::LostUpdate,
    Defect::SkippedVersion,
    Defect::DuplicateVersion,
    Defect::UncheckedExpectation,
    Defect::FalseConflict,
    Defect::ReadableAfterDelete,
    Defect::ForgottenDelete,
    Defect::RestoreOfOlderValue,
    Defect::ListWithoutTheNewest,
    Defect::BatchOfTwoMoments,
    Defect::FailedWriteThatStands,
    Defect::PurgeThatKeepsTheNumber,
];

/// How many operations back a stale read looks.
const STALE: usize = 6;

struct Vault {
    defect: Defect,
    now: Model,
    /// How it was after each operation.
    past: Vec<Model>,
}

/// An operation on its way: asked, done, told.
struct Pending {
    ask: Ask,
    called: u64,
    /// How the vault was when it was asked.
    before: Model,
    told: Option<Told>,
}

impl Vault {
    fn ask(&mut self, pending: &Pending, dice: &mut Dice) -> Told {
        let told = if dice.percent(80) { self.defective(pending) } else { None };
        let told = told.unwrap_or_else(|| self.now.ask(&pending.ask));
        self.past.push(self.now.clone());
        told
    }

    /// What the defect makes of it; nothing where it does not matter.
    fn defective(&mut self, Pending { ask, before, .. }: &Pending) -> Option<Told> {
        match (self.defect, ask) {
            (Defect::StaleRead, Ask::Get(_)) | (Defect::ListWithoutTheNewest, Ask::List) => {
                let old = self.past.iter().rev().nth(STALE)?;
                Some(old.clone().ask(ask))
            }
            (Defect::LostUpdate, Ask::Put(key, ..)) => {
                self.now.0[*key] = before.0[*key];
                None
            }
            (Defect::SkippedVersion, Ask::Put(key, _, None)) => {
                self.now.0[*key].as_mut()?.latest += 1;
                None
            }
            (Defect::DuplicateVersion, Ask::Put(key, value, None)) => {
                let live = self.now.live(*key)?;
                self.now.0[*key] = Some(Secret { value: *value, ..live });
                Some(Told::Version(live.latest))
            }
            (Defect::UncheckedExpectation, Ask::Put(key, value, Some(_))) => {
                Some(self.now.ask(&Ask::Put(*key, *value, None)))
            }
            (Defect::FalseConflict, Ask::Put(key, _, Some(_))) => Some(Told::Conflict(self.now.live(*key)?.latest)),
            (Defect::ReadableAfterDelete, Ask::Get(key)) => {
                self.now.0[*key].map(|secret| Told::Value(secret.latest, secret.value))
            }
            (Defect::ForgottenDelete, Ask::Delete(key)) => self.now.live(*key).map(|_| Told::Done),
            (Defect::RestoreOfOlderValue, Ask::Restore(key)) => {
                let older = |model: &Model| model.0[*key].filter(|secret| Some(*secret) != self.now.live(*key));
                let value = self.past.iter().rev().filter_map(older).find(|s| Some(s.value) != self.value(*key))?.value;
                self.now.0[*key].as_mut()?.value = value;
                None
            }
            (Defect::BatchOfTwoMoments, Ask::Batch) => {
                let mixed = (0..KEYS).map(|key| if key == 0 { before.0[key] } else { self.now.0[key] });
                Some(Model(mixed.collect()).ask(ask))
            }
            (Defect::FailedWriteThatStands, Ask::Put(key, value, Some(expected))) => {
                let live = self.now.live(*key).filter(|live| live.latest != *expected)?;
                self.now.0[*key] = Some(Secret { value: *value, ..live });
                Some(Told::Conflict(live.latest))
            }
            (Defect::PurgeThatKeepsTheNumber, Ask::Purge(key)) => {
                let secret = self.now.0[*key]?;
                self.now.0[*key] = Some(Secret { deleted: true, ..secret });
                Some(Told::Done)
            }
            _ => None,
        }
    }

    fn value(&self, key: usize) -> Option<u64> {
        self.now.0[key].map(|secret| secret.value)
    }
}

/// A history of clients that ask, are served and hear of it at random instants. Some never hear of it.
fn history(defect: Defect, dice: &mut Dice) -> Vec<Event> {
    const ASKED: usize = 20;
    let mut vault = Vault { defect, now: Model::new(KEYS), past: Vec::new() };
    let mut pending: Vec<Option<Pending>> = (0..CLIENTS).map(|_| None).collect();
    let (mut events, mut asked, mut clock) = (Vec::new(), vec![0; CLIENTS], 0);
    while asked.iter().any(|asked| *asked < ASKED) || pending.iter().any(Option::is_some) {
        clock += 1;
        let client = dice.below(CLIENTS);
        match pending[client].take() {
            None if asked[client] == ASKED => (),
            None => {
                asked[client] += 1;
                let ask = any_ask(dice, events.len() as u64 * 100 + clock, |key| vault.now.live(key));
                pending[client] = Some(Pending { ask, called: clock, before: vault.now.clone(), told: None });
            }
            Some(unheard) if dice.percent(2) => {
                if unheard.told.is_none() && dice.percent(50) {
                    vault.now.ask(&unheard.ask);
                }
                events.push(Event { client, ask: unheard.ask, called: unheard.called, told: None });
            }
            Some(mut one) => match one.told.take() {
                None => {
                    one.told = Some(vault.ask(&one, dice));
                    pending[client] = Some(one);
                }
                Some(told) => {
                    events.push(Event { client, ask: one.ask, called: one.called, told: Some((told, clock)) });
                }
            },
        }
    }
    events
}

#[test]
fn the_search_accepts_what_is_right_and_finds_every_seeded_bug() {
    const HISTORIES: usize = 50;
    let mut dice = Dice::new(seed());
    let mut refused =
        |defect, histories| (0..histories).filter(|_| !is_linearizable(KEYS, &history(defect, &mut dice))).count();
    assert_eq!(refused(Defect::None, 5 * HISTORIES), 0, "a history without fault was refused");
    for defect in DEFECTS {
        let found = refused(defect, HISTORIES);
        println!("{defect:?}: found in {found} of {HISTORIES} histories");
        assert!(found > 0, "{defect:?} was not found");
    }
    println!("{} of {} seeded bugs found, 0 false alarms in {} histories", DEFECTS.len(), DEFECTS.len(), 5 * HISTORIES);
}
