//! `portcullis policy eval`: one decision, and why.

use std::{net::IpAddr, path::PathBuf};

use clap::Args;

use super::{DENIED, in_lines, one_line};
use crate::{
    cli::CommandResult,
    domain::Clock,
    policy::{ContextFacts, Duty, Explanation, Opinion, Policies, PrincipalFacts, Scenario, SecretFacts, Session},
    server::SystemClock,
};

#[derive(Args)]
pub struct EvalArgs {
    /// The policy directory.
    #[arg(long, default_value = "policies")]
    policies: PathBuf,
    /// Who asks: `user:NAME` or `sa:NAME`.
    #[arg(long)]
    identity: String,
    /// A group of theirs; may be given again.
    #[arg(long = "group")]
    groups: Vec<String>,
    /// Their tenant.
    #[arg(long, default_value = "default")]
    tenant: String,
    /// read, write, delete, list or admin.
    #[arg(long, default_value = "read")]
    action: String,
    /// The path.
    #[arg(long)]
    path: String,
    /// Where they ask from.
    #[arg(long)]
    source_ip: Option<IpAddr>,
    /// When, as RFC 3339 writes it; now where absent.
    #[arg(long)]
    time: Option<String>,
    /// They verified a second factor just before.
    #[arg(long)]
    mfa: bool,
    /// A tag of the secret; may be given again.
    #[arg(long = "tag")]
    tags: Vec<String>,
    /// Who owns the secret.
    #[arg(long)]
    owner: Option<String>,
    /// There is no secret at the path.
    #[arg(long)]
    absent: bool,
    /// A field that would be written; may be given again.
    #[arg(long = "written-field")]
    written_fields: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &EvalArgs) -> CommandResult {
    let now = SystemClock.now();
    let (inquiry, subject, action) = scenario(args)?.pose(now).map_err(|problems| in_lines(&problems))?;
    let policies = Policies::load(args.policies.clone(), now)?;
    let set = policies.current();
    let explanation = Session::dry(&*set, inquiry).explain(action, &subject);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&explanation)?);
    } else {
        print!("{}", in_words(&explanation));
    }
    Ok(if explanation.allowed { 0 } else { DENIED })
}

fn scenario(args: &EvalArgs) -> Result<Scenario, Box<dyn std::error::Error>> {
    let now = args.time.as_deref().map(str::parse).transpose()?.unwrap_or_else(|| SystemClock.now());
    let methods: &[&str] = if args.mfa { &["pwd", "mfa"] } else { &["pwd"] };
    let principal = PrincipalFacts {
        id: args.identity.clone(),
        tenant: args.tenant.clone(),
        groups: args.groups.clone(),
        authenticated_at: Some(now),
        authentication_methods: methods.iter().map(|&method| method.to_owned()).collect(),
        ..PrincipalFacts::default()
    };
    let described = SecretFacts { tags: args.tags.clone(), owner: args.owner.clone(), ..SecretFacts::default() };
    Ok(Scenario {
        action: args.action.clone(),
        path: args.path.clone(),
        principal,
        context: ContextFacts { now: Some(now), source_ip: args.source_ip },
        secret: if args.absent { SecretFacts::absent() } else { described },
        written_fields: args.written_fields.clone(),
    })
}

fn in_words(explanation: &Explanation) -> String {
    let mut lines =
        vec![if explanation.allowed { "allowed".to_owned() } else { format!("denied: {}", explanation.code) }];
    lines.extend(explanation.message.clone());
    lines.push(format!("  {}", explanation.combined));
    if let Some(fields) = &explanation.obligations.only_fields {
        lines.push(format!("  these fields alone: {}", fields.join(", ")));
    }
    if !explanation.obligations.without_fields.is_empty() {
        lines.push(format!("  never these fields: {}", explanation.obligations.without_fields.join(", ")));
    }
    lines.extend(explanation.dissent.iter().map(|one| format!("  {} in shadow mode would {}", one.module, one.would)));
    explanation.modules.iter().for_each(|module| tell(module, &mut lines));
    lines.iter().map(|line| one_line(line) + "\n").collect()
}

fn tell(module: &Opinion, lines: &mut Vec<String>) {
    let rules = if module.rules.is_empty() { String::new() } else { format!(" by {}", module.rules.join(", ")) };
    lines.push(format!(
        "  {} ({}): {} {}{rules}, {} µs",
        module.module, module.mode, module.outcome, module.reason, module.micros
    ));
    lines.extend(module.message.iter().map(|message| format!("    says: {message}")));
    let duty = |duty: &Duty| {
        let critical = if duty.critical { ", critical" } else { "" };
        format!("    duty: {}({}){critical}", duty.kind, duty.args.join(", "))
    };
    lines.extend(module.obligations.iter().map(duty));
    lines.extend(module.notes.iter().map(|note| format!("    note: {note}")));
    lines.extend(module.inputs.iter().map(|(name, value)| format!("    read {name} = {value}")));
}
