//! What the core asks of the outside, passed in so that a test can choose it.

use super::Timestamp;

/// The wall clock.
pub trait Clock: Send + Sync {
    /// The present instant.
    fn now(&self) -> Timestamp;
}

/// A cryptographically secure random source.
pub trait Entropy: Send + Sync {
    /// Fills the buffer with random bytes.
    fn fill(&self, buffer: &mut [u8]);
}
