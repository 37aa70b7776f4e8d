//! The one thread of a server that writes. It commits for all who wait, chains the rows that they leave in the audit log,
//! and answers them after both are durable.

use std::{
    borrow::Cow,
    fs::File,
    mem,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tokio::{
    join,
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    Change, ChangeRequest, Committed, KeyChange, KeyChangeRequest, Refusal, StoreError, StoreResult, Tombstone,
    background,
    cache::RecordCache,
    change_tables::Changed,
    sql::{BUSY_TIMEOUT, CLOSING, Writing},
    statements::AT_ONCE,
    tables::Tables,
};
use crate::domain::{AuditRow, Chain, ChainHead, Receipt, Record, SecretPath, TenantId};

/// How many requests may wait for the writer before a new one waits to be let in.
const QUEUE: usize = 1_024;
/// How many requests one transaction serves at most.
const GROUP: usize = 256;
/// How long a transaction may take: longer than anyone waits for a secret's. (What SQLite is at work on is not cut short: it
/// is known then what became of it.)
const PATIENCE: Duration = Duration::from_secs(5);
/// After so many events a checkpoint follows.
const CHECKPOINT_EVENTS: u64 = 1_000;
/// After so long, if there was an event.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(1);
/// How soon a database that another process holds is asked for again.
const BEGIN_AGAIN: Duration = Duration::from_millis(5);
/// How soon what a reader kept from being forgotten is tried again.
const FORGET_AGAIN: Duration = Duration::from_millis(50);

/// Where the answer to a job goes.
pub type Answer<T> = oneshot::Sender<StoreResult<T>>;

/// What became of a change, and the receipt of its event.
pub type Witnessed = (Result<Committed, Refusal>, Receipt);

/// A change, and who waits for it.
type Asked = (ChangeRequest, Answer<Witnessed>);

/// What there is to write.
pub enum Job {
    StartLog(Arc<dyn Chain>, Answer<ChainHead>),
    Commit(Box<ChangeRequest>, Answer<Witnessed>),
    Append(Box<AuditRow>, Answer<Receipt>),
    Retain(Box<Tombstone>, Answer<Receipt>),
    ChangeKeys(Box<KeyChangeRequest>, Answer<(u64, Receipt)>),
    RootFingerprint(Vec<u8>, Answer<Vec<u8>>),
    VaultKey(Vec<u8>, &'static str, Vec<u8>, Answer<Vec<u8>>),
    Probe(Answer<()>),
    Close,
}

/// Checks that what was committed is where it will be looked for.
pub type InPlace = Box<dyn FnMut() -> StoreResult<()> + Send>;

/// The way to the writer.
pub struct WriterHandle {
    jobs: mpsc::Sender<Job>,
    /// Fails when the writer has ended, and has let go of its connection and of the log's keys.
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

impl WriterHandle {
    /// Starts the writer, on a thread of its own: it does not wait in line behind the requests that are worked on, nor
    /// interrupt them. The lock is held until its end.
    ///
    /// # Errors
    ///
    /// Where the system has no thread to give.
    pub fn start<B: Writing>(
        options: B::Options,
        lock: Option<Arc<File>>,
        in_place: InPlace,
        cache: Option<Arc<RecordCache>>,
    ) -> StoreResult<Self> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let writer = Writer::<B> { options, in_place, cache, chain: None, line: None, newest: None, unsynced: false };
        let (at_work, ended) = oneshot::channel();
        let work = async move {
            writer.run(queue).await;
            drop((lock, at_work));
        };
        let thread = background::spawn("writer", work);
        thread.map_err(|error| StoreError::Unfit(format!("the writer has no thread: {error}")))?;
        Ok(Self { jobs, ended: Mutex::new(Some(ended)) })
    }

    /// The way to no writer: every job is refused.
    pub fn none() -> Self {
        let (jobs, _) = mpsc::channel(1);
        Self { jobs, ended: Mutex::new(None) }
    }

    /// Hands a job in and waits for its answer.
    pub async fn write<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> StoreResult<T> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Uncommitted)?
    }

    /// Lets the writer finish what it was handed, and waits for its end; not for ever, where the disk does not answer.
    pub async fn close(&self) {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        let closing = async {
            if self.jobs.send(Job::Close).await.is_ok()
                && let Some(ended) = ended
            {
                ended.await.ok();
            }
        };
        if timeout(CLOSING, closing).await.is_err() {
            tracing::error!("the database does not answer: its writer is left behind, with what it was at work on");
        }
    }
}

