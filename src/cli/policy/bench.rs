//! `portcullis policy bench`: what decisions cost.

use std::{error::Error, path::PathBuf};

use clap::Args;
use serde::Serialize;

use super::{in_lines, nothing_in_force};
use crate::{
    cli::CommandResult,
    domain::{Action, Clock},
    policy::{
        ContextFacts, Failure, Footprint, Inquiry, Policies, PrincipalFacts, Scenario, SecretFacts, Subject, Timing,
    },
    server::SystemClock,
};

/// Different paths that are asked about: as many as a batch has at most.
const PATHS: usize = 100;

#[derive(Args)]
pub struct BenchArgs {
    /// The policy directory.
    #[arg(default_value = "policies")]
    directory: PathBuf,
    /// Who asks: `user:NAME` or `sa:NAME`.
    #[arg(long, default_value = "user:bench")]
    identity: String,
    /// A group of theirs; may be given again.
    #[arg(long = "group")]
    groups: Vec<String>,
    /// read, write, delete, list or admin.
    #[arg(long, default_value = "read")]
    action: String,
    /// The first of a hundred paths; the others end in `-1`, `-2` and so on.
    #[arg(long, default_value = "bench/service")]
    path: String,
    /// How often each step is timed.
    #[arg(long, default_value_t = 1_000)]
    rounds: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Figures {
    rounds: usize,
    timings: Vec<Timing>,
    memory: Vec<Footprint>,
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> CommandResult {
    let (inquiry, questions) = questions(args)?;
    let set = Policies::load(args.directory.clone(), SystemClock.now())?.current();
    if set.modules.is_empty() {
        return Err(nothing_in_force(&args.directory).into());
    }
    let failed = |(module, failure): (String, Failure)| {
        format!("`{module}` cannot be timed, it failed ({}): try `portcullis policy eval`", failure.as_str())
    };
    let (timings, memory) = set.measure(&inquiry, &questions, args.rounds.max(1)).map_err(failed)?;
    let figures = Figures { rounds: args.rounds.max(1), timings, memory };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print!("{}", in_words(&figures));
    }
    Ok(0)
}

/// Who asks, and what about.
type Questions = (Inquiry, Vec<(Action, Subject)>);

fn questions(args: &BenchArgs) -> Result<Questions, Box<dyn Error>> {
    let now = SystemClock.now();
    let pose = |index: usize| {
        let path = if index == 0 { args.path.clone() } else { format!("{}-{index}", args.path) };
        let principal =
            PrincipalFacts { id: args.identity.clone(), groups: args.groups.clone(), ..PrincipalFacts::default() };
        let scenario = Scenario {
            action: args.action.clone(),
            path,
            principal,
            context: ContextFacts::default(),
            secret: SecretFacts::default(),
            written_fields: Vec::new(),
        };
        scenario.pose(now).map_err(|problems| in_lines(&problems))
    };
    let (inquiry, ..) = pose(0)?;
    let questions = (0..PATHS).map(|index| pose(index).map(|(_, subject, action)| (action, subject)));
    Ok((inquiry, questions.collect::<Result<_, _>>()?))
}

fn in_words(figures: &Figures) -> String {
    let mut lines = vec![format!("{:<30} {:>10} {:>10} {:>10}   µs, of {}", "", "p50", "p99", "best", figures.rounds)];
    for timing in &figures.timings {
        let of = timing.module.as_ref().map(|module| format!("{module}: ")).unwrap_or_default();
        let what = format!("{of}{}", timing.step);
        lines.push(format!("{what:<30} {:>10.1} {:>10.1} {:>10.1}", timing.p50_us, timing.p99_us, timing.best_us));
    }
    for footprint in &figures.memory {
        lines.push(format!("{}: {} KiB of memory", footprint.module, footprint.memory_bytes / 1024));
    }
    lines.join("\n") + "\n"
}
