//! The real server on port 0, over real sockets, on real stores.

mod combining;
mod guests;
mod hostile_policies;
mod reference;
mod support;
