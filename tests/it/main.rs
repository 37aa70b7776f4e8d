//! The real server on port 0, over real sockets, on real stores.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets what it does not expect must fail"
)]

mod faults;
mod postgres;
mod reference;
mod servers;
mod store;
mod support;
mod tidy;
