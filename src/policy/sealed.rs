//! Files that this vault alone wrote: authenticated before anything is made of them.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::domain::Key;
use hmac::{Hmac, KeyInit, Mac};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
use sha2::Sha256;

/// Length of the code before the content: HMAC-SHA-256.
const CODE_BYTES: usize = 32;

/// A directory of authenticated files. Each is bound to its name and to what the directory is for.
pub struct SealedDirectory {
    path: PathBuf,
    purpose: &'static str,
    key: Key,
}

impl SealedDirectory {
    /// Makes the directory where it is missing, for its owner alone.
    ///
    /// # Errors
    ///
    /// Where it cannot be made.
    pub fn open(path: PathBuf, purpose: &'static str, key: Key) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(Self { path, purpose, key })
    }

    /// The content of a file; none where there is no such file.
    ///
    /// # Errors
    ///
    /// Where it cannot be read, or was not written by this vault under this name.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = match fs::read(self.path.join(name)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let altered = || io::Error::other(format!("{name} was not written by this vault, or was altered"));
        let (code, content) = bytes.split_at_checked(CODE_BYTES).ok_or_else(altered)?;
        self.code(name, content).verify_slice(code).map_err(|_| altered())?;
        bytes.drain(..CODE_BYTES);
        // What is used stays longest; see `sweep`.
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let used = Timestamps { last_access: now, last_modification: now };
        utimensat(CWD, self.path.join(name), &used, AtFlags::empty()).ok();
        Ok(Some(bytes))
    }

    /// Writes a file, durably and all at once.
    ///
    /// # Errors
    ///
    /// Where it cannot be written; whatever had the name before still has it.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let code = self.code(name, content).finalize().into_bytes();
        // Another process may write to the same directory, whatever may be said against that.
        let passing = self.path.join(format!(".{name}.{}", std::process::id()));
        let write = || {
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&passing)?;
            file.write_all(&code)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&passing, self.path.join(name))?;
            fs::File::open(&self.path)?.sync_all()
        };
        write().inspect_err(|_| drop(fs::remove_file(&passing)))
    }

    /// Removes a file, if it is there.
    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path.join(name)).ok();
    }

    /// Removes every file that is not wanted, except for what was used last: so many stay.
    pub fn sweep(&self, wanted: impl Fn(&str) -> bool, spare: usize) {
        let age = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
        let files = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let unwanted = files.filter(|file| file.file_name().to_str().is_none_or(|name| !wanted(name)));
        let mut unwanted: Vec<PathBuf> = unwanted.map(|file| file.path()).collect();
        if unwanted.len() > spare {
            unwanted.sort_by_cached_key(|path| std::cmp::Reverse(age(path)));
            for path in unwanted.drain(spare..) {
                fs::remove_file(path).ok();
            }
        }
    }

    fn code(&self, name: &str, content: &[u8]) -> Hmac<Sha256> {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.as_slice()).expect("a key of any length");
        for part in [self.purpose.as_bytes(), name.as_bytes(), content] {
            mac.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_altered_moved_or_forged_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let open =
            |purpose, key| SealedDirectory::open(scratch.path().to_owned(), purpose, Key::copy_of(&[key; 32])).unwrap();
        let directory = open("cache", 1);
        directory.write("a", b"the content").unwrap();
        assert_eq!(directory.read("a").unwrap().unwrap(), b"the content");
        assert_eq!(directory.read("b").unwrap(), None);
        assert!(open("kept", 1).read("a").is_err(), "another purpose");
        assert!(open("cache", 2).read("a").is_err(), "another key");
        let path = scratch.path().join("a");
        let whole = fs::read(&path).unwrap();
        fs::write(scratch.path().join("b"), &whole).unwrap();
        assert!(directory.read("b").is_err(), "another name");
        for bit in 0..whole.len() * 8 {
            let mut altered = whole.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &altered).unwrap();
            assert!(directory.read("a").is_err(), "bit {bit}");
        }
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(directory.read("a").is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_sweep_keeps_what_is_wanted_and_the_newest_of_the_rest() {
        let scratch = tempfile::tempdir().unwrap();
        let key = Key::copy_of(&[1; 32]);
        let directory = SealedDirectory::open(scratch.path().to_owned(), "cache", key).unwrap();
        for name in ["a", "b", "c", "d"] {
            directory.write(name, b"").unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        directory.sweep(|name| name == "a", 1);
        let left: Vec<bool> = ["a", "b", "c", "d"].map(|name| directory.read(name).unwrap().is_some()).to_vec();
        assert_eq!(left, [true, false, false, true]);
    }
}
