//! The settings that are shipped say what their comments say.

use crate::support::{Double, rules, verdict};

const SAMPLE: &str = include_str!("../../../rules.toml");

const CREDENTIALS: [&str; 5] = [
    "integrations/salesforce/oauth",
    "integrations/scaisend/api-key",
    "integrations/stripe/secret-key",
    "infra/db/primary/credentials",
    "infra/redis/primary/credentials",
];

fn permitted(double: &Double, action: &str) -> [bool; 5] {
    let rules = rules(SAMPLE);
    CREDENTIALS.map(|path| verdict(&rules, double, action, path).0 == "allow")
}

#[test]
fn the_sample_identities_can_do_what_the_comments_say() {
    let [checkout, storefront] =
        ["sa:checkout", "sa:storefront"].map(|id| Double { id, groups: vec![], ..Double::default() });
    let alice = Double { id: "user:alice", groups: vec!["operators"], ..Double::default() };
    let stranger = Double { id: "user:eve", groups: vec![], ..Double::default() };
    for action in ["read", "list"] {
        assert_eq!(permitted(&checkout, action), [true, true, false, false, false]);
        assert_eq!(permitted(&storefront, action), [true; 5]);
    }
    for action in ["read", "write", "delete", "list"] {
        assert_eq!(permitted(&alice, action), [true; 5]);
        assert_eq!(permitted(&stranger, action), [false; 5]);
    }
    assert_eq!(permitted(&storefront, "write"), [false; 5]);
    assert_eq!(permitted(&alice, "admin"), [false; 5]);
    let stripe = verdict(&rules(SAMPLE), &checkout, "read", CREDENTIALS[2]);
    assert_eq!(stripe, ("abstain", "no_rule"), "so the vault's own words are the answer");
}

#[test]
fn the_conditions_of_the_sample_hold() {
    let developer = Double::default();
    let said = |double: &Double, path| verdict(&rules(SAMPLE), double, "read", path);
    let (db, root) = ("environments/production/db", "environments/production/root/ca");
    assert_eq!(said(&developer, db), ("allow", "allowed_by_rule"));
    assert_eq!(said(&developer, root), ("deny", "denied_by_rule"));
    assert_eq!(said(&Double { methods: vec!["pwd"], ..developer.clone() }, db), ("deny", "mfa_required"));
    assert_eq!(said(&Double { tags: vec![], ..developer }, db), ("abstain", "no_rule"));
}
