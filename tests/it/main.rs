//! The real server on port 0, over real sockets, on real stores.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::similar_names,
    clippy::single_match_else,
    clippy::unnecessary_debug_formatting,
    reason = "a test that meets what it does not expect must fail; tables and quoted paths read best as they are"
)]

mod audit;
mod audit_chain;
mod audit_faults;
mod authoring;
mod backup;
mod batch;
mod bit_flips;
mod bodies;
mod campaign;
mod child;
mod cli;
mod combining;
mod contended;
mod crash;
mod faults;
mod generated_policies;
mod guest_languages;
mod guests;
mod history;
mod hostile_corpus;
mod hostile_policies;
mod identity;
mod io_faults;
mod key_kills;
mod keys;
mod known_holes;
mod ledger;
mod linearizable;
mod memory;
mod overload;
mod paths;
mod postgres;
mod postgres_faults;
mod process;
mod raw;
mod reference;
mod reload;
mod seal;
mod secrets;
mod seeded_bugs;
mod servers;
mod store;
mod support;
mod system;
mod tampering;
mod tidy;
mod tokens;
mod torture;
mod witness;
