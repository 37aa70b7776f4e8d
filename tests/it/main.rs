//! The real server on port 0, over real sockets, on real stores.

mod bodies;
mod child;
mod combining;
mod guests;
mod hostile_policies;
mod paths;
mod raw;
mod reference;
mod support;
