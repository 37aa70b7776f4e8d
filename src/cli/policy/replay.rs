//! `portcullis policy replay`: yesterday's decisions against tomorrow's policies.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{in_lines, one_line};
use crate::{
    cli::CommandResult,
    domain::Clock,
    policy::{Access, Flip, JoinedFields, Judgement, Outcome, PastEvent, Policies, PolicySet, Turn, Unjudged},
    server::SystemClock,
};

/// The exit code where a decision would be another.
const FLIPPED: u8 = 3;
/// Malformed lines that are told.
const TOLD: usize = 20;

#[derive(Args)]
pub struct ReplayArgs {
    /// Audit events: one JSON object per line, or pages as `GET /v1/audit/logs` answers them. `-` reads standard input.
    #[arg(long, value_name = "AUDIT")]
    from: PathBuf,
    /// The policy directory to decide them with.
    #[arg(long, value_name = "DIR")]
    against: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What came of all events.
#[derive(Default, Serialize)]
struct Report {
    events: usize,
    same: usize,
    deny_to_allow: Vec<Flip>,
    allow_to_deny: Vec<Flip>,
    other_fields: Vec<Flip>,
    unjudged: Vec<Unjudged>,
    no_policy_action: usize,
    undecided: usize,
}

/// Runs the command.
pub fn run(args: &ReplayArgs) -> CommandResult {
    let policies = Policies::load(args.against.clone(), SystemClock.now())?;
    let set = policies.current();
    if set.modules.is_empty() {
        eprintln!("portcullis: no module is in force in {}: everything is denied", args.against.display());
    }
    let mut report = Report::default();
    let mut malformed = Vec::new();
    each_event(&args.from, &mut |line, event| {
        if let Err(problem) = event.and_then(|event| report.add(&set, &event)) {
            malformed.push(format!("line {line}: {problem}"));
        }
    })?;
    if !malformed.is_empty() {
        let more = malformed.len().saturating_sub(TOLD);
        malformed.truncate(TOLD);
        malformed.extend((more > 0).then(|| format!("and {more} more")));
        return Err(one_by_one(&malformed).into());
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.in_words());
    }
    Ok(if report.flips() == 0 { 0 } else { FLIPPED })
}

fn one_by_one(lines: &[String]) -> String {
    in_lines(&lines.iter().map(|line| one_line(line)).collect::<Vec<_>>())
}

type Seen<'s> = &'s mut dyn FnMut(usize, Result<PastEvent, String>);

/// Reads the file line by line, so that its size does not matter; a page that is spread over many lines is read whole.
fn each_event(from: &Path, seen: Seen<'_>) -> Result<(), String> {
    let unreadable = |error: io::Error| format!("{}: {error}", from.display());
    let mut reader: Box<dyn BufRead> =
        if from == Path::new("-") { Box::new(io::stdin().lock()) } else { Box::new(open(from).map_err(unreadable)?) };
    let (mut line, mut number, mut first) = (String::new(), 0, true);
    while reader.read_line(&mut line).map_err(unreadable)? > 0 {
        number += 1;
        if !line.trim().is_empty() {
            let mut values = values_of(&line);
            let start = number;
            if first && values.as_ref().is_err_and(serde_json::Error::is_eof) {
                reader.read_to_string(&mut line).map_err(unreadable)?;
                values = values_of(&line);
            }
            first = false;
            match values {
                Ok(values) => values.into_iter().for_each(|value| events_of(value, start, seen)),
                Err(error) => seen(start + error.line().saturating_sub(1), Err(not_json(&error))),
            }
        }
        line.clear();
    }
    Ok(())
}

/// What stands in a text: pages that were fetched one after the other stand without anything between them.
fn values_of(text: &str) -> serde_json::Result<Vec<Value>> {
    serde_json::Deserializer::from_str(text.trim_end()).into_iter().collect()
}

