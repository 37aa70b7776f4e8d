//! Looks at SQLite's write-ahead log before SQLite does. SQLite reads it up to the first frame that does not verify and
//! forgets the rest without a word: right for what a power cut tore, wrong for a bit that turned in what was durable,
//! since acknowledged changes are gone then. (The format: sqlite.org/fileformat2.html#walformat.)

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
/// The magic number without its last bit, which tells the order of the bytes that are summed.
const MAGIC: u32 = 0x377f_0682;

/// What is wrong with a log; nothing where it is as a program or a machine that stopped can leave it.
///
/// # Errors
///
/// Where it cannot be read.
pub fn damage(log: &Path) -> io::Result<Option<String>> {
    let file = match File::open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut header = [0; HEADER_BYTES];
    if length <= HEADER_BYTES as u64 {
        return Ok(None);
    }
    reader.read_exact(&mut header)?;
    let Some(log) = Log::new(&header) else { return Ok(Some("its header is damaged".to_owned())) };
    log.damage(reader)
}

/// Two sums over 32-bit words, each frame's going on from the one before.
type Sum = (u32, u32);

/// What the header says.
struct Log {
    page_bytes: usize,
    big_endian: bool,
    salt: [u8; 8],
    sum: Sum,
}

impl Log {
    /// None where it does not verify.
    fn new(header: &[u8; HEADER_BYTES]) -> Option<Self> {
        let magic = word(header, 0)?;
        let page_bytes = usize::try_from(word(header, 8)?).ok().filter(|bytes| (512..=65_536).contains(bytes))?;
        let big_endian = magic & 1 == 1;
        let sum = (word(header, 24)?, word(header, 28)?);
        let summed = summed((0, 0), header.get(..24)?, big_endian);
        let salt = header.get(16..24)?.try_into().ok()?;
        (magic & !1 == MAGIC && sum == summed).then_some(Self { page_bytes, big_endian, salt, sum })
    }

    /// INVARIANT: a transaction's frames are written after those of the one before are durable. So a frame that goes on
    /// from the end of a transaction proves that this transaction was durable, and so was all before it.
    fn damage(&self, mut frames: impl Read) -> io::Result<Option<String>> {
        let mut frame = vec![0; FRAME_HEADER_BYTES + self.page_bytes];
        let (mut number, mut broken) = (0_u64, None);
        // Of the frame before: the sum that it carries, the one that it has, and whether a transaction ends with it.
        let mut before = (self.sum, Some(self.sum), false);
        while filled(&mut frames, &mut frame)? {
            number += 1;
            let Some((sum, ends)) = claims(&frame) else { return Ok(None) };
            // What is of another generation of the log, this one has not overwritten yet.
            let of_this = frame.get(8..16) == Some(&self.salt);
            let own = self.summed(before.0, &frame);
            // Where the sum that the frame before carries is what was damaged, this one goes on from the right one.
            let mended = before.1.filter(|right| *right != before.0).and_then(|right| self.summed(right, &frame));
            let goes_on = of_this && (own == Some(sum) || mended == Some(sum));
            match broken {
                None if !goes_on => broken = Some(number),
                Some(first) if goes_on && before.2 => {
                    return Ok(Some(format!("frame {first} is damaged, and later ones are whole")));
                }
                _ => (),
            }
            before = (sum, own, ends);
        }
        Ok(None)
    }

    fn summed(&self, before: Sum, frame: &[u8]) -> Option<Sum> {
        let sum = summed(before, frame.get(..8)?, self.big_endian);
        Some(summed(sum, frame.get(FRAME_HEADER_BYTES..)?, self.big_endian))
    }
}

/// The sum that a frame carries, and whether it says that a transaction ends with it.
fn claims(frame: &[u8]) -> Option<(Sum, bool)> {
    Some(((word(frame, 16)?, word(frame, 20)?), word(frame, 4)? != 0))
}

/// Reads the next frame; false where there is no whole one.
fn filled(frames: &mut impl Read, frame: &mut [u8]) -> io::Result<bool> {
    match frames.read_exact(frame) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn summed(before: Sum, bytes: &[u8], big_endian: bool) -> Sum {
    let number = if big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
    bytes.as_chunks::<8>().0.iter().fold(before, |(one, two), [a, b, c, d, e, f, g, h]| {
        let one = one.wrapping_add(number([*a, *b, *c, *d])).wrapping_add(two);
        (one, two.wrapping_add(number([*e, *f, *g, *h])).wrapping_add(one))
    })
}
