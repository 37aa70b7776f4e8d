//! The last good generation on disk: what serves when a start finds a broken policy directory.

use std::{collections::BTreeMap, io, path::Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{bundle::Bundle, sealed::SealedDirectory};
use crate::domain::{Key, hex};

/// The name of the file that says which generation it was.
const INDEX: &str = "last-good";

/// Where the last good generation is kept: each file by its digest, and an index.
pub struct Kept(SealedDirectory);

/// The generation that was kept.
#[derive(Serialize, Deserialize)]
pub struct Index {
    /// Its number.
    pub generation: u64,
    /// The digest of its [`Bundle`].
    pub digest: String,
    manifest: Option<String>,
    files: BTreeMap<String, String>,
}

impl Kept {
    /// Opens the place; none, with a warning, where it cannot be had.
    #[must_use]
    pub fn open(directory: &Path, key: &Key) -> Option<Self> {
        SealedDirectory::open(directory.join("last-good"), "last good policies", key.clone())
            .inspect_err(|error| tracing::warn!(%error, "the last good policies cannot be kept over a restart"))
            .ok()
            .map(Self)
    }

    /// Keeps a generation, instead of the one before.
    ///
    /// # Errors
    ///
    /// Where the files cannot be written; the one before is whole then.
    pub fn store(&self, generation: u64, bundle: &Bundle) -> io::Result<()> {
        let mut index = Index {
            generation,
            digest: bundle.digest.clone(),
            manifest: bundle.manifest.clone(),
            files: BTreeMap::new(),
        };
        for (name, file) in &bundle.files {
            let Ok(bytes) = file else { continue };
            let digest = hex(&Sha256::digest(bytes));
            if !matches!(self.0.read(&digest), Ok(Some(_))) {
                self.0.write(&digest, bytes)?;
            }
            index.files.insert(name.clone(), digest);
        }
        self.0.write(INDEX, &serde_json::to_vec(&index).map_err(io::Error::other)?)?;
        self.0.sweep(|name| name == INDEX || index.files.values().any(|digest| digest == name), 0);
        Ok(())
    }

    /// Keeps nothing any more.
    pub fn forget(&self) {
        self.0.remove(INDEX);
    }

    /// What is kept. Damage is told to the log, and is as if nothing were kept.
    #[must_use]
    pub fn index(&self) -> Option<Index> {
        let read = self.0.read(INDEX);
        let bytes = read.inspect_err(|error| tracing::error!(%error, "ALARM: the last good policies are refused"));
        serde_json::from_slice(&bytes.ok()??).ok()
    }

    /// The files of the generation that is kept.
    ///
    /// # Errors
    ///
    /// Every problem of its manifest.
    pub fn bundle(&self, index: &Index) -> Result<Bundle, Vec<String>> {
        Bundle::gather(index.manifest.clone(), |file, _| {
            let missing = || io::Error::new(io::ErrorKind::NotFound, "it was not kept");
            let digest = index.files.get(file).ok_or_else(missing)?;
            self.0.read(digest)?.ok_or_else(missing)
        })
    }
}
