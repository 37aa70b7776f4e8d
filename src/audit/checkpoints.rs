//! The second place for checkpoints: a file outside the database, one note a line, only ever appended to. Put on another
//! disk, an append-only one or a mount of another machine, it shows that a database was rolled back or cut off.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{Evidence, Note};
use crate::domain::Receipt;

/// How much of the file's end is read.
const TAIL: u64 = 1024 * 1024;

/// The file.
#[derive(Debug, Clone)]
pub struct CheckpointFile(PathBuf);

impl CheckpointFile {
    /// A file at this path, whether or not it is there yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Appends a note, durable when this returns.
    ///
    /// # Errors
    ///
    /// As the file system says.
    pub fn append(&self, note: &Receipt) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&self.0)?;
        // A line that was cut short before does not spoil this one.
        file.write_all(format!("\n{}\n", note.0).as_bytes())?;
        file.sync_data()
    }

    /// The notes at its end (those of the last hours, where one is written every ten seconds); none where there is no
    /// such file.
    ///
    /// # Errors
    ///
    /// As the file system says.
    pub fn read(&self) -> io::Result<Vec<Evidence>> {
        let mut file = match fs::File::open(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened?,
        };
        let start = file.metadata()?.len().saturating_sub(TAIL);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        // Where the beginning was left out, the first line is half a line; and the last may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        // A write that was cut short by a crash is no forgery.
        let lines = whole.lines().skip(usize::from(start > 0)).filter(|line| Note::unverified(line).is_some());
        let origin = format!("a checkpoint in {}", self.0.display());
        Ok(lines.map(|note| Evidence { note: note.to_owned(), origin: origin.clone() }).collect())
    }

    /// Puts the file aside under another name, which is answered: what it says no longer holds of this database.
    ///
    /// # Errors
    ///
    /// As the file system says.
    pub fn put_aside(&self) -> io::Result<PathBuf> {
        let mut number = 1;
        loop {
            let aside = self.0.with_added_extension(number.to_string());
            if !aside.exists() {
                fs::rename(&self.0, &aside)?;
                return Ok(aside);
            }
            number += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::{
        audit::NoteKind,
        domain::{ChainHead, Timestamp},
    };

    fn note(micros: i64) -> Receipt {
        let (kind, head, at) = (NoteKind::Reached, ChainHead::origin(1), Timestamp::from_micros(micros));
        Receipt(Note { kind, head, at }.sign(&SigningKey::from_bytes(&[1; 32])).into())
    }

    #[test]
    fn notes_are_appended_and_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let file = CheckpointFile::new(directory.path().join("checkpoints.log"));
        assert!(file.read().unwrap().is_empty());
        for number in [1, 2] {
            file.append(&note(number)).unwrap();
        }
        assert_eq!(fs::metadata(file.path()).unwrap().permissions().mode() & 0o777, 0o600);
        let notes = || file.read().unwrap().into_iter().map(|shown| shown.note).collect::<Vec<_>>();
        fs::OpenOptions::new().append(true).open(file.path()).unwrap().write_all(b"reached1.1.7").unwrap();
        let expected = |numbers: &[i64]| numbers.iter().map(|number| note(*number).0.to_string()).collect::<Vec<_>>();
        assert_eq!(notes(), expected(&[1, 2]));
        file.append(&note(3)).unwrap();
        assert_eq!(notes(), expected(&[1, 2, 3]), "half a line spoils no other, and is no evidence");
        let aside = file.put_aside().unwrap();
        assert!(aside.exists() && file.read().unwrap().is_empty());
        file.append(&note(4)).unwrap();
        assert_ne!(file.put_aside().unwrap(), aside, "nothing is written over");
    }

    #[test]
    fn of_a_long_file_the_end_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = CheckpointFile::new(directory.path().join("checkpoints.log"));
        let line = note(1).0;
        let many = usize::try_from(TAIL).unwrap() / line.len() + 50;
        fs::write(file.path(), format!("{line}\n").repeat(many)).unwrap();
        file.append(&note(2)).unwrap();
        let notes = file.read().unwrap();
        assert_eq!(notes.last().unwrap().note, *note(2).0);
        assert!(notes.len() < many && notes[0].note == *line);
    }
}
