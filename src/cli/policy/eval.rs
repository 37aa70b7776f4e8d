//! `portcullis policy eval`: one decision, and why.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::DENIED;
use crate::{
    cli::CommandResult,
    domain::{
        Action, Clock, Head, Identity, IdentityKind, InputRead, Metadata, MetadataText, Record, RequestContext, Scopes,
        SecretPath, SecretType, TenantId, Timestamp, Verdict, Version,
    },
    policy::{Inquiry, Opinion, Policies, Subject},
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
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Everything about one decision.
#[derive(Serialize)]
struct Explanation {
    allowed: bool,
    code: &'static str,
    reason: String,
    message: Option<String>,
    rules: Vec<String>,
    inputs: BTreeMap<String, serde_json::Value>,
    modules: Vec<Opinion>,
}

/// Runs the command.
pub fn run(args: &EvalArgs) -> CommandResult {
    let now = args.time.as_deref().map(str::parse).transpose()?.unwrap_or_else(|| SystemClock.now());
    let action = Action::parse(&args.action).ok_or("the action must be read, write, delete, list or admin")?;
    let subject = subject(args, now)?;
    let inquiry = inquiry(args, now)?;
    let policies = Policies::load(args.policies.clone(), SystemClock.now())?;
    let set = policies.current();
    let mut session = set.session(inquiry);
    let (decision, modules) = session.explain(action, &subject);
    let inputs = session.request_inputs().into_iter().chain(decision.inputs);
    let (allowed, code, message) = match decision.verdict {
        Verdict::Allow(_) => (true, "ok", None),
        Verdict::Deny(denial) => (false, denial.code.as_str(), Some(denial.message)),
    };
    let inputs = inputs.map(|InputRead { name, value }| (name.into_owned(), value)).collect();
    let explanation =
        Explanation { allowed, code, reason: decision.reason, message, rules: decision.rules, inputs, modules };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&explanation)?);
    } else {
        print!("{}", in_words(&explanation));
    }
    Ok(if allowed { 0 } else { DENIED })
}

fn in_words(explanation: &Explanation) -> String {
    let mut lines =
        vec![if explanation.allowed { "allowed".to_owned() } else { format!("denied: {}", explanation.code) }];
    lines.extend(explanation.message.clone());
    for module in &explanation.modules {
        let rules = if module.rules.is_empty() { String::new() } else { format!(" by {}", module.rules.join(", ")) };
        lines.push(format!(
            "  {} ({}): {} {}{rules}, {} µs",
            module.module, module.mode, module.outcome, module.reason, module.micros
        ));
        lines.extend(module.obligations.iter().map(|duty| format!("    duty: {duty}")));
        lines.extend(module.notes.iter().map(|note| format!("    note: {note}")));
    }
    lines.extend(explanation.inputs.iter().map(|(name, value)| format!("  read {name} = {value}")));
    lines.join("\n") + "\n"
}

fn inquiry(args: &EvalArgs, now: Timestamp) -> Result<Inquiry, &'static str> {
    let methods: &[&str] = if args.mfa { &["pwd", "mfa"] } else { &["pwd"] };
    let identity = Identity {
        id: args.identity.as_str().into(),
        kind: IdentityKind::of_subject(&args.identity).ok_or("the identity must be user:NAME or sa:NAME")?,
        tenant: TenantId::parse(&args.tenant).ok_or("a tenant is [a-z0-9][a-z0-9_-]*, 63 bytes at most")?,
        scopes: Scopes::default(),
        groups: args.groups.clone(),
        authentication_methods: methods.iter().map(|&method| method.to_owned()).collect(),
        authenticated_at: Some(now),
        expires_at: now,
        claims: json!({ "sub": args.identity }),
    };
    let context = RequestContext { request_id: "eval".into(), now, source_ip: args.source_ip, user_agent: None };
    Ok(Inquiry { identity: Arc::new(identity), context })
}

fn subject(args: &EvalArgs, now: Timestamp) -> Result<Subject, Box<dyn std::error::Error>> {
    let path = SecretPath::parse(&args.path)?;
    if args.absent {
        return Ok(Subject::at(path, None));
    }
    let metadata = Metadata { tags: args.tags.clone(), owner: args.owner.clone(), ..Metadata::default() };
    let head = Head {
        path: path.clone(),
        latest: Version::FIRST,
        secret_type: SecretType::default(),
        metadata: MetadataText::from(&metadata),
        created_at: now,
        created_by: args.identity.clone(),
        updated_at: now,
        updated_by: args.identity.clone(),
        expires_at: None,
        deleted: None,
        max_versions: 1,
    };
    Ok(Subject::at(path, Some(Arc::new(Record { head, version: None }))))
}
