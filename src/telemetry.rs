//! What is counted, timed and logged. Labels are from closed sets: never a path, never an identity.

use std::{
    io::IsTerminal,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeLabelSet, EncodeMetric, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// The methods that are counted apart. A client can make up others, each of which would be kept for good.
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Numbers of one server.
#[derive(Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Histogram, fn() -> Histogram>,
    audit_commits: Family<ResultLabels, Histogram, fn() -> Histogram>,
    store_reads: Histogram,
    store_writes: Histogram,
    unreadable_records: Counter,
    rate_limited: Family<CategoryLabels, Counter>,
    failed_authentications: Counter,
    turned_away: Counter,
    lost_checkpoints: Counter,
    checkpoints_fail: AtomicBool,
}

/// A request by its route's template, never by its path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CategoryLabels {
    category: &'static str,
}

/// Numbers of one policy module, as they stand.
pub struct PolicyNumbers {
    /// The module's name in the manifest.
    pub policy: String,
    /// Calls by outcome.
    pub outcomes: Vec<(&'static str, u64)>,
    /// Answers of a shadow module that differed.
    pub disagreements: u64,
    /// Time spent in the guest.
    pub total_time: Duration,
}

impl PolicyNumbers {
    fn labels(&self) -> Vec<(&'static str, &str)> {
        vec![("policy", &self.policy)]
    }
}

/// Numbers of the policies in force, as they stand.
pub struct PoliciesNumbers {
    /// The generation in force.
    pub generation: u64,
    /// Generations in memory.
    pub live_generations: usize,
    /// Reloads since the start, by outcome.
    pub reloads: Vec<(&'static str, u64)>,
    /// Whether the policy directory holds what serves.
    pub up_to_date: bool,
    /// The modules.
    pub modules: Vec<PolicyNumbers>,
}

/// Reads the policies' numbers when the metrics are asked for.
pub type PolicySource = Arc<dyn Fn() -> PoliciesNumbers + Send + Sync>;

fn timer() -> Histogram {
    // 25 µs to 13 s, doubling.
    Histogram::new(exponential_buckets(0.000_025, 2.0, 20))
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::new_with_constructor(timer),
            audit_commits: Family::new_with_constructor(timer),
            store_reads: timer(),
            store_writes: timer(),
            unreadable_records: Counter::default(),
            rate_limited: Family::default(),
            failed_authentications: Counter::default(),
            turned_away: Counter::default(),
            lost_checkpoints: Counter::default(),
            checkpoints_fail: AtomicBool::new(false),
        }
    }
}

