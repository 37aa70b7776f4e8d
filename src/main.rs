//! The program: parses the command line and calls the library.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use mimalloc::MiMalloc;
use portcullis::cli::Cli;
use tokio::runtime::Runtime;
use zeroizing_alloc::ZeroAlloc;

/// Wipes what is freed: buffers of requests and answers hold values, and none of their libraries wipes them.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<MiMalloc> = ZeroAlloc(MiMalloc);

/// The exit code of a command line that cannot be understood: 2, as usual elsewhere, means a refused token here.
const INVALID: u8 = 5;

/// How long the end waits for what still runs on threads of its own, such as the compilation of a policy.
const LAST_WAIT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => run(cli),
        Err(error) => {
            // What cannot be printed cannot be reported either.
            error.print().ok();
            if error.use_stderr() { INVALID.into() } else { ExitCode::SUCCESS }
        }
    }
}

fn run(cli: Cli) -> ExitCode {
    match Runtime::new() {
        Ok(runtime) => {
            let code = runtime.block_on(cli.run());
            runtime.shutdown_timeout(LAST_WAIT);
            code.into()
        }
        Err(error) => {
            eprintln!("portcullis: {error}");
            ExitCode::FAILURE
        }
    }
}
