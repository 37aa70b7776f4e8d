//! Past holes of other vaults, gateways and libraries, as tests of this one: each test is named for its row in
//! `docs/security.md`, and goes over all routes that the OpenAPI document lists, not over a list of its own.

mod crypto;
mod errors;
mod identity;
mod leaks;
mod limits;
mod matrix;
mod paths;
mod policies;
mod routes;
mod storage;
mod table;

use std::env;

/// The full number where `PORTCULLIS_HOLES=full`, else the smaller one.
fn number(usual: usize, full: usize) -> usize {
    if env::var("PORTCULLIS_HOLES").is_ok_and(|word| word == "full") { full } else { usual }
}

/// `SplitMix64` (Steele, Lea, Flood, 2014): what fails is found again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(limit).unwrap()).unwrap()
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
