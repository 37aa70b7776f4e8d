//! The real server on port 0, over real sockets, on real stores.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "all of this is test code, and a test that meets the unexpected must stop"
)]

mod bodies;
mod child;
mod combining;
mod guests;
mod hostile_policies;
mod paths;
mod raw;
mod reference;
mod support;
mod tokens;
