//! Reading values: one path, or a batch. A read of one path is a batch of one.

use std::sync::Arc;

use tokio::try_join;

use super::{Account, Caller, Fault, LookUp, Vault, permission};
use crate::{
    audit::{self, Event},
    domain::{
        Action, Decision, FieldFilter, InputRead, Record, SecretPath, SecretValue, TenantId, Timestamp, Verdict,
        Version, VersionState,
    },
    policy::{Subject, Until},
};

/// A secret that may be seen.
pub struct Found {
    /// The secret and the version read.
    pub record: Arc<Record>,
    /// The version read.
    pub version: Version,
    /// Its value, or why it stays here.
    pub release: Release,
}

/// What leaves the vault of a secret that may be seen.
pub enum Release {
    /// The value.
    Value(SecretValue),
    /// Nothing: the caller has it already.
    NotModified,
    /// Nothing: another path of the batch failed, and the batch was to fail with it.
    Withheld,
}

impl Release {
    const fn code(&self) -> &'static str {
        match self {
            Self::Value(_) => audit::OK,
            Self::NotModified => audit::NOT_MODIFIED,
            Self::Withheld => audit::WITHHELD,
        }
    }
}

impl Found {
    /// A tag of what the answer shows: it changes with the version and with the metadata.
    #[must_use]
    pub fn entity_tag(&self) -> String {
        entity_tag(&self.record, self.version)
    }
}

fn entity_tag(record: &Record, version: Version) -> String {
    format!("\"{version}-{:x}\"", record.head.updated_at.micros())
}

/// What became of one path.
pub type ReadOutcome = Result<Found, Fault>;

/// How a batch is read.
#[derive(Debug, Default)]
pub struct BatchOptions {
    /// Whether the first failing path ends the batch.
    pub fail_fast: bool,
    /// Entity tags that the caller holds; a secret that still has one of them releases nothing.
    pub known_tags: Vec<String>,
    /// How many entries the request named; none where it is a request for one path.
    pub size: Option<usize>,
}

/// A path as it was asked for: parsed with the version wanted, or the text of no path.
pub type Asked = Result<(SecretPath, Option<Version>), Fault>;

/// One path's decision and what followed from it.
struct Settled {
    decision: Option<Decision>,
    outcome: ReadOutcome,
}

impl Vault {
    /// Reads one secret, as [`Vault::read_batch`] does.
    ///
    /// # Errors
    ///
    /// Those of a batch.
    pub async fn read<T>(
        &self,
        caller: &Caller,
        path: SecretPath,
        version: Option<Version>,
        known_tags: Vec<String>,
        answer: impl FnOnce(ReadOutcome) -> T,
    ) -> Result<T, Fault> {
        let options = BatchOptions { fail_fast: false, known_tags, size: None };
        let only = |mut outcomes: Vec<ReadOutcome>| answer(outcomes.pop().unwrap_or(Err(Fault::Unavailable)));
        self.read_batch(caller, vec![Ok((path, version))], &options, only).await
    }

    /// Reads some secrets: one generation of policies, one snapshot of the store, one call of each module in force for
    /// each path, one append to the audit log. Outcomes come in the order of the question; with `fail_fast` they end
    /// with the first that failed, and release nothing then. `answer` makes of them what is answered, while they are put on
    /// record, and also where that fails: it does nothing else. What it made is given away once they are on record.
    ///
    /// # Errors
    ///
    /// [`Fault::Unavailable`] where the store, a key or the audit log cannot be had: nothing is released then.
    pub async fn read_batch<T>(
        &self,
        caller: &Caller,
        asked: Vec<Asked>,
        options: &BatchOptions,
        answer: impl FnOnce(Vec<ReadOutcome>) -> T,
    ) -> Result<T, Fault> {
        let tenant = &caller.principal.tenant;
        // To stop at the first path that fails, one must know what is there; else only a policy that asks needs to.
        let (mut settled, inputs) = if caller.policies.sees_secrets() || options.fail_fast {
            self.look_up_and_decide(caller, &asked, options).await?
        } else {
            self.decide_and_look_up(caller, &asked, options).await?
        };
        let events = settled.iter_mut().zip(&asked).map(|(settled, asked)| event(settled, asked)).collect();
        let account = Account { action: Action::Read, batch_size: options.size, inputs, events };
        // As a rule the writer has the row before the answer is made; nothing depends on that.
        let ((), answer) = try_join!(biased; self.record(caller, account), async {
            Ok(answer(settled.into_iter().map(|settled| settled.outcome).collect()))
        })?;
        tracing::debug!(%tenant, paths = asked.len(), "read");
        Ok(answer)
    }

