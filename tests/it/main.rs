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
mod identity;
mod reference;
mod secrets;
mod support;
mod system;
