//! The real server on port 0, over real sockets, on real stores.

mod reference;
mod support;