    async fn look_up_and_decide(
        &self,
        caller: &Caller,
        asked: &[Asked],
        options: &BatchOptions,
    ) -> Result<(Vec<Settled>, Vec<InputRead>), Fault> {
        let wanted: Vec<_> = asked.iter().filter_map(|asked| asked.as_ref().ok().cloned()).collect();
        let mut records = self.look_up_to_open(&caller.principal.tenant, &wanted).await?.into_iter();
        let mut questions: Vec<(&Asked, LookUp)> = Vec::with_capacity(asked.len());
        for asked in asked {
            let (record, present) = match asked {
                Ok((_, version)) => {
                    let record = records.next().unwrap_or(Ok(None));
                    let found = record.clone().and_then(|record| readable(record, *version, caller.context.now));
                    (record, found.is_ok())
                }
                Err(_) => (Ok(None), false),
            };
            questions.push((asked, record));
            if options.fail_fast && !present {
                break;
            }
        }
        let subject = |(asked, record): &(&Asked, LookUp)| {
            let path = asked.as_ref().ok().map(|(path, _)| path.clone())?;
            Some(Subject::at(path, record.clone().unwrap_or_default()))
        };
        let subjects = questions.iter().filter_map(subject).collect();
        let until = if options.fail_fast { Until::Denied } else { Until::End };
        let (decisions, inputs) = self.decide_all(caller, Action::Read, subjects, until).await?;
        let mut decisions = decisions.into_iter();
        let mut settled = Vec::with_capacity(asked.len());
        for (asked, record) in questions {
            let one = match asked {
                Ok((_, version)) => {
                    let decision = decisions.next().ok_or(Fault::Unavailable)?;
                    self.settle(caller, decision, record, *version, options)
                }
                Err(fault) => Settled { decision: None, outcome: Err(fault.clone()) },
            };
            let failed = one.outcome.is_err();
            settled.push(one);
            if failed && options.fail_fast {
                withhold(&mut settled);
                break;
            }
        }
        Ok((settled, inputs))
    }

    async fn decide_and_look_up(
        &self,
        caller: &Caller,
        asked: &[Asked],
        options: &BatchOptions,
    ) -> Result<(Vec<Settled>, Vec<InputRead>), Fault> {
        let paths = || asked.iter().filter_map(|asked| asked.as_ref().ok());
        let subjects = paths().map(|(path, _)| Subject::at(path.clone(), None)).collect();
        let (decisions, inputs) = self.decide_all(caller, Action::Read, subjects, Until::End).await?;
        let permitted = |decision: &Decision| matches!(decision.verdict, Verdict::Allow(_));
        let wanted: Vec<_> =
            paths().zip(&decisions).filter(|(_, decision)| permitted(decision)).map(|(path, _)| path.clone()).collect();
        let mut records = self.look_up_to_open(&caller.principal.tenant, &wanted).await?.into_iter();
        let mut decisions = decisions.into_iter();
        let settle_one = |asked: &Asked| match asked {
            Ok((_, version)) => {
                let decision = decisions.next().ok_or(Fault::Unavailable)?;
                let record = if permitted(&decision) { records.next() } else { None };
                Ok(self.settle(caller, decision, record.unwrap_or(Ok(None)), *version, options))
            }
            Err(fault) => Ok(Settled { decision: None, outcome: Err(fault.clone()) }),
        };
        let settled = asked.iter().map(settle_one).collect::<Result<_, Fault>>()?;
        Ok((settled, inputs))
    }

    /// What follows from a decision: the refusal, the absence, the damage, or the value.
    fn settle(
        &self,
        caller: &Caller,
        decision: Decision,
        record: LookUp,
        pinned: Option<Version>,
        options: &BatchOptions,
    ) -> Settled {
        let outcome = permission(&decision).and_then(|filter| {
            let (record, version) = readable(record?, pinned, caller.context.now)?;
            self.open(&caller.principal.tenant, record, version, filter, options)
        });
        Settled { decision: Some(decision), outcome }
    }

    fn open(
        &self,
        tenant: &TenantId,
        record: Arc<Record>,
        version: Version,
        filter: &FieldFilter,
        options: &BatchOptions,
    ) -> ReadOutcome {
        let known = |tag: &String| tag == "*" || *tag == entity_tag(&record, version);
        // A tag names the whole value: under field obligations nobody can hold what this answer would show.
        if filter.is_open() && options.known_tags.iter().any(known) {
            return Ok(Found { record, version, release: Release::NotModified });
        }
        let sealed = record.version.as_ref().and_then(|version| version.sealed.as_ref()).ok_or(Fault::Unreadable)?;
        let value = self.reveal(tenant, &record.head.path, version, sealed)?;
        let value = if filter.is_open() { value } else { filter.apply(&value).ok_or(Fault::Unreadable)? };
        Ok(Found { record, version, release: Release::Value(value) })
    }
}

/// The version that can be read now, or why none can.
pub(super) fn readable(
    record: Option<Arc<Record>>,
    pinned: Option<Version>,
    now: Timestamp,
) -> Result<(Arc<Record>, Version), Fault> {
    let record = record.filter(|record| record.head.deleted.is_none()).ok_or(Fault::SecretNotFound)?;
    let absent = if pinned.is_some() { Fault::VersionNotFound } else { Fault::SecretNotFound };
    let Some(version) = &record.version else { return Err(absent) };
    match version.state(now) {
        VersionState::Live => {
            let number = version.version;
            Ok((record, number))
        }
        VersionState::Expired | VersionState::Destroyed => Err(absent),
    }
}

/// A batch that failed fast releases none of its values.
fn withhold(settled: &mut [Settled]) {
    for one in settled {
        if let Ok(found) = &mut one.outcome {
            found.release = Release::Withheld;
        }
    }
}

fn event(settled: &mut Settled, asked: &Asked) -> Event {
    let (code, version) = match &settled.outcome {
        Ok(found) => (found.release.code(), Some(found.version)),
        Err(fault) => (fault.code(), None),
    };
    let path = asked.as_ref().ok().map(|(path, _)| path.clone());
    Event { path, version, code, decision: settled.decision.take() }
}