impl Metrics {
    /// A request was answered. `route` is the template, such as `/v1/secrets/{path}`.
    pub fn request(&self, method: &str, route: &str, status: u16, took: Duration) {
        let method = METHODS.into_iter().find(|known| *known == method).unwrap_or("other");
        let labels = RequestLabels { method, route: route.to_owned(), status };
        self.requests.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// An append to the audit log ended.
    pub fn audit_commit(&self, took: Duration, done: bool) {
        let result = if done { "ok" } else { "failed" };
        self.audit_commits.get_or_create(&ResultLabels { result }).observe(took.as_secs_f64());
    }

    /// The store answered a look-up.
    pub fn store_read(&self, took: Duration) {
        self.store_reads.observe(took.as_secs_f64());
    }

    /// The store ended a change.
    pub fn store_write(&self, took: Duration) {
        self.store_writes.observe(took.as_secs_f64());
    }

    /// A stored record did not authenticate.
    pub fn unreadable_record(&self) {
        self.unreadable_records.inc();
    }

    /// A request was turned away for its rate.
    pub fn rate_limited(&self, category: &'static str) {
        self.rate_limited.get_or_create(&CategoryLabels { category }).inc();
    }

    /// A request was turned away since there was no place to work on it.
    pub fn turned_away(&self) {
        self.turned_away.inc();
    }

    /// A token was refused.
    pub fn failed_authentication(&self) {
        self.failed_authentications.inc();
    }

    /// A checkpoint of the audit log was written down in its second place, or could not be.
    pub fn checkpoint_kept(&self, kept: bool) {
        self.checkpoints_fail.store(!kept, Ordering::Relaxed);
        if !kept {
            self.lost_checkpoints.inc();
        }
    }

    /// Whether the last checkpoint could not be written down.
    pub fn checkpoints_fail(&self) -> bool {
        self.checkpoints_fail.load(Ordering::Relaxed)
    }

    /// The registry that [`render`] writes from.
    #[must_use]
    pub fn registry(&self, policies: PolicySource) -> Registry {
        let mut registry = Registry::with_prefix("portcullis");
        let requests = "Time to answer, by route template, in seconds";
        registry.register("http_request_duration_seconds", requests, self.requests.clone());
        let audit = "Time until an append to the audit log was durable, in seconds";
        registry.register("audit_commit_duration_seconds", audit, self.audit_commits.clone());
        registry.register("store_read_duration_seconds", "Time of a look-up, in seconds", self.store_reads.clone());
        registry.register("store_write_duration_seconds", "Time of a change, in seconds", self.store_writes.clone());
        registry.register("unreadable_records", "Records that did not authenticate", self.unreadable_records.clone());
        registry.register("turned_away_requests", "Requests turned away for want of a place", self.turned_away.clone());
        registry.register("rate_limited_requests", "Requests turned away for their rate", self.rate_limited.clone());
        registry.register(
            "lost_checkpoints",
            "Checkpoints of the audit log that could not be written down in their second place",
            self.lost_checkpoints.clone(),
        );
        registry.register("failed_authentications", "Tokens refused", self.failed_authentications.clone());
        registry.register_collector(Box::new(PolicyCollector(policies)));
        registry
    }
}

/// The metrics as `OpenMetrics` text.
#[must_use]
pub fn render(registry: &Registry) -> String {
    let mut text = String::new();
    // INVARIANT: writing to a string does not fail.
    encode(&mut text, registry).ok();
    text
}

struct PolicyCollector(PolicySource);

impl std::fmt::Debug for PolicyCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PolicyCollector")
    }
}

impl Collector for PolicyCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let numbers = (self.0)();
        let gauges = [
            ("policy_generation", "The generation of policies in force", numbers.generation),
            (
                "policy_live_generations",
                "Generations of policies in memory: that in force, and those that requests still hold",
                u64::try_from(numbers.live_generations).unwrap_or(u64::MAX),
            ),
            (
                "policy_up_to_date",
                "1 where the policy directory holds what is in force, 0 where the last reload was refused",
                u64::from(numbers.up_to_date),
            ),
        ];
        for (name, help, number) in gauges {
            let gauge = ConstGauge::new(i64::try_from(number).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let reloads = numbers.reloads.iter().map(|(outcome, count)| (vec![("outcome", *outcome)], *count));
        counters(&mut encoder, "policy_reloads", "Reloads of the policies, by outcome", reloads)?;
        let calls = numbers.modules.iter().flat_map(|module| {
            let label = ("policy", module.policy.as_str());
            module.outcomes.iter().map(move |(outcome, count)| (vec![label, ("outcome", *outcome)], *count))
        });
        counters(&mut encoder, "policy_evaluations", "Calls of policy modules, by outcome", calls)?;
        let seconds = numbers.modules.iter().map(|module| (module.labels(), module.total_time.as_secs_f64()));
        counters(&mut encoder, "policy_seconds", "Time spent in policy modules", seconds)?;
        let disagreements = numbers.modules.iter().map(|module| (module.labels(), module.disagreements));
        let help = "Answers of shadow modules that differed from the decision";
        counters(&mut encoder, "policy_shadow_disagreements", help, disagreements)
    }
}

/// Writes one family of counters.
fn counters<'l, N: EncodeCounterValue + Default>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    numbers: impl Iterator<Item = (Vec<(&'static str, &'l str)>, N)>,
) -> Result<(), std::fmt::Error>
where
    ConstCounter<N>: EncodeMetric,
{
    let kind = ConstCounter::new(N::default()).metric_type();
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, number) in numbers {
        ConstCounter::new(number).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Starts the log: `filter` as in `info,portcullis=debug`; as JSON lines for programs, else for people. To the
/// standard error, so that the output of commands stays clean.
pub fn start_log(filter: &str, json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|_| "info".into());
    let colours = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    // A second log in one process (as in tests) is not started; the first goes on.
    if json {
        builder.json().flatten_event(true).try_init().ok();
    } else {
        builder.with_target(false).try_init().ok();
    }
}
