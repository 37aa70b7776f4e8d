//! The engine and the settings, natively: the inputs are a test double.

#![expect(clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]
#![expect(clippy::type_complexity, reason = "tables are read as data")]

mod decisions;
mod reference;
mod sample;
mod settings;
mod support;
