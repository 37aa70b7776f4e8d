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
mod authoring;
mod batch;
mod bodies;
mod child;
mod cli;
mod combining;
mod faults;
mod generated_policies;
mod guest_languages;
mod guests;
mod hostile_corpus;
mod hostile_policies;
mod identity;
mod key_kills;
mod keys;
mod known_holes;
mod memory;
mod paths;
mod postgres;
mod raw;
mod reference;
mod reload;
mod seal;
mod secrets;
mod servers;
mod store;
mod support;
mod system;
mod tampering;
mod tidy;
mod tokens;
mod torture;
