//! Modules that nobody wrote: generated at random, loaded and asked as any other. Each ends in a refusal, or in answers
//! that are denials or well-formed.

use std::{collections::BTreeMap, fs, panic::catch_unwind, path::Path, thread, time::Instant};

use arbitrary::Unstructured;
use portcullis::{
    domain::{Action, Clock, SecretPath, Timestamp},
    policy::{Inquiry, Opinion, Policies, PolicyError, Scenario, Subject},
    server::SystemClock,
};
use serde_json::json;
use wasm_smith::Config;

use crate::{
    campaign::Dice,
    guests::{assemble, componentize},
};

/// How many are generated; `PORTCULLIS_GENERATED` raises it.
const MODULES: u64 = 5_000;
/// How many are loaded at a time.
const BATCH: usize = 40;
const LIMITS: &str = "deadline = \"5ms\"\nconfigure_deadline = \"10ms\"\nmemory = \"8MiB\"";

/// What random code must offer to become a guest.
const SHAPE: &str = r#"(module
    (memory (export "memory") 2)
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
    (func (export "configure") (param i32 i32) (result i32) unreachable)
    (func (export "evaluate") (param i32 i32 i32 i32) (result i32) unreachable))"#;
/// The same, of which [`completed`] makes a guest that can be configured.
const CORE: &str = r#"(module
    (memory (export "memory") 2)
    (func (export "answer") (param i32 i32 i32 i32) (result i32) unreachable))"#;
/// What a guest may import.
const OFFERED: &str = r#"(module
    (import "portcullis:policy/principal@0.1.0" "id" (func (param i32)))
    (import "portcullis:policy/principal@0.1.0" "groups" (func (param i32)))
    (import "portcullis:policy/principal@0.1.0" "claim" (func (param i32 i32 i32)))
    (import "portcullis:policy/context@0.1.0" "now" (func (result i64)))
    (import "portcullis:policy/context@0.1.0" "source-ip" (func (param i32)))
    (import "portcullis:policy/secret@0.1.0" "exists" (func (result i32)))
    (import "portcullis:policy/secret@0.1.0" "custom" (func (param i32 i32 i32)))
    (import "portcullis:policy/diagnostics@0.1.0" "note" (func (param i32 i32))))"#;

/// The one road by which these modules are taken in.
fn load(directory: &Path) -> Result<Policies, PolicyError> {
    Policies::load(directory.to_owned(), SystemClock.now())
}

