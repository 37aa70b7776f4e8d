//! New policies: in force once that is on record.

use serde_json::{Value, json};

use super::{Caller, Fault, Vault};
use crate::{
    audit::{self, Entry, Event},
    domain::RequestContext,
    policy::{Finding, PolicySet, ReloadOutcome, Report, Trigger},
};

/// The audit's word for a change of policies.
const ACTION: &str = "reload_policies";
/// The code of a directory that cannot be taken.
pub const REJECTED: &str = "policy_rejected";
/// Most problems that are put on record, and the most bytes of each.
const PROBLEMS: usize = 50;
const PROBLEM_BYTES: usize = 1_024;

impl Vault {
    /// Takes the policy directory as it is now, if it can be taken. It is in the audit log before it is in force.
    ///
    /// # Errors
    ///
    /// [`Fault::Unavailable`] where it cannot be put on record: then nothing changes.
    pub async fn reload_policies(&self, trigger: Trigger, caller: Option<&Caller>) -> Result<Report, Fault> {
        let context = caller.map_or_else(|| self.own_context(), |caller| caller.context.clone());
        let reload = self.policies.reload(trigger, || self.clock.now()).await;
        // A look that found nothing new, and that nobody asked for, is no event; unless the last word was another.
        let quiet = trigger == Trigger::Watch && self.policies.is_up_to_date();
        if quiet && matches!(reload.finding, Finding::Unchanged) {
            return Ok(reload.conclude().await);
        }
        let current = self.policies.current();
        let (serving, problems) = match &reload.finding {
            Finding::Ready(candidate) => (&candidate.set, &[][..]),
            Finding::Unchanged => (&*current, &[][..]),
            Finding::Rejected(problems) => (&*current, &problems[..]),
        };
        let recorded = self.record_policies(trigger, caller, &context, serving, problems).await;
        let report = match recorded {
            Ok(()) => reload.conclude().await,
            Err(_) => reload.abandon(),
        };
        tell(&report);
        recorded.map(|()| report)
    }

    /// Puts on record what serves from the start.
    ///
    /// # Errors
    ///
    /// [`Fault::Unavailable`] where that cannot be done.
    pub async fn record_first_policies(&self) -> Result<(), Fault> {
        let problems = self.policies.last_reload().problems;
        self.record_policies(Trigger::Start, None, &self.own_context(), &self.policies.current(), &problems).await
    }

    async fn record_policies(
        &self,
        trigger: Trigger,
        caller: Option<&Caller>,
        context: &RequestContext,
        serving: &PolicySet,
        problems: &[String],
    ) -> Result<(), Fault> {
        let code = if problems.is_empty() { audit::OK } else { REJECTED };
        let row = audit::pack(Entry {
            identity: caller.map(|caller| &**caller.principal.identity()),
            generation: Some(serving.generation),
            policies: Some(&serving.digest),
            events: vec![Event::of(code)],
            details: Some(details(trigger, serving, problems)),
            ..Entry::new(context, ACTION, self.elapsed(context))
        });
        self.append(context, row).await
    }
}

/// Which policies serve, so that what another event calls by its digest can be told by those of its modules.
fn details(trigger: Trigger, serving: &PolicySet, problems: &[String]) -> Value {
    let modules = serving.modules.iter().map(|module| {
        json!({
            "name": module.reference.name,
            "digest": module.reference.digest,
            "settings_digest": module.settings_digest,
            "mode": module.mode.as_str(),
        })
    });
    let shorten = |problem: &String| problem.get(..problem.floor_char_boundary(PROBLEM_BYTES)).map(str::to_owned);
    json!({
        "trigger": trigger.as_str(),
        "generation": serving.generation,
        "digest": serving.digest,
        "policies": modules.collect::<Vec<_>>(),
        "problems": problems.iter().take(PROBLEMS).map(shorten).collect::<Vec<_>>(),
    })
}

fn tell(report: &Report) {
    let Report { trigger, outcome, generation, problems, took, .. } = report;
    let (trigger, took) = (trigger.as_str(), took.as_millis());
    match outcome {
        ReloadOutcome::Loaded => tracing::info!(trigger, generation, took_ms = took, "new policies are in force"),
        ReloadOutcome::Unchanged => tracing::info!(trigger, generation, "the policies are unchanged"),
        ReloadOutcome::Rejected => {
            tracing::error!(
                trigger,
                generation,
                ?problems,
                "the policy directory is refused: the old policies serve on"
            );
        }
        ReloadOutcome::Unrecorded => {
            tracing::error!(trigger, generation, "new policies are not taken: the audit log cannot be written");
        }
    }
}
