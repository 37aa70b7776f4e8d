//! What a decision costs: the shipped `rules` module with 10, 1,000 and 10,000 rules.
//!
//!     cargo bench --bench policy

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench that meets what it does not expect must fail")]

#[path = "support/policies.rs"]
mod policies;

use std::{hint::black_box, path::Path, sync::Arc};

use criterion::{Criterion, criterion_group, criterion_main};
use portcullis::{
    domain::{Action, SecretPath, Timestamp},
    policy::{Inquiry, PolicySet, Scenario, Subject},
};
use serde_json::json;

/// Rules of which one in ten is about the group that asks, each with a place of its own.
fn settings(rules: usize) -> String {
    let rule = |index: usize| {
        let group = index % 10;
        format!(
            "[[policy]]\nname = \"team-{index}\"\nbindings = [\"group:g{group}\"]\n[[policy.rules]]\npath_pattern = \
             \"teams/team-{index}/**\"\npermissions = [\"read\", \"list\"]\n"
        )
    };
    (0..rules).map(rule).collect()
}

fn policies(directory: &Path, rules: usize) -> Arc<PolicySet> {
    policies::load(directory, &settings(rules)).current()
}

fn inquiry() -> Inquiry {
    let scenario = json!({
        "path": "teams",
        "principal": {"id": "sa:checkout", "groups": ["g3", "g7"]},
        "context": {"source_ip": "10.0.0.1"},
    });
    serde_json::from_value::<Scenario>(scenario).unwrap().pose(Timestamp::default()).unwrap().0
}

/// A hundred paths, half of them permitted.
fn questions(rules: usize) -> Vec<(Action, Subject)> {
    let question = |index: usize| {
        let team = (index * 10 + if index.is_multiple_of(2) { 3 } else { 4 }) % rules;
        let path = SecretPath::parse(&format!("teams/team-{team}/service-{index}/key")).unwrap();
        (Action::Read, Subject::at(path, None))
    };
    (0..100).map(question).collect()
}

fn decisions(criterion: &mut Criterion) {
    let scratch = tempfile::tempdir().unwrap();
    let inquiry = inquiry();
    for rules in [10, 1_000, 10_000] {
        let set = policies(&scratch.path().join(rules.to_string()), rules);
        let questions = questions(rules);
        for timing in set.measure(&inquiry, &questions, 2_000).unwrap().0 {
            let (step, p50, p99, best) = (&timing.step, timing.p50_us, timing.p99_us, timing.best_us);
            println!("{rules:>6} rules  {step:<18} p50 {p50:>8.1} µs   p99 {p99:>8.1} µs   best {best:>8.1} µs");
        }
        let mut group = criterion.benchmark_group(format!("{rules} rules"));
        for size in [1, 100] {
            group.bench_function(format!("batch of {size}"), |bencher| {
                bencher.iter(|| {
                    let mut session = set.session(inquiry.clone());
                    for (action, subject) in questions.iter().take(size) {
                        black_box(session.decide(*action, subject));
                    }
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, decisions);
criterion_main!(benches);