#[test]
fn thousands_of_generated_modules_are_refused_or_deny() {
    let modules = std::env::var("PORTCULLIS_GENERATED").map_or(MODULES, |number| number.parse().unwrap());
    let start = Instant::now();
    let seeds: Vec<u64> = (0..modules).collect();
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let tallies: Vec<Tally> = thread::scope(|scope| {
        let share = |worker: usize| seeds.chunks(BATCH).skip(worker).step_by(workers);
        let run = |worker: usize| scope.spawn(move || share(worker).map(named).fold(Tally::default(), Tally::plus));
        let running: Vec<_> = (0..workers).map(run).collect();
        running.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let tally = tallies.into_iter().fold(Tally::default(), Tally::plus);
    println!("{modules} modules in {:?}: {tally:#?}", start.elapsed());
    let refused: u64 = tally.refused.values().sum();
    assert_eq!(tally.accepted + refused, modules);
    assert!(tally.accepted > modules / 5, "{tally:?}: too few are asked at all");
    for outcome in ["deny", "abstain", "trap", "malformed"] {
        assert!(tally.answers.contains_key(outcome), "{tally:?}: no {outcome}");
    }
}

/// What became of some modules.
#[derive(Debug, Default)]
struct Tally {
    accepted: u64,
    /// By the first words of the problem.
    refused: BTreeMap<String, u64>,
    /// Answers by outcome.
    answers: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn plus(mut self, other: Self) -> Self {
        self.accepted += other.accepted;
        other.refused.into_iter().for_each(|(why, count)| *self.refused.entry(why).or_default() += count);
        other.answers.into_iter().for_each(|(outcome, count)| *self.answers.entry(outcome).or_default() += count);
        self
    }
}

/// A panic that escapes names the seeds that it comes from.
fn named(seeds: &[u64]) -> Tally {
    catch_unwind(|| try_batch(seeds)).unwrap_or_else(|_| panic!("one of the modules {seeds:?}"))
}

/// Loads the modules of these seeds, without those that are refused, and asks the others.
fn try_batch(seeds: &[u64]) -> Tally {
    let mut tally = Tally::default();
    let directory = tempfile::tempdir().unwrap();
    for seed in seeds {
        fs::write(directory.path().join(format!("g{seed}.wasm")), generate(*seed)).unwrap();
    }
    let mut names: Vec<String> = seeds.iter().map(|seed| format!("g{seed}")).collect();
    let policies = loop {
        let entry = |name: &String| {
            format!("[[policy]]\nname = {name:?}\nmodule = \"{name}.wasm\"\nmode = \"shadow\"\n{LIMITS}\n")
        };
        fs::write(directory.path().join("policies.toml"), names.iter().map(entry).collect::<String>()).unwrap();
        match load(directory.path()) {
            Ok(policies) => break policies,
            Err(PolicyError::Rejected { problems, .. }) => {
                let before = names.len();
                names.retain(|name| {
                    let its = format!("policy `{name}`: ");
                    let problem = problems.iter().find_map(|problem| problem.strip_prefix(&its));
                    if let Some(problem) = problem {
                        *tally.refused.entry(kind_of(problem)).or_default() += 1;
                    }
                    problem.is_none()
                });
                assert!(names.len() < before, "a refusal names what it refuses: {problems:?}");
            }
            Err(error) => panic!("{error}"),
        }
    };
    tally.accepted += u64::try_from(names.len()).unwrap();
    ask(&policies, &mut tally);
    tally
}

/// A problem without what differs from module to module.
fn kind_of(problem: &str) -> String {
    let (_, words) = problem.split_once(": ").unwrap();
    let words = if words.starts_with("it imports ") { "it imports" } else { words };
    words.chars().filter(|c| !c.is_ascii_digit()).take(64).collect()
}

/// Asks all modules; as shadows they do not end one another's turn, and the answer is always a denial.
fn ask(policies: &Policies, tally: &mut Tally) {
    let set = policies.current();
    let mut session = set.session(inquiry());
    for path in ["a/x", "b", "a/x"] {
        let subject = Subject::at(SecretPath::parse(path).unwrap(), None);
        let told = session.explain(Action::Read, &subject);
        assert_eq!(told.modules.len(), set.modules.len());
        check(told.allowed, &told.modules);
        for opinion in told.modules {
            *tally.answers.entry(opinion.outcome).or_default() += 1;
        }
    }
}

fn check(allowed: bool, opinions: &[Opinion]) {
    assert!(!allowed, "shadows permit nothing");
    for opinion in opinions {
        let answered = matches!(opinion.outcome, "allow" | "deny" | "abstain");
        assert!(answered || portcullis::policy::OUTCOMES.contains(&opinion.outcome), "{opinion:?}");
        assert!(opinion.reason.len() <= 128 && opinion.rules.len() <= 64 && opinion.obligations.len() <= 64);
        assert!(opinion.message.as_ref().is_none_or(|message| message.len() <= 1_024) && opinion.notes.len() <= 64);
        assert!(answered || (opinion.reason.is_empty() && opinion.rules.is_empty()), "{opinion:?}");
        assert!(opinion.micros < 2_000_000, "{opinion:?}: a deadline of 5 ms");
    }
}

fn inquiry() -> Inquiry {
    let scenario = json!({
        "path": "a",
        "principal": {"id": "user:u", "groups": ["developers"], "authentication_methods": ["pwd"], "claims": {"sub": "user:u"}},
        "context": {"source_ip": "127.0.0.1"},
    });
    serde_json::from_value::<Scenario>(scenario).unwrap().pose(Timestamp::default()).unwrap().0
}

/// The module of a seed.
fn generate(seed: u64) -> Vec<u8> {
    let bytes = random_bytes(seed);
    let mut random = Unstructured::new(&bytes);
    match seed % 8 {
        0..=3 => completed(&tame(&mut random, CORE), seed),
        4 | 5 => componentize(tame(&mut random, SHAPE), "policy"),
        6 => wasm_smith::Component::new(wild(), &mut random).unwrap().to_bytes(),
        // A whole guest, with something random appended: a component within it, or a core module.
        _ if seed % 16 == 7 => {
            let inner = wasm_smith::Component::new(wild(), &mut random).unwrap().to_bytes();
            with_section(assemble("deny"), 4, &inner)
        }
        _ => with_section(assemble("deny"), 1, &wasm_smith::Module::new(wild(), &mut random).unwrap().to_bytes()),
    }
}

/// Random code of one shape, made of what guests may use.
fn tame(random: &mut Unstructured, shape: &str) -> Vec<u8> {
    let config = Config {
        exports: Some(wat::parse_str(shape).unwrap()),
        available_imports: Some(wat::parse_str(OFFERED).unwrap()),
        allow_start_export: random.ratio(1, 4).unwrap(),
        bulk_memory_enabled: random.ratio(1, 12).unwrap(),
        reference_types_enabled: random.ratio(1, 12).unwrap(),
        disallow_traps: random.ratio(1, 3).unwrap(),
        // The one of the shape is all that a guest may have.
        max_memories: 0,
        max_data_segments: 8,
        max_funcs: 20,
        max_instructions: 200,
        max_memory32_bytes: 64 * 65_536,
        max_table_elements: 1_000,
        simd_enabled: random.ratio(1, 12).unwrap(),
        gc_enabled: false,
        exceptions_enabled: false,
        threads_enabled: false,
        memory64_enabled: false,
        relaxed_simd_enabled: false,
        ..Config::default()
    };
    wasm_smith::Module::new(config, random).unwrap().to_bytes()
}

/// Everything that the generator knows.
fn wild() -> Config {
    Config {
        custom_page_sizes_enabled: true,
        wide_arithmetic_enabled: true,
        shared_everything_threads_enabled: true,
        generate_custom_sections: true,
        max_memories: 3,
        max_tables: 6,
        max_instructions: 200,
        max_funcs: 20,
        ..Config::default()
    }
}

/// A guest whose answer comes from random code: where it lies, or what it is.
fn completed(core: &[u8], seed: u64) -> Vec<u8> {
    let text = wasmprinter::print_bytes(core).unwrap();
    let answer = text.split_once("(export \"answer\" (func ").unwrap().1.split_once(')').unwrap().0;
    let called = format!("(call {answer} (local.get 0) (local.get 1) (local.get 2) (local.get 3))");
    let answered = match seed % 4 {
        0 => called,
        1 => format!("(i32.and {called} (i32.const 0x1fffc))"),
        _ => format!(
            "(local.set 0 {called}) (memory.fill (i32.const 1024) (i32.const 0) (i32.const 40)) (i32.store8 (i32.const \
             1024) (local.get 0)) (i32.const 1024)"
        ),
    };
    let body = text.trim_end().strip_suffix(')').unwrap();
    let whole = format!(
        "{body}
        (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
        (func (export \"configure\") (param i32 i32) (result i32) (i32.store8 (i32.const 64) (i32.const 0)) (i32.const 64))
        (func (export \"evaluate\") (param i32 i32 i32 i32) (result i32) {answered}))"
    );
    componentize(wat::parse_str(&whole).unwrap(), "policy")
}

/// A component with one more section at its end.
fn with_section(mut component: Vec<u8>, section: u8, content: &[u8]) -> Vec<u8> {
    component.push(section);
    let mut length = content.len();
    while length >= 0x80 {
        component.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    component.push(u8::try_from(length).unwrap());
    component.extend_from_slice(content);
    component
}

fn random_bytes(seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    (0..512).flat_map(|_| dice.word().to_le_bytes()).collect()
}
