//! Whether the policy directory has changed. By looking, not by the system's notices: a look sees through links that are
//! swapped, over networks and into containers, and a few dozen files cost less than a thousandth of a core.

use std::path::PathBuf;

use super::bundle::Fingerprint;

/// A directory that is looked at again and again.
pub struct Watch {
    directory: PathBuf,
    /// As it was when it was last told that it had changed.
    told: Fingerprint,
    /// As it was at the last look.
    seen: Fingerprint,
}

impl Watch {
    /// Begins with the directory as it is.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        let now = Fingerprint::of(&directory);
        Self { directory, told: now.clone(), seen: now }
    }

    /// Looks. True once after each change, when two looks on end have seen the same: what is being written is not read.
    pub fn changed(&mut self) -> bool {
        let now = Fingerprint::of(&self.directory);
        let rests = now == self.seen;
        self.seen = now;
        let changed = rests && self.seen != self.told;
        if changed {
            self.told.clone_from(&self.seen);
        }
        changed
    }

    /// Tells the last change again at the next look.
    pub fn forget(&mut self) {
        self.told = Fingerprint::default();
    }
}
