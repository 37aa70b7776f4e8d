//! From a module's bytes to configured machine code, in a process of its own: however long a module makes the compiler
//! work, whatever memory it makes it take, or how it makes it crash, it ends with that process. What comes out of it is
//! machine code that runs here, so the process is bounded, not distrusted.

use std::{
    io::{self, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{
    Pid, Resource, Rlimit, Signal, getrlimit, kill_process_group, nice, set_parent_process_death_signal, setrlimit,
};
use serde::{Deserialize, Serialize};
use wasmtime::Engine;

use super::{
    guest::{self, MAX_MODULE_BYTES, Unfit},
    limits::{self, GuestLimits},
};

/// Largest answer of the compiling process, in bytes: the machine code of a module, and its memory.
const MOST_CODE: u64 = 512 * 1024 * 1024;
/// How much the compiling process gives way to the serving one.
const NICENESS: i32 = 5;
/// The program that runs here, even where its file has been replaced since.
pub const THIS_PROGRAM: &str = "/proc/self/exe";
/// The words that make this program a compiling process; see [`work`].
const WORKER_COMMAND: [&str; 2] = ["policy", "compile-worker"];

/// Where modules are compiled.
#[derive(Debug, Clone)]
pub enum Compiler {
    /// In this process, unbounded: for a program that compiles its own author's module and nothing else.
    Here,
    /// In a process of this program, within bounds.
    Process(Bounds),
}

/// What one compilation may take.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// The program that is run for it: this one.
    pub program: PathBuf,
    /// Wall-clock time, on top of what `configure` may take.
    pub time: Duration,
    /// Memory, in bytes.
    pub memory: u64,
}

impl Compiler {
    /// Configures, snapshots and compiles a module to code that this engine can load.
    pub(super) fn compile(&self, engine: &Engine, order: &Order<'_>) -> Result<Vec<u8>, Unfit> {
        match self {
            Self::Here => guest::prepare(engine, order.module, order.settings, &order.limits),
            Self::Process(bounds) => bounds.run(order),
        }
    }
}

/// A module to compile.
pub(super) struct Order<'o> {
    pub module: &'o [u8],
    pub settings: &'o str,
    pub limits: GuestLimits,
}

/// What precedes settings and module on the worker's standard input, as one line of JSON.
#[derive(Serialize, Deserialize)]
struct Header {
    settings_bytes: usize,
    module_bytes: usize,
    memory: usize,
    configure_millis: u64,
    compile_memory: u64,
}

/// The first byte of the worker's answer. The length follows in eight bytes (big-endian), then machine code, or problems
/// as a JSON array.
const CODE: u8 = b'C';
const PROBLEMS: u8 = b'P';
/// Bytes before the answer proper.
const HEAD: usize = 9;

impl Bounds {
    fn run(&self, order: &Order<'_>) -> Result<Vec<u8>, Unfit> {
        let failed = |error: io::Error| Unfit::from(format!("the compiling process cannot be run: {error}"));
        let mut worker = Worker(
            Command::new(&self.program)
                .args(WORKER_COMMAND)
                // The environment may hold the root key.
                .env_clear()
                // What the allocator sets aside would count as if it were used.
                .env("MIMALLOC_ARENA_EAGER_COMMIT", "0")
                .process_group(0)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .map_err(failed)?,
        );
        let time = self.time + order.limits.configure_deadline;
        let deadline = Instant::now() + time;
        let answers = self.converse(&mut worker.0, order).map_err(failed)?;
        let Ok(mut answer) = answers.recv_timeout(time) else {
            return Err(Unfit::from(format!("it does not compile within {time:?}")));
        };
        match kind(&answer) {
            Some(CODE) => {
                answer.drain(..HEAD);
                Ok(answer)
            }
            Some(PROBLEMS) => Err(problems(answer.get(HEAD..).unwrap_or_default())),
            _ => Err(self.broken_off(worker.status(deadline))),
        }
    }

    /// Hands the order over; what comes is the worker's whole answer, once it has closed its output.
    fn converse(&self, worker: &mut Child, order: &Order<'_>) -> io::Result<mpsc::Receiver<Vec<u8>>> {
        let missing = || io::Error::other("a pipe is missing");
        let mut input = worker.stdin.take().ok_or_else(missing)?;
        let output = worker.stdout.take().ok_or_else(missing)?;
        let header = Header {
            settings_bytes: order.settings.len(),
            module_bytes: order.module.len(),
            memory: order.limits.memory,
            configure_millis: u64::try_from(order.limits.configure_deadline.as_millis()).unwrap_or(u64::MAX),
            compile_memory: self.memory,
        };
        let mut asked = serde_json::to_vec(&header)?;
        asked.push(b'\n');
        asked.extend_from_slice(order.settings.as_bytes());
        asked.extend_from_slice(order.module);
        // Neither thread is waited for: a worker that hangs holds up nothing but them, and they end with it.
        thread::Builder::new().name("compile-order".into()).spawn(move || input.write_all(&asked).ok())?;
        let (sender, receiver) = mpsc::channel();
        thread::Builder::new().name("compile-answer".into()).spawn(move || {
            let mut answer = Vec::new();
            output.take(MOST_CODE).read_to_end(&mut answer).ok();
            sender.send(answer).ok();
        })?;
        Ok(receiver)
    }