struct Writer<B: Writing> {
    options: B::Options,
    in_place: InPlace,
    cache: Option<Arc<RecordCache>>,
    /// What binds the audit log's rows; none until the log is started.
    chain: Option<Arc<dyn Chain>>,
    /// None after a failure: what the connection knows is not to be trusted then, so it is opened anew.
    line: Option<Line<B>>,
    /// The newest head that was committed: one that is older later means that the log was rolled back.
    newest: Option<ChainHead>,
    /// Whether the database's log may show what the disk does not have.
    unsynced: bool,
}

/// The one connection that writes, and the chain that it holds.
struct Line<B: Writing> {
    connection: B::Connection,
    log: Option<Log>,
    /// Whether the database may still hold what was destroyed, in pages as they were before.
    remembers: bool,
}

struct Log {
    head: ChainHead,
    events_since_checkpoint: u64,
    checkpoint_at: Instant,
}

/// Sends an answer, once what it tells is durable.
type Reply = Box<dyn FnOnce(&Receipt) + Send>;

/// What a group came to.
struct Done {
    replies: Vec<Reply>,
    receipt: Receipt,
    checkpointed: bool,
    /// Secrets with their new versions, as they are stored if nothing else of the group changed them.
    written: Vec<(TenantId, Arc<Record>)>,
}

