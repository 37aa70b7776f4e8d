//! Asks on the terminal for what must not be seen.

use std::{
    fs::OpenOptions,
    io::{self, BufRead, BufReader, Write},
};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// Longest line.
const MOST: usize = 1_024;

/// Asks on the controlling terminal, which does not show what is typed.
///
/// # Errors
///
/// There is no terminal.
pub fn ask(prompt: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
    let before = tcgetattr(&terminal)?;
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    terminal.write_all(prompt.as_bytes())?;
    tcsetattr(&terminal, OptionalActions::Flush, &hidden)?;
    let line = line(&mut BufReader::new(&terminal));
    tcsetattr(&terminal, OptionalActions::Flush, &before)?;
    terminal.write_all(b"\n")?;
    line
}

/// One line without its end.
fn line(reader: &mut impl BufRead) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(MOST));
    let mut byte = [0];
    while line.len() < MOST && reader.read(&mut byte)? == 1 && byte != *b"\n" {
        line.extend_from_slice(&byte);
    }
    Ok(line)
}