fn open(path: &Path) -> io::Result<BufReader<File>> {
    File::open(path).map(BufReader::new)
}

/// The parser's words end with a place within the line, which is all but the line itself.
fn not_json(error: &serde_json::Error) -> String {
    format!("it is no JSON (column {})", error.column())
}

/// One event, a page of them, or a list of either.
fn events_of(value: Value, line: usize, seen: Seen<'_>) {
    match value {
        Value::Array(items) => items.into_iter().for_each(|item| events_of(item, line, seen)),
        Value::Object(mut page) if page.contains_key("logs") => match page.remove("logs") {
            Some(Value::Array(events)) => events.into_iter().for_each(|event| one_event(&event, line, seen)),
            _ => seen(line, Err("`logs` is no list of events".to_owned())),
        },
        event => one_event(&event, line, seen),
    }
}

fn one_event(event: &Value, line: usize, seen: Seen<'_>) {
    seen(line, PastEvent::deserialize(event).map_err(|error| format!("it is no audit event: {error}")));
}

impl Report {
    fn add(&mut self, set: &PolicySet, event: &PastEvent) -> Result<(), String> {
        self.events += 1;
        match event.judge(set)? {
            Judgement::NoPolicyAction => self.no_policy_action += 1,
            Judgement::Undecided => self.undecided += 1,
            Judgement::Same => self.same += 1,
            Judgement::Unjudged(unjudged) => self.unjudged.push(*unjudged),
            Judgement::Flipped(Turn::DenyToAllow, flip) => self.deny_to_allow.push(*flip),
            Judgement::Flipped(Turn::AllowToDeny, flip) => self.allow_to_deny.push(*flip),
            Judgement::Flipped(Turn::OtherFields, flip) => self.other_fields.push(*flip),
        }
        Ok(())
    }

    fn flips(&self) -> usize {
        self.deny_to_allow.len() + self.allow_to_deny.len() + self.other_fields.len()
    }

    fn in_words(&self) -> String {
        let kinds = [
            ("DENY -> ALLOW", &self.deny_to_allow),
            ("ALLOW -> DENY", &self.allow_to_deny),
            ("OTHER FIELDS", &self.other_fields),
        ];
        let flips = kinds.iter().flat_map(|(kind, flips)| flips.iter().map(move |flip| told(kind, flip)));
        let unjudged = self.unjudged.iter().map(|unjudged| {
            let (access, missing) = (place(&unjudged.access), unjudged.missing.join(", "));
            format!("COULD NOT BE JUDGED  {access}: not recorded: {missing}")
        });
        let summary = format!(
            "{} events: {} the same, {} deny -> allow, {} allow -> deny, {} with other fields, {} could not be judged; \
             {} are of no policy action, {} ended before a decision",
            self.events,
            self.same,
            self.deny_to_allow.len(),
            self.allow_to_deny.len(),
            self.other_fields.len(),
            self.unjudged.len(),
            self.no_policy_action,
            self.undecided
        );
        flips.chain(unjudged).chain([summary]).map(|line| one_line(&line) + "\n").collect()
    }
}

fn told(kind: &str, flip: &Flip) -> String {
    format!("{kind}  {}: {} -> {}", place(&flip.access), outcome(&flip.before), outcome(&flip.after))
}

fn place(access: &Access) -> String {
    format!("{} {} {} {}", access.timestamp, access.identity_id, access.action, access.path)
}

fn outcome(outcome: &Outcome) -> String {
    let module = outcome.module.as_deref().unwrap_or("no module");
    format!("{} ({module}: {}{})", outcome.code, outcome.reason, fields(&outcome.obligations))
}

fn fields(fields: &JoinedFields) -> String {
    let only = fields.only_fields.as_ref().map(|fields| format!(", only {}", fields.join(" ")));
    let without = &fields.without_fields;
    let without = if without.is_empty() { String::new() } else { format!(", without {}", without.join(" ")) };
    only.unwrap_or_default() + &without
}
