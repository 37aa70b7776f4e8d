//! The program: parses the command line and calls the library.

use std::process::ExitCode;

use clap::Parser;
use portcullis::cli::Cli;

/// The exit code of a command line that cannot be understood: 2, as usual elsewhere, means a refused token here.
const INVALID: u8 = 5;

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => cli.run().await.into(),
        Err(error) => {
            // What cannot be printed cannot be reported either.
            error.print().ok();
            if error.use_stderr() { INVALID.into() } else { ExitCode::SUCCESS }
        }
    }
}