    fn broken_off(&self, status: Option<ExitStatus>) -> Unfit {
        let how = match status.map(|status| (status, status.signal())) {
            None => "it does not end".to_owned(),
            Some((status, None)) => status.to_string(),
            Some((_, Some(signal))) => {
                format!("signal {signal}; {} MiB of memory are the most", self.memory / 1024 / 1024)
            }
        };
        Unfit::from(format!("its compilation broke off ({how})"))
    }
}

/// What an answer is; none where it is not whole.
fn kind(answer: &[u8]) -> Option<u8> {
    let (&kind, rest) = answer.split_first()?;
    let (length, content) = rest.split_first_chunk()?;
    (usize::try_from(u64::from_be_bytes(*length)) == Ok(content.len())).then_some(kind)
}

/// Never none at all: a refusal without a reason would be no refusal.
fn problems(told: &[u8]) -> Unfit {
    match serde_json::from_slice::<Vec<String>>(told) {
        Ok(problems) if !problems.is_empty() => Unfit(problems),
        _ => Unfit::from("its compilation broke off: it is refused without a reason".to_owned()),
    }
}

/// A process that does not outlive whoever ordered of it, nor do those that it may have started.
struct Worker(Child);

impl Worker {
    /// How it ended, if it does by then.
    fn status(&mut self, deadline: Instant) -> Option<ExitStatus> {
        loop {
            match self.0.try_wait() {
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                Ok(status) => return status,
                Err(_) => return None,
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let group = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        if let Some(group) = group {
            kill_process_group(group, Signal::KILL).ok();
        }
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The compiling process: one order from the standard input, one answer to the standard output.
///
/// # Errors
///
/// Where the conversation breaks off; whoever ordered sees that there is no answer.
pub fn work() -> io::Result<()> {
    let answer = compile_order().unwrap_or_else(|error| Err(Unfit::from(format!("the compiling process: {error}"))));
    let (kind, content) = match answer {
        Ok(code) => (CODE, code),
        Err(Unfit(problems)) => (PROBLEMS, serde_json::to_vec(&problems)?),
    };
    let mut output = io::stdout().lock();
    output.write_all(&[kind])?;
    output.write_all(&u64::try_from(content.len()).unwrap_or(u64::MAX).to_be_bytes())?;
    output.write_all(&content)?;
    output.flush()
}

fn compile_order() -> io::Result<Result<Vec<u8>, Unfit>> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    nice(NICENESS)?;
    // Where memory is short, this process is to go, not the one that serves.
    std::fs::write("/proc/self/oom_score_adj", "1000").ok();
    let mut input = io::stdin().lock();
    let header: Header = serde_json::from_slice(&line(&mut input)?)?;
    // Data, not addresses: the guests' pool reserves terabytes of those.
    let allowed = getrlimit(Resource::Data).maximum.unwrap_or(u64::MAX);
    let limit = Some(header.compile_memory.min(allowed));
    setrlimit(Resource::Data, Rlimit { current: limit, maximum: limit })?;
    let mut settings = vec![0; header.settings_bytes];
    input.read_exact(&mut settings)?;
    let mut module = vec![0; header.module_bytes.min(MAX_MODULE_BYTES)];
    input.read_exact(&mut module)?;
    let settings = String::from_utf8(settings).map_err(io::Error::other)?;
    let limits = GuestLimits::new(Duration::ZERO, Duration::from_millis(header.configure_millis), header.memory);
    let engine = limits::engine().map_err(io::Error::other)?;
    Ok(guest::prepare(&engine, &module, &settings, &limits))
}

fn line(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        input.read_exact(&mut byte)?;
        line.extend_from_slice(&byte);
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_not_whole_is_none() {
        let whole = [&[CODE][..], &3_u64.to_be_bytes(), b"abc"].concat();
        assert_eq!(kind(&whole), Some(CODE));
        assert!((0..whole.len()).all(|end| kind(&whole[..end]).is_none()));
        assert_eq!(kind(&[&whole[..], b"d"].concat()), None);
    }

    #[test]
    fn a_refusal_always_has_a_reason() {
        for told in [&b"[]"[..], b"", b"nonsense", b"[\"cut"] {
            assert_eq!(problems(told).0.len(), 1);
        }
        assert_eq!(problems(b"[\"a\",\"b\"]").0, ["a", "b"]);
    }
}
