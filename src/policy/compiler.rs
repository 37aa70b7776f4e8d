//! From a module's bytes to configured machine code, in a process of its own: what a hostile module makes the compiler do
//! ends with that process, and it holds no key.

use std::{
    io::{self, Read, Write},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::process::{Resource, Rlimit, Signal, nice, set_parent_process_death_signal, setrlimit};
use serde::{Deserialize, Serialize};
use wasmtime::Engine;

use super::{
    guest::{self, MAX_MODULE_BYTES, Unfit},
    limits::{self, GuestLimits},
};

/// Largest answer of the compiling process, in bytes: the machine code of a module, and its memory.
const MOST_CODE: u64 = 1024 * 1024 * 1024;
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

/// The first byte of the worker's answer: machine code follows, or problems do, as a JSON array.
const CODE: u8 = b'C';
const PROBLEMS: u8 = b'P';

impl Bounds {
    fn run(&self, order: &Order<'_>) -> Result<Vec<u8>, Unfit> {
        let failed = |error: io::Error| Unfit::from(format!("the compiling process cannot be run: {error}"));
        let mut worker = Command::new(&self.program)
            .args(WORKER_COMMAND)
            // The environment may hold the root key.
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let time = self.time + order.limits.configure_deadline;
        let answer = self.converse(&mut worker, order, time);
        if answer.as_ref().is_none_or(|answer| !answer.is_empty()) {
            // It has answered, or is late: either way nothing more is wanted of it.
            worker.kill().map_err(failed)?;
        }
        let status = worker.wait().map_err(failed)?;
        let Some(answer) = answer else {
            return Err(Unfit::from(format!("it does not compile within {time:?}")));
        };
        match answer.split_first() {
            Some((&CODE, code)) => Ok(code.to_vec()),
            Some((&PROBLEMS, problems)) => Err(Unfit(serde_json::from_slice(problems).unwrap_or_default())),
            _ => {
                let how = status.signal().map_or_else(|| status.to_string(), |signal| format!("signal {signal}"));
                let memory = self.memory / 1024 / 1024;
                Err(Unfit::from(format!("its compilation broke off ({how}): {memory} MiB of memory are the most")))
            }
        }
    }

    /// The worker's whole answer; none where it does not come in time.
    fn converse(&self, worker: &mut Child, order: &Order<'_>, time: Duration) -> Option<Vec<u8>> {
        let (mut input, mut output) = (worker.stdin.take()?, worker.stdout.take()?);
        let header = Header {
            settings_bytes: order.settings.len(),
            module_bytes: order.module.len(),
            memory: order.limits.memory,
            configure_millis: u64::try_from(order.limits.configure_deadline.as_millis()).unwrap_or(u64::MAX),
            compile_memory: self.memory,
        };
        let header = serde_json::to_vec(&header).ok()?;
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                // A worker that is gone shows in its answer.
                [&header, &b"\n"[..], order.settings.as_bytes(), order.module]
                    .into_iter()
                    .try_for_each(|part| input.write_all(part))
                    .ok();
            });
            scope.spawn(move || {
                let mut answer = Vec::new();
                output.by_ref().take(MOST_CODE).read_to_end(&mut answer).ok();
                sender.send(answer).ok();
            });
            let answer = receiver.recv_timeout(time).ok();
            if answer.is_none() {
                // Ends both threads: their pipes close.
                worker.kill().ok();
            }
            answer
        })
    }
}

/// The compiling process: one order from the standard input, one answer to the standard output.
///
/// # Errors
///
/// Where the conversation breaks off; whoever ordered sees that there is no answer.
pub fn work() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    nice(NICENESS)?;
    // Where memory is short, this process is to go, not the one that serves.
    std::fs::write("/proc/self/oom_score_adj", "1000").ok();
    let mut input = io::stdin().lock();
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        input.read_exact(&mut byte)?;
        line.extend_from_slice(&byte);
    }
    let header: Header = serde_json::from_slice(&line)?;
    // Data, not addresses: the guests' pool reserves terabytes of those.
    let limit = Some(header.compile_memory);
    setrlimit(Resource::Data, Rlimit { current: limit, maximum: limit })?;
    let mut settings = vec![0; header.settings_bytes];
    input.read_exact(&mut settings)?;
    let mut module = vec![0; header.module_bytes.min(MAX_MODULE_BYTES)];
    input.read_exact(&mut module)?;
    let settings = String::from_utf8(settings).map_err(io::Error::other)?;
    let limits = GuestLimits {
        deadline: Duration::ZERO,
        configure_deadline: Duration::from_millis(header.configure_millis),
        memory: header.memory,
        exhausted: false,
    };
    let engine = limits::engine().map_err(io::Error::other)?;
    let mut output = io::stdout().lock();
    match guest::prepare(&engine, &module, &settings, &limits) {
        Ok(code) => {
            output.write_all(&[CODE])?;
            output.write_all(&code)?;
        }
        Err(Unfit(problems)) => {
            output.write_all(&[PROBLEMS])?;
            output.write_all(&serde_json::to_vec(&problems)?)?;
        }
    }
    output.flush()
}