impl<B: Writing> Writer<B> {
    async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(first) = next(self.wakes(), &mut jobs).await {
            let mut group = Vec::from_iter(first);
            // Whoever is about to ask, and only waits for a processor, comes with this group.
            thread::yield_now();
            while group.len() < GROUP
                && let Ok(job) = jobs.try_recv()
            {
                group.push(job);
            }
            if group.iter().any(|job| matches!(job, Job::Close)) {
                // Nothing more is let in; what waits already is still served.
                jobs.close();
            }
            group.retain(Job::is_awaited);
            if !group.is_empty() || self.log().is_some_and(Log::is_due) {
                self.serve(group).await;
            } else if let Some(line) = &mut self.line {
                self.unsynced |= !line.forget(false).await;
            }
            if self.unsynced {
                // Opened anew, the log is settled before anything else.
                self.line = None;
            }
        }
        if let Some(log) =
            self.line.as_mut().and_then(|line| line.log.as_mut()).filter(|log| log.events_since_checkpoint > 0)
        {
            // The last word: what is written afterwards was written by another.
            log.events_since_checkpoint = CHECKPOINT_EVENTS;
            self.serve(Vec::new()).await;
        }
        if let Some(line) = self.line.take() {
            B::close(line.connection).await;
        }
    }

    /// When there is something to do, whether or not anybody asks: a checkpoint, or what a reader kept from being
    /// forgotten.
    fn wakes(&self) -> Option<Instant> {
        let log = self.log().filter(|log| log.events_since_checkpoint > 0);
        let checkpoint = log.map(|log| log.checkpoint_at + CHECKPOINT_AFTER);
        let forget = self.line.as_ref().filter(|line| line.remembers).map(|_| Instant::now() + FORGET_AGAIN);
        checkpoint.into_iter().chain(forget).min()
    }

    fn log(&self) -> Option<&Log> {
        self.line.as_ref()?.log.as_ref()
    }

    /// Serves a group in one transaction, and answers everyone after it is durable. Who gets no answer hears of the
    /// failure by that.
    async fn serve(&mut self, group: Vec<Job>) {
        let committed = timeout(PATIENCE, self.commit(group)).await.unwrap_or(Err(StoreError::Late));
        match committed {
            Ok((replies, receipt)) => replies.into_iter().for_each(|reply| reply(&receipt)),
            Err(error) => {
                tracing::error!(%error, "nothing of a group of changes could be committed");
                if let Some(cache) = &self.cache {
                    cache.lose();
                }
                self.unsynced |= B::is_failed_sync(&error);
                if let Some(line) = self.line.take() {
                    timeout(PATIENCE, B::abandon(line.connection)).await.ok();
                }
            }
        }
    }

    async fn commit(&mut self, mut group: Vec<Job>) -> StoreResult<(Vec<Reply>, Receipt)> {
        for job in &group {
            if let Job::StartLog(chain, _) = job {
                self.chain = Some(Arc::clone(chain));
                self.line = None;
            }
        }
        if B::SOLE_CHAIN.is_none() {
            // Two servers take the locks of several secrets in one order, so neither waits for the other for ever.
            group.sort_by(|a, b| a.secret().cmp(&b.secret()));
        }
        let mut line = match self.line.take() {
            Some(line) => line,
            None => self.connect().await?,
        };
        let destroys = group.iter().any(Job::destroys);
        let mut done = match self.append_alone(&mut line, &mut group).await.transpose() {
            Some(done) => done,
            None => self.transact(&mut line, group).await,
        };
        if let Ok(done) = &mut done {
            if let Some(cache) = &self.cache {
                cache.end(mem::take(&mut done.written));
            }
            self.unsynced |= !line.forget(destroys).await;
        }
        // Kept even after a failure: it is closed by whoever hears of that.
        self.line = Some(line);
        let Done { replies, receipt, checkpointed, .. } = done?;
        (self.in_place)()?;
        if checkpointed && let Some(chain) = &self.chain {
            chain.passed_checkpoint(&receipt);
        }
        Ok((replies, receipt))
    }

    /// Appends rows with which no change comes, by one statement that needs no transaction around it. `None` where there
    /// is more to do, or where another process holds the database: who waits for that may give up meanwhile.
    async fn append_alone(&mut self, line: &mut Line<B>, group: &mut Vec<Job>) -> StoreResult<Option<Done>> {
        let Some((chain, log)) = self.chain.as_ref().zip(line.log.as_mut()) else { return Ok(None) };
        // Who gave up while the connection was made was told that nothing was done.
        group.retain(Job::is_awaited);
        let rows: Vec<&AuditRow> = group.iter().filter_map(Job::row).collect();
        if !(1..=AT_ONCE).contains(&rows.len()) || rows.len() < group.len() {
            return Ok(None);
        }
        let mut next = log.follow(&**chain, rows.into_iter().map(Cow::Borrowed));
        let checkpointed = next.log.is_due();
        if checkpointed {
            if B::SOLE_CHAIN.is_none() || next.rows.len() == AT_ONCE {
                return Ok(None);
            }
            next.check(&**chain, &[]);
        }
        let mut tables = Tables::<B>(&mut line.connection);
        // Where the database is elsewhere, it works meanwhile.
        let (appended, receipt) = join!(tables.append(&next.rows), async { chain.receipt(&next.log.head) });
        match appended {
            Err(error) if B::is_locked(&error) => return Ok(None),
            appended => appended?,
        }
        if let Some(cache) = &self.cache {
            cache.begin(&[]);
        }
        self.newest = Some(next.log.head);
        *log = next.log;
        let replies = group.drain(..).filter_map(Job::into_receipted).collect();
        Ok(Some(Done { replies, receipt, checkpointed, written: Vec::new() }))
    }

    async fn transact(&mut self, line: &mut Line<B>, group: Vec<Job>) -> StoreResult<Done> {
        line.begin().await?;
        // Whoever gave up while the transaction waited to begin was told that nothing was done.
        let group: Vec<Job> = group.into_iter().filter(Job::is_awaited).collect();
        if let Some(cache) = &self.cache {
            cache.begin(&touched(&group));
        }
        let (alone, awaited) = (group.len() == 1, !group.is_empty());
        let (mut replies, mut rows) = (Vec::with_capacity(group.len()), Vec::with_capacity(group.len()));
        let mut written = Vec::new();
        // Where nobody else writes, the database fails a change as it would fail any other: with the group.
        let (together, others) = if B::SOLE_CHAIN.is_some() { together(group) } else { (Vec::new(), group) };
        for changes in together {
            let (requests, answers): (Vec<_>, Vec<_>) = changes.into_iter().unzip();
            let mut made = Tables::<B>(&mut line.connection).apply(requests).await?;
            if self.cache.is_some() {
                written.extend(made.iter_mut().flatten().filter_map(|changed| changed.written.take()));
            }
            let settled = made.into_iter().zip(answers);
            replies.extend(settled.filter_map(|(changed, answer)| settle_change(changed, answer, &mut rows)));
        }
        for job in others {
            let head = line.log.as_ref().map(|log| log.head);
            replies.extend(perform::<B>(job, alone, head, &mut line.connection, &mut rows).await?);
        }
        if awaited && replies.is_empty() {
            line.execute("ROLLBACK").await?;
            return Ok(Done { replies, receipt: Receipt::none(), checkpointed: false, written: Vec::new() });
        }
        let Some((chain, log)) = self.chain.as_ref().zip(line.log.as_mut()) else {
            if !rows.is_empty() {
                return Err(StoreError::NoLog);
            }
            line.execute("COMMIT").await?;
            return Ok(Done { replies, receipt: Receipt::none(), checkpointed: false, written });
        };
        let mut next = log.follow(&**chain, rows.into_iter().map(Cow::Owned));
        let mut tables = Tables::<B>(&mut line.connection);
        let checkpointed = next.log.is_due();
        if checkpointed {
            let others = tables.other_chains(log.head.place.chain).await?;
            next.check(&**chain, &others);
            tables.keep_chain(&next.log.head).await?;
        }
        tables.append(&next.rows).await?;
        let (committed, receipt) = join!(tables.execute("COMMIT", &[]), async { chain.receipt(&next.log.head) });
        committed?;
        self.newest = Some(next.log.head);
        *log = next.log;
        Ok(Done { replies, receipt, checkpointed, written })
    }

    async fn connect(&mut self) -> StoreResult<Line<B>> {
        (self.in_place)()?;
        let mut connection = B::connect(&self.options).await?;
        if self.unsynced {
            // Nothing that is acknowledged may come to stand behind what is not there.
            if !B::settle_log(&mut connection).await? {
                return Err(StoreError::Unfit("the database's log is in use after a failed sync".to_owned()));
            }
            self.unsynced = false;
        }
        let log = if self.chain.is_some() { Some(self.claim(&mut connection).await?) } else { None };
        B::leave_waiting(&mut connection).await?;
        Ok(Line { connection, log, remembers: false })
    }

    /// Takes a chain that no other server holds: the one before, if there was one.
    async fn claim(&mut self, connection: &mut B::Connection) -> StoreResult<Log> {
        let chain = B::claim_chain(connection, self.newest.map(|head| head.place.chain)).await?;
        let head = Tables::<B>(connection).chain_head(chain).await?;
        if let Some(newest) = self.newest.filter(|newest| newest.place.chain == chain)
            && (head.place.number < newest.place.number || (head.place == newest.place && head.link != newest.link))
        {
            return Err(StoreError::RolledBack { newest: newest.place, found: head.place });
        }
        // Nothing is known of a checkpoint: the first group makes one.
        Ok(Log { head, events_since_checkpoint: CHECKPOINT_EVENTS, checkpoint_at: Instant::now() })
    }
}

