//! A program that prints a key, such as one that asks a KMS. No shell, a limit on time and output, and what it prints is
//! never shown.

use std::{
    io::{self, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use zeroize::Zeroizing;

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Most bytes that it may print: a key has 44.
const MOST_OUTPUT: usize = 256;
/// Most bytes of its complaint that are shown.
const MOST_COMPLAINT: usize = 2_048;

/// What the program prints.
///
/// # Errors
///
/// No such program, a failure (with what it wrote to standard error), too much output, or 30 s without an end.
pub fn output(words: &[String]) -> io::Result<Zeroizing<Vec<u8>>> {
    run(words, PATIENCE)
}

fn run(words: &[String], patience: Duration) -> io::Result<Zeroizing<Vec<u8>>> {
    let (program, arguments) = words.split_first().ok_or_else(|| io::Error::other("no program is named"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Of its own, so that what it started ends with it.
        .process_group(0)
        .spawn()?;
    let printed = collect(child.stdout.take(), MOST_OUTPUT + 1);
    let complaint = collect(child.stderr.take(), MOST_COMPLAINT);
    let deadline = Instant::now() + patience;
    let ended = wait(&mut child, deadline);
    let left = deadline.saturating_duration_since(Instant::now());
    let printed = printed.recv_timeout(left).ok();
    end(&mut child);
    let status = ended?;
    if !status.success() {
        let complaint = complaint.recv_timeout(LOOK_EVERY * 10).unwrap_or_default();
        let complaint = String::from_utf8_lossy(&complaint);
        return Err(io::Error::other(format!("it ended with {status}: {}", complaint.trim())));
    }
    match printed {
        Some(printed) if printed.len() <= MOST_OUTPUT => Ok(printed),
        Some(_) => Err(io::Error::other("it printed more than a key")),
        None => Err(io::Error::other("what it printed has no end")),
    }
}

/// Reads on a thread of its own, so that a pipe that is full or held open keeps nobody.
fn collect(pipe: Option<impl Read + Send + 'static>, most: usize) -> Receiver<Zeroizing<Vec<u8>>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Zeroizing::new(Vec::with_capacity(most));
        if let Some(pipe) = pipe {
            pipe.take(most as u64).read_to_end(&mut bytes).ok();
        }
        sender.send(bytes).ok();
    });
    receiver
}

fn wait(child: &mut Child, deadline: Instant) -> io::Result<std::process::ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            return Err(io::Error::other("it did not end in time"));
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Ends the program and all that it started.
fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        kill_process_group(group, Signal::KILL).ok();
    }
    child.wait().ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, patience: Duration) -> Result<Vec<u8>, String> {
        let words = ["sh", "-c", script].map(str::to_owned);
        run(&words, patience).map(|bytes| bytes.to_vec()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_program_prints_a_key_or_is_refused_without_showing_what_it_printed() {
        let long = Duration::from_secs(20);
        assert_eq!(shell("printf 'BwcH'", long).unwrap(), b"BwcH");
        let failed = shell("printf hush; echo no access >&2; exit 3", long).unwrap_err();
        assert!(failed.contains("no access") && failed.contains('3') && !failed.contains("hush"), "{failed}");
        let talkative = shell("yes hush", long);
        assert!(talkative.as_ref().is_err_and(|error| !error.contains("hush")), "{talkative:?}");
        assert!(run(&["/no/such/program".to_owned()], long).is_err());
        assert!(run(&[], long).is_err());
    }

    #[test]
    fn a_program_that_does_not_end_is_ended_with_all_that_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let mark = directory.path().join("mark");
        let started = Instant::now();
        let script = format!("(sleep 2; touch {}) & sleep 60", mark.display());
        let refused = shell(&script, Duration::from_millis(300)).unwrap_err();
        assert!(refused.contains("in time"), "{refused}");
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        // Its child holds the pipe open.
        let held = shell(&format!("(sleep 2; touch {}) & exit 0", mark.display()), Duration::from_millis(300));
        assert!(held.unwrap_err().contains("no end"));
        thread::sleep(Duration::from_millis(2_500));
        assert!(!mark.exists(), "what it started was ended too");
    }
}
