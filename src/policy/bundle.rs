//! What a policy directory holds at one moment: the manifest, and the files that it names.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use super::{
    guest::MAX_MODULE_BYTES,
    manifest::{self, Entry, Mode},
};
use crate::domain::hex;

/// Largest manifest, settings file, and file of vectors, in bytes.
const MAX_TEXT_BYTES: usize = 16 * 1024 * 1024;
/// Where Kubernetes mounts the files of a volume; it swaps this link to change them all at once.
const KUBERNETES_DATA: &str = "..data";

/// A file's bytes, or in words why there are none.
pub type File = Result<Arc<[u8]>, String>;

/// A manifest with the files that it names, read whole. What it is called by is its digest.
pub struct Bundle {
    /// The manifest's text; none where there is no manifest.
    pub manifest: Option<String>,
    /// The modules that are not off, in order.
    pub entries: Vec<Entry>,
    /// The named files; in words why not, where one cannot be read.
    pub files: BTreeMap<String, File>,
    /// SHA-256 of everything above, in hexadecimal.
    pub digest: String,
}

impl Bundle {
    /// Reads a directory. One without a manifest gives a bundle without modules.
    ///
    /// # Errors
    ///
    /// Every problem of the manifest.
    pub fn read(directory: &Path) -> Result<Self, Vec<String>> {
        let root = root(directory);
        let told = |error: &dyn std::fmt::Display| vec![format!("{}: {error}", manifest::FILE)];
        let manifest = match read(&root.join(manifest::FILE), MAX_TEXT_BYTES) {
            Ok(bytes) => Some(String::from_utf8(bytes).map_err(|_| told(&"it is not UTF-8"))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(told(&error)),
        };
        Self::gather(manifest, |file, most| read(&root.join(file), most))
    }

    /// Puts a bundle together from a manifest and whatever gives the files that it names, at most so many bytes each.
    ///
    /// # Errors
    ///
    /// Every problem of the manifest.
    pub fn gather(
        manifest: Option<String>,
        fetch: impl Fn(&str, usize) -> io::Result<Vec<u8>>,
    ) -> Result<Self, Vec<String>> {
        let mut entries = manifest::parse(manifest.as_deref().unwrap_or_default())?;
        entries.retain(|entry| entry.mode != Mode::Off);
        let mut files = BTreeMap::new();
        let mut take = |file: &str, most, optional| {
            if files.contains_key(file) {
                return;
            }
            match fetch(file, most) {
                Ok(bytes) => drop(files.insert(file.to_owned(), Ok(bytes.into()))),
                Err(error) if optional && error.kind() == io::ErrorKind::NotFound => (),
                Err(error) => drop(files.insert(file.to_owned(), Err(format!("{file}: {error}")))),
            }
        };
        for entry in &entries {
            take(&entry.module, MAX_MODULE_BYTES, false);
            entry.settings.iter().for_each(|file| take(file, MAX_TEXT_BYTES, false));
            match &entry.vectors {
                Some(file) => take(file, MAX_TEXT_BYTES, false),
                None => take(&entry.usual_vectors(), MAX_TEXT_BYTES, true),
            }
        }
        let digest = digest(manifest.as_deref(), &files);
        Ok(Self { manifest, entries, files, digest })
    }

    /// A named file's bytes.
    ///
    /// # Errors
    ///
    /// In words, why there are none.
    pub fn file(&self, name: &str) -> File {
        self.files.get(name).cloned().unwrap_or_else(|| Err(format!("{name}: there is no such file")))
    }

    /// The test vectors of a module, where there are any.
    pub fn vectors(&self, entry: &Entry) -> Option<(String, File)> {
        let name = entry.vectors.clone().unwrap_or_else(|| entry.usual_vectors());
        let file = self.files.get(&name)?.clone();
        Some((name, file))
    }
}

/// Where the files of a policy directory really are.
fn root(directory: &Path) -> PathBuf {
    fs::canonicalize(directory.join(KUBERNETES_DATA)).unwrap_or_else(|_| directory.to_owned())
}

/// Reads a file of at most so many bytes.
///
/// # Errors
///
/// Where it cannot be read, or is longer.
pub fn read(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    // Whatever it is by now, it does not block.
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0).min(most));
    file.take(u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(io::Error::other(format!("it has {} bytes, {most} are the most", meta.len())));
    }
    Ok(bytes)
}

fn digest(manifest: Option<&str>, files: &BTreeMap<String, File>) -> String {
    let mut whole = Sha256::new();
    // Each part by its own digest, so that no two bundles read alike.
    whole.update(Sha256::digest(manifest.unwrap_or("\0")));
    for (name, file) in files {
        whole.update(Sha256::digest(name));
        match file {
            Ok(bytes) => whole.update(Sha256::digest(bytes)),
            Err(problem) => whole.update(Sha256::digest(format!("\0{problem}"))),
        }
    }
    hex(&whole.finalize())
}

/// What can be seen of a directory without reading its files: it changes when any of them does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fingerprint(Vec<(PathBuf, u64, u64, u64, i128, i128)>);

impl Fingerprint {
    /// Looks at a directory. What cannot be seen is as if it were not there.
    #[must_use]
    pub fn of(directory: &Path) -> Self {
        let root = root(directory);
        let mut seen = Vec::new();
        for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let passing = name.to_str().is_none_or(|name| name.starts_with('.') || name.ends_with('~'));
            // Through links: it is the file that counts.
            if let (false, Ok(meta)) = (passing, fs::metadata(entry.path()))
                && meta.is_file()
            {
                let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
                let modified = nanos(meta.mtime(), meta.mtime_nsec());
                let changed = nanos(meta.ctime(), meta.ctime_nsec());
                seen.push((entry.path(), meta.dev(), meta.ino(), meta.len(), modified, changed));
            }
        }
        seen.sort();
        Self(seen)
    }
}
