//! How long a campaign is, and its luck: the environment can ask for more than the continuous integration runs, and
//! for the same luck again (`PORTCULLIS_SEED`). The numbers to ask for:
//!
//! | Variable | What it counts |
//! |---|---|
//! | `PORTCULLIS_CRASHES` | kills of the program under writers |
//! | `PORTCULLIS_BACKUPS` | backups under writers, each restored elsewhere |
//! | `PORTCULLIS_HISTORIES` | histories of concurrent clients, on each of the two databases |
//! | `PORTCULLIS_ATTEMPTS` | attempts at one expected version; a tenth of them on PostgreSQL |
//! | `PORTCULLIS_BIT_FLIPS` | turned bits |
//! | `PORTCULLIS_CUTS` | lengths to which the database's log is cut |
//! | `PORTCULLIS_IO_FAULTS` | failing calls of each kind; 0: every one there is |
//! | `PORTCULLIS_FAULTED` | requests while the audit log fails at random |
//! | `PORTCULLIS_TAMPERING` | rows of the audit log that is tampered with |
//! | `PORTCULLIS_POSTGRES_ROUNDS` | faults of PostgreSQL, of its wire and of the clients |

use std::{
    env,
    time::{SystemTime, UNIX_EPOCH},
};

/// How many rounds: the number in the environment variable, or else the one of every day.
pub fn count(variable: &str, every_day: usize) -> usize {
    match env::var(variable) {
        Ok(number) => number.parse().unwrap_or_else(|_| panic!("{variable} is no number: {number}")),
        Err(_) => every_day,
    }
}

/// The luck of this run, told at once so that whatever fails can be tried again: `PORTCULLIS_SEED`, or the time.
pub fn seed() -> u64 {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let seed = match env::var("PORTCULLIS_SEED") {
        Ok(number) => number.parse().unwrap(),
        Err(_) => u64::try_from(now() & u128::from(u32::MAX)).unwrap(),
    };
    println!("PORTCULLIS_SEED={seed}");
    seed
}

/// `SplitMix64`, from a seed.
#[derive(Clone)]
pub struct Dice(u64);

impl Dice {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Dice of their own for one of many.
    pub fn of(&self, one: usize) -> Self {
        let mut dice = Self(self.0 ^ (one as u64).wrapping_mul(0xd134_2543_de82_ef95));
        Self(dice.word())
    }

    pub const fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below this one, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.word() % end as u64).unwrap()
    }

    /// True as often as this, in a hundred.
    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}