/// Splits the changes of secrets from the other jobs, in groups of different secrets that can be made together.
fn together(group: Vec<Job>) -> (Vec<Vec<Asked>>, Vec<Job>) {
    let (mut changes, mut others): (Vec<Vec<Asked>>, _) = (Vec::new(), Vec::new());
    for job in group {
        let Job::Commit(request, answer) = job else {
            others.push(job);
            continue;
        };
        let is_there = |(other, _): &Asked| (&other.tenant, &other.path) == (&request.tenant, &request.path);
        match changes.last_mut().filter(|last| last.len() < AT_ONCE && !last.iter().any(is_there)) {
            Some(last) => last.push((*request, answer)),
            None => changes.push(vec![(*request, answer)]),
        }
    }
    (changes, others)
}

/// The secrets that these jobs may change.
fn touched(group: &[Job]) -> Vec<(&TenantId, &SecretPath)> {
    let mut secrets = Vec::new();
    for job in group {
        match job {
            Job::Commit(request, _) => secrets.push((&request.tenant, &request.path)),
            Job::ChangeKeys(request, _) => {
                if let KeyChange::Rewrap { tenant, keys } = &request.change {
                    secrets.extend(keys.iter().map(|key| (tenant, &key.0.path)));
                }
            }
            _ => (),
        }
    }
    secrets
}

/// The next job; no job where it is time for something else; `None` at the end.
async fn next(wakes: Option<Instant>, jobs: &mut mpsc::Receiver<Job>) -> Option<Option<Job>> {
    match wakes {
        Some(due) => timeout_at(due, jobs.recv()).await.map_or(Some(None), |job| job.map(Some)),
        None => jobs.recv().await.map(Some),
    }
}

impl<B: Writing> Line<B> {
    async fn execute(&mut self, sql: &'static str) -> StoreResult<()> {
        B::execute(&mut self.connection, sql, &[]).await.map(drop)
    }

