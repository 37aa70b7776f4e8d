//! The real server on port 0, over real sockets, on real stores.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets what it does not expect must fail"
)]

mod audit;
mod batch;
mod cli;
mod combining;
mod faults;
mod guests;
mod hostile_policies;
mod identity;
mod postgres;
mod reference;
mod secrets;
mod servers;
mod store;
mod support;
mod system;
mod tidy;
