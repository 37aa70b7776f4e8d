//! The settings of the rules module, as a native library: what is taken is TOML, however it is cut into pieces; a remark
//! changes nothing; a refusal says where. An access that no policy is about gets no opinion.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rules::{
    chunks::chunks,
    request::{Inputs, Request},
    rules::{Effect, Rules},
    settings::parse,
};

struct Nobody;

impl Inputs for Nobody {
    fn principal_id(&self) -> String {
        "user:nobody-at-all".to_owned()
    }

    fn principal_groups(&self) -> Vec<String> {
        Vec::new()
    }

    fn authenticated_at(&self) -> Option<u64> {
        None
    }

    fn authentication_methods(&self) -> Vec<String> {
        Vec::new()
    }

    fn now(&self) -> u64 {
        1_776_686_400_000
    }

    fn source_ip(&self) -> Option<String> {
        None
    }

    fn secret_tags(&self) -> Vec<String> {
        Vec::new()
    }
}

fuzz_target!(|input: (u8, &str)| {
    let (size, text) = input;
    let pieces: String = chunks(text, usize::from(size)).iter().map(|chunk| chunk.text).collect();
    assert_eq!(pieces, text, "no byte is lost between pieces");
    let policies = match parse(text) {
        Ok(policies) => policies,
        Err(problems) => return assert!(problems.iter().all(|problem| says_where(problem)), "{problems:?}"),
    };
    assert!(text.parse::<toml::Table>().is_ok(), "what is taken is TOML");
    assert_eq!(format!("{:?}", parse(&format!("{text}\n# a remark\n")).unwrap()), format!("{policies:?}"));
    let about_everyone = policies.iter().any(|policy| format!("{:?}", policy.bindings).contains("Everyone"));
    let rules = Rules::new(policies);
    let decision = rules.decide(&Request::new(Nobody), "read", "team/app/key");
    if !about_everyone && !text.contains("user:nobody-at-all") {
        assert!(matches!(decision.effect, Effect::Abstain), "nobody was bound");
    }
});

/// Each problem names its line; where there are too many, the last says how many more.
fn says_where(problem: &str) -> bool {
    problem.starts_with("line ") || (problem.starts_with("and ") && problem.ends_with(" more"))
}