    /// Begins a transaction that writes. Where another process holds the database, it is waited for.
    async fn begin(&mut self) -> StoreResult<()> {
        let began = Instant::now();
        loop {
            match self.execute(B::BEGIN).await {
                Err(error) if B::is_locked(&error) && began.elapsed() < BUSY_TIMEOUT => sleep(BEGIN_AGAIN).await,
                outcome => return outcome,
            }
        }
    }

    /// Lets the database forget what was destroyed. Where a reader is in the way, it is tried again soon. False where the
    /// disk does not take what it is told to keep.
    async fn forget(&mut self, destroyed: bool) -> bool {
        self.remembers |= destroyed;
        if !self.remembers {
            return true;
        }
        match B::settle_log(&mut self.connection).await {
            Ok(settled) => {
                self.remembers = !settled;
                true
            }
            Err(error) => {
                tracing::warn!(%error, "what was destroyed is still in the write-ahead log");
                !B::is_failed_sync(&error)
            }
        }
    }
}

impl Log {
    fn is_due(&self) -> bool {
        self.events_since_checkpoint >= CHECKPOINT_EVENTS
            || (self.events_since_checkpoint > 0 && self.checkpoint_at.elapsed() >= CHECKPOINT_AFTER)
    }

    /// The rows in their places, each hanging from the one before.
    fn follow<'a>(&self, chain: &dyn Chain, rows: impl ExactSizeIterator<Item = Cow<'a, AuditRow>>) -> Next<'a> {
        let log = Self { ..*self };
        let mut next = Next { log, rows: Vec::with_capacity(rows.len() + 1) };
        for row in rows {
            next.log.events_since_checkpoint += u64::from(row.events);
            next.push(chain, row);
        }
        next
    }
}

/// What a transaction adds to the log.
struct Next<'a> {
    log: Log,
    rows: Vec<(ChainHead, Cow<'a, AuditRow>)>,
}

impl<'a> Next<'a> {
    fn push(&mut self, chain: &dyn Chain, row: Cow<'a, AuditRow>) {
        let link = chain.link(&self.log.head, &row);
        let mut place = self.log.head.place;
        place.number += 1;
        self.log.head = ChainHead { place, link };
        self.rows.push((self.log.head, row));
    }

    fn check(&mut self, chain: &dyn Chain, others: &[ChainHead]) {
        let row = chain.checkpoint(&self.log.head, others);
        self.push(chain, Cow::Owned(row));
        self.log.events_since_checkpoint = 0;
        self.log.checkpoint_at = Instant::now();
    }
}

impl Job {
    /// Whether somebody still waits for it. What was given up is not begun: its caller was told that it failed.
    fn is_awaited(&self) -> bool {
        match self {
            Self::StartLog(_, answer) => !answer.is_closed(),
            Self::Commit(_, answer) => !answer.is_closed(),
            Self::Append(_, answer) | Self::Retain(_, answer) => !answer.is_closed(),
            Self::ChangeKeys(_, answer) => !answer.is_closed(),
            Self::RootFingerprint(_, answer) | Self::VaultKey(_, _, _, answer) => !answer.is_closed(),
            Self::Probe(answer) => !answer.is_closed(),
            Self::Close => false,
        }
    }

    /// Whether it removes keys and values because somebody asked for that. (Versions beyond the number to keep are
    /// removed by ordinary writes, which are not to wait for the log: it holds them until it is written over.)
    fn destroys(&self) -> bool {
        match self {
            Self::Commit(request, _) => matches!(request.change, Change::Purge | Change::Destroy(_)),
            Self::ChangeKeys(request, _) => {
                matches!(request.change, KeyChange::DropUnused(_) | KeyChange::ReplaceRoot { .. })
            }
            _ => false,
        }
    }

    /// The row that it appends, where it does nothing else.
    fn row(&self) -> Option<&AuditRow> {
        match self {
            Self::Append(row, _) => Some(row),
            _ => None,
        }
    }

    /// The answer to a job that appended its row.
    fn into_receipted(self) -> Option<Reply> {
        match self {
            Self::Append(_, answer) => Some(receipted(answer)),
            _ => None,
        }
    }

    /// The secret that it locks.
    fn secret(&self) -> Option<(&str, &str)> {
        match self {
            Self::Commit(request, _) => Some((request.tenant.as_str(), request.path.as_str())),
            _ => None,
        }
    }
}

