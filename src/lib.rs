//! A secrets vault whose access decisions are made, path by path, by sandboxed WebAssembly policy modules.
//!
//! In reading order: the values ([`domain`]), the five that never import one another ([`crypto`], [`store`],
//! [`policy`], [`audit`], [`auth`]), the service where they meet ([`vault`]), its REST face ([`http`]), and the command
//! line ([`cli`]). [`server::Server`] puts them together.

pub mod domain;

pub mod audit;
pub mod auth;
pub mod crypto;
pub mod policy;
pub mod store;

pub mod telemetry;
pub mod vault;

pub mod http;

pub mod config;
pub mod server;

pub mod cli;