/// Does one job inside the group's transaction, and adds what it leaves to the log. `None` for a job that failed alone:
/// it is undone, unless it has the transaction for itself, and was answered. An error that is returned ends the group.
async fn perform<B: Writing>(
    job: Job,
    alone: bool,
    head: Option<ChainHead>,
    group: &mut B::Connection,
    rows: &mut Vec<AuditRow>,
) -> StoreResult<Option<Reply>> {
    match job {
        // Where the log cannot be written no one's event can be recorded: these need no savepoint.
        Job::Append(row, answer) => {
            rows.push(*row);
            Ok(Some(receipted(answer)))
        }
        Job::StartLog(_, answer) => Ok(settle(head.ok_or(StoreError::NoLog), answer)),
        job if alone => Ok(attempt::<B>(job, group, rows).await),
        job => {
            B::execute(group, "SAVEPOINT job", &[]).await?;
            let before = rows.len();
            let reply = attempt::<B>(job, group, rows).await;
            if reply.is_none() {
                rows.truncate(before);
                // Where the database gave up the whole transaction, there is no savepoint to go back to: this fails too.
                B::execute(group, "ROLLBACK TO SAVEPOINT job", &[]).await?;
            }
            B::execute(group, "RELEASE SAVEPOINT job", &[]).await?;
            Ok(reply)
        }
    }
}

async fn attempt<B: Writing>(job: Job, connection: &mut B::Connection, rows: &mut Vec<AuditRow>) -> Option<Reply> {
    let mut tables = Tables::<B>(connection);
    match job {
        Job::Commit(request, answer) => {
            let changed = tables.apply(vec![*request]).await;
            let changed = changed.and_then(|mut changed| changed.pop().unwrap_or(Err(StoreError::Uncommitted)));
            settle_change(changed, answer, rows)
        }
        Job::Retain(tombstone, answer) => match tables.retain(&tombstone).await {
            Ok(()) => {
                rows.push(tombstone.event);
                Some(receipted(answer))
            }
            Err(error) => settle(Err(error), answer),
        },
        Job::ChangeKeys(request, answer) => match tables.change_keys(request.change).await {
            Ok(changed) => {
                rows.extend(request.witness.map(|witness| witness(changed)));
                Some(with_receipt(changed, answer))
            }
            Err(error) => settle(Err(error), answer),
        },
        Job::RootFingerprint(fingerprint, answer) => settle(tables.root_fingerprint(&fingerprint).await, answer),
        Job::VaultKey(root, name, wrapped, answer) => settle(tables.vault_key(&root, name, &wrapped).await, answer),
        Job::Probe(answer) => settle(tables.probe().await, answer),
        Job::Append(..) | Job::StartLog(..) | Job::Close => None,
    }
}

/// Adds a change's row to the log and keeps its answer back until both are durable; that it failed is told at once.
fn settle_change(changed: StoreResult<Changed>, answer: Answer<Witnessed>, rows: &mut Vec<AuditRow>) -> Option<Reply> {
    match changed {
        Ok(Changed { outcome, row, .. }) => {
            rows.push(row);
            Some(with_receipt(outcome, answer))
        }
        Err(error) => settle(Err(error), answer),
    }
}

/// Answers with the receipt, once there is one.
fn receipted(answer: Answer<Receipt>) -> Reply {
    Box::new(move |receipt| drop(answer.send(Ok(receipt.clone()))))
}

/// Answers with what was done and its receipt, once there is one.
fn with_receipt<T: Send + 'static>(done: T, answer: Answer<(T, Receipt)>) -> Reply {
    Box::new(move |receipt| drop(answer.send(Ok((done, receipt.clone())))))
}

/// Keeps an answer back until it is durable; a failure is told at once.
fn settle<T: Send + 'static>(result: StoreResult<T>, answer: Answer<T>) -> Option<Reply> {
    match result {
        // Nobody listens where the request was given up; what was done stands and is in the audit.
        Ok(value) => Some(Box::new(|_| drop(answer.send(Ok(value))))),
        Err(error) => {
            answer.send(Err(error)).ok();
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_writer_that_does_not_end_is_left_behind() {
        let (jobs, _queue) = mpsc::channel(1);
        let (_at_work, ended) = oneshot::channel();
        let handle = WriterHandle { jobs, ended: Mutex::new(Some(ended)) };
        let begun = Instant::now();
        handle.close().await;
        assert_eq!(begun.elapsed(), CLOSING);
        // Its queue is full by now.
        handle.close().await;
        assert_eq!(begun.elapsed(), 2 * CLOSING);
    }
}
