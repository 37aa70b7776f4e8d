//! What each part of a rule means.

use rules::request::Request;

use crate::support::{Double, MINUTE, MONDAY_NOON, for_everyone, rules, summary, verdict};

const ALLOWED: (&str, &str) = ("allow", "allowed_by_rule");
const DENIED: (&str, &str) = ("deny", "denied_by_rule");
const NO_RULE: (&str, &str) = ("abstain", "no_rule");

const READ_ALL: &str = r#"path_pattern = "**"
permissions = ["read"]"#;

/// An allow rule for `read` on everything, under one condition.
fn allow_if(condition: &str) -> String {
    format!("{READ_ALL}\nconditions = {{ {condition} }}")
}

fn deny_if(condition: &str) -> String {
    format!("{}\neffect = \"deny\"", allow_if(condition))
}

#[test]
fn a_rule_is_about_its_principals_actions_and_paths() {
    let rules = rules(
        r#"
        [[policy]]
        name = "mixed"
        bindings = ["user:ada", "sa:deployer", "group:ops"]
        [[policy.rules]]
        path_pattern = "app/**"
        permissions = ["read", "list"]
        [[policy.rules]]
        path_pattern = "app/*/key"
        permissions = ["write"]
        "#,
    );
    let ada = Double::default();
    let deployer = Double { id: "sa:deployer", groups: vec![], ..Double::default() };
    let operator = Double { id: "user:bob", groups: vec!["x", "ops"], ..Double::default() };
    let stranger = Double { id: "user:eve", groups: vec!["user:ada", "group:ops", "*"], ..Double::default() };
    let namesake = Double { id: "ops", groups: vec![], ..Double::default() };
    let table = [
        (&ada, "read", "app/x", ALLOWED),
        (&ada, "list", "app", ALLOWED),
        (&ada, "delete", "app/x", NO_RULE),
        (&ada, "read", "apple", NO_RULE),
        (&ada, "read", "other/app/x", NO_RULE),
        (&ada, "write", "app/db/key", ALLOWED),
        (&ada, "write", "app/db/x/key", NO_RULE),
        (&ada, "rotate", "app/x", NO_RULE),
        (&ada, "", "app/x", NO_RULE),
        (&deployer, "read", "app/x", ALLOWED),
        (&operator, "read", "app/x", ALLOWED),
        (&stranger, "read", "app/x", NO_RULE),
        (&namesake, "read", "app/x", NO_RULE),
    ];
    for (double, action, path, expected) in table {
        assert_eq!(verdict(&rules, double, action, path), expected, "{} {action} {path}", double.id);
    }
}

#[test]
fn deny_wins_in_any_order() {
    let deny = "path_pattern = \"a/secret\"\npermissions = [\"read\"]\neffect = \"deny\"";
    for bodies in [[READ_ALL, deny], [deny, READ_ALL]] {
        let rules = for_everyone(&bodies);
        let double = Double::default();
        assert_eq!(verdict(&rules, &double, "read", "a/secret"), DENIED);
        assert_eq!(verdict(&rules, &double, "read", "a/other"), ALLOWED);
    }
}

#[test]
fn conditions_of_an_allow_rule() {
    let base = Double::default;
    let (ip, mfa, time) = ("ip_not_allowed", "mfa_required", "time_window_violation");
    let office = r#"time_window = { days = ["mon-fri"], from = "08:00", to = "18:00" }"#;
    let table = [
        (r#"ip_ranges = ["10.0.0.0/8"]"#, base(), ALLOWED),
        (r#"ip_ranges = ["10.0.0.0/8"]"#, Double { ip: Some("::ffff:10.1.2.3"), ..base() }, ALLOWED),
        (r#"ip_ranges = ["192.168.0.0/16", "::1"]"#, base(), ("deny", ip)),
        (r#"ip_ranges = ["0.0.0.0/0", "::/0"]"#, Double { ip: None, ..base() }, ("deny", ip)),
        (r#"ip_ranges = ["0.0.0.0/0", "::/0"]"#, Double { ip: Some("here"), ..base() }, ("deny", ip)),
        ("require_mfa = true", base(), ALLOWED),
        ("require_mfa = true", Double { authenticated_at: None, ..base() }, ALLOWED),
        ("require_mfa = true", Double { methods: vec!["pwd"], ..base() }, ("deny", mfa)),
        ("require_mfa = true", Double { methods: vec!["sms"], ..base() }, ("deny", mfa)),
        ("require_mfa = true", Double { methods: vec![], ..base() }, ("deny", mfa)),
        ("require_mfa = false", Double { methods: vec![], ..base() }, ALLOWED),
        ("require_mfa = \"10m\"", base(), ALLOWED),
        ("require_mfa = \"10m\"", Double { now: MONDAY_NOON + 1, ..base() }, ("deny", mfa)),
        ("require_mfa = \"10m\"", Double { authenticated_at: Some(MONDAY_NOON + MINUTE), ..base() }, ALLOWED),
        ("require_mfa = \"15m\"", Double { authenticated_at: None, ..base() }, ("deny", mfa)),
        ("require_mfa = \"15m\"", Double { methods: vec!["pwd"], ..base() }, ("deny", mfa)),
        (office, base(), ALLOWED),
        (office, Double { now: MONDAY_NOON + 360 * MINUTE, ..base() }, ("deny", time)),
        (r#"tags = ["production", "eu"]"#, base(), ALLOWED),
        (r#"tags = ["production", "us"]"#, base(), NO_RULE),
        (r#"tags = ["production"]"#, Double { tags: vec![], ..base() }, NO_RULE),
        (r#"tags = ["us"], ip_ranges = ["::1"]"#, base(), NO_RULE),
    ];
    for (condition, double, expected) in table {
        let rules = for_everyone(&[&allow_if(condition)]);
        assert_eq!(verdict(&rules, &double, "read", "a/b"), expected, "{condition} {double:?}");
    }
    for method in ["mfa", "otp", "hwk", "fido"] {
        let double = Double { methods: vec!["pwd", method], ..base() };
        assert_eq!(
            verdict(&for_everyone(&[&allow_if("require_mfa = true")]), &double, "read", "a"),
            ALLOWED,
            "{method}"
        );
    }
}

#[test]
fn a_deny_rule_counts_what_is_not_known_as_holding() {
    let base = Double::default;
    let table = [
        (r#"ip_ranges = ["10.0.0.0/8"]"#, base(), DENIED),
        (r#"ip_ranges = ["11.0.0.0/8"]"#, base(), ALLOWED),
        (r#"ip_ranges = ["11.0.0.0/8"]"#, Double { ip: None, ..base() }, DENIED),
        (r#"ip_ranges = ["11.0.0.0/8"]"#, Double { ip: Some("?"), ..base() }, DENIED),
        ("require_mfa = true", base(), DENIED),
        ("require_mfa = true", Double { methods: vec!["pwd"], ..base() }, ALLOWED),
        ("require_mfa = true", Double { methods: vec![], ..base() }, DENIED),
        ("require_mfa = \"5m\"", base(), ALLOWED),
        ("require_mfa = \"5m\"", Double { authenticated_at: None, ..base() }, DENIED),
        (r#"tags = ["production"]"#, base(), DENIED),
        (r#"tags = ["us"]"#, base(), ALLOWED),
        (r#"tags = ["production"], ip_ranges = ["11.0.0.0/8"]"#, base(), ALLOWED),
        (r#"time_window = { days = ["mon"] }"#, base(), DENIED),
        (r#"time_window = { days = ["tue"] }"#, base(), ALLOWED),
    ];
    for (condition, double, expected) in table {
        let rules = for_everyone(&[READ_ALL, &deny_if(condition)]);
        assert_eq!(verdict(&rules, &double, "read", "a/b"), expected, "{condition} {double:?}");
    }
}

#[test]
fn a_refusal_names_the_first_cause_and_its_rules() {
    let nowhere = r#"ip_ranges = ["::1"]"#;
    let never = r#"time_window = { days = ["sat-sun"], from = "08:00", utc_offset = "+01:00" }"#;
    let fresh = "require_mfa = \"5m\"";
    let table = [
        (vec![never, fresh, nowhere], "ip_not_allowed", "p/3", "This path may not be reached from this address"),
        (vec![never, fresh], "mfa_required", "p/2", "This path needs a second factor not older than 5m"),
        (vec![never], "time_window_violation", "p/1", "This path is open sat-sun 08:00-24:00 UTC+01:00 only"),
    ];
    for (conditions, reason, rule, message) in table {
        let double = Double::default();
        let apart: Vec<String> = conditions.iter().map(|condition| allow_if(condition)).collect();
        let apart = for_everyone(&apart.iter().map(String::as_str).collect::<Vec<_>>());
        let request = Request::new(&double);
        let decision = apart.decide(&request, "read", "a");
        assert_eq!(summary(&decision), ("deny", reason));
        assert_eq!((decision.rules.as_slice(), decision.message.as_deref()), ([rule].as_slice(), Some(message)));
        let together = for_everyone(&[&allow_if(&conditions.join(", "))]);
        assert_eq!(verdict(&together, &double, "read", "a"), ("deny", reason));
    }
}

#[test]
fn an_allow_that_holds_makes_up_for_one_that_does_not() {
    let rules = for_everyone(&[&allow_if("ip_ranges = [\"::1\"]"), &allow_if("require_mfa = true")]);
    let double = Double::default();
    let request = Request::new(&double);
    let decision = rules.decide(&request, "read", "a");
    assert_eq!((summary(&decision), decision.rules), (ALLOWED, vec!["p/2"]));
}

#[test]
fn field_limits_join_to_the_stricter() {
    let ab = allow_if(r#"only_fields = ["a", "b"]"#);
    let bc = allow_if(r#"only_fields = ["c", "b"], require_mfa = true"#);
    let without = allow_if(r#"without_fields = ["y", "x"]"#);
    let elsewhere = allow_if(r#"only_fields = ["z"], ip_ranges = ["::1"]"#);
    let table: [(&[&str], &[(&str, &[&str])]); 6] = [
        (&[READ_ALL], &[]),
        (&[&ab], &[("only-fields", &["a", "b"])]),
        (&[READ_ALL, &ab], &[("only-fields", &["a", "b"])]),
        (&[&bc, READ_ALL, &ab, &elsewhere], &[("only-fields", &["b"])]),
        (&[&without, &ab, &without], &[("only-fields", &["a", "b"]), ("without-fields", &["x", "y"])]),
        (&[&ab, &allow_if(r#"only_fields = ["q"]"#)], &[("only-fields", &[])]),
    ];
    for (bodies, expected) in table {
        let rules = for_everyone(bodies);
        let double = Double::default();
        let request = Request::new(&double);
        let decision = rules.decide(&request, "read", "a");
        let obligations: Vec<_> = decision.obligations.iter().map(|(kind, args)| (*kind, args.as_slice())).collect();
        assert_eq!((summary(&decision), obligations.as_slice()), (ALLOWED, expected), "{bodies:?}");
    }
}

#[test]
fn reports_name_the_rules() {
    let named = format!("name = \"by-name\"\n{READ_ALL}");
    let double = Double::default();
    let rules = for_everyone(&[&named]);
    assert_eq!(rules.decide(&Request::new(&double), "read", "a").rules, ["by-name"]);
    let rules = for_everyone(&[READ_ALL, &format!("{READ_ALL}\neffect = \"deny\"")]);
    let request = Request::new(&double);
    let decision = rules.decide(&request, "read", "a");
    assert_eq!(decision.rules, ["p/2"]);
    assert_eq!(decision.message.as_deref(), Some("A rule of policy \"p\" denies this access"));
    let failing = vec!["path_pattern = \"**\"\npermissions = [\"read\"]\nconditions = { ip_ranges = [\"::1\"] }"; 40];
    assert_eq!(for_everyone(&failing).decide(&request, "read", "a").rules.len(), 16, "a report has a limit");
}

#[test]
fn only_what_is_needed_is_asked_and_only_once() {
    let rules = rules(
        r#"
        [[policy]]
        name = "everyone"
        bindings = ["*"]
        [[policy.rules]]
        path_pattern = "a/**"
        permissions = ["read"]
        conditions = { ip_ranges = ["10.0.0.0/8"], require_mfa = "1h", tags = ["production"] }
        [[policy.rules]]
        path_pattern = "b/**"
        permissions = ["read"]
        [[policy.rules]]
        path_pattern = "b/**"
        permissions = ["read"]
        conditions = { time_window = { days = ["mon"] } }
        [[policy]]
        name = "ada"
        bindings = ["user:ada"]
        [[policy.rules]]
        path_pattern = "b/deny"
        permissions = ["read"]
        effect = "deny"
        "#,
    );
    let table: [(&[(&str, &str)], &[&str]); 6] = [
        (&[("read", "c")], &[]),
        (&[("write", "a/x"), ("write", "b/deny")], &[]),
        (&[("read", "b/x")], &["id"]),
        (&[("read", "b/deny"), ("read", "b/x")], &["id"]),
        (&[("read", "a/x")], &["id", "tags", "source-ip", "authentication-methods", "authenticated-at", "now"]),
        (
            &[("read", "a/x"), ("read", "a/y")],
            &["id", "tags", "source-ip", "authentication-methods", "authenticated-at", "now", "tags"],
        ),
    ];
    for (accesses, asked) in table {
        let double = Double::default();
        let request = Request::new(&double);
        for (action, path) in accesses {
            let _decision = rules.decide(&request, action, path);
        }
        assert_eq!(*double.asked.borrow(), asked, "{accesses:?}");
    }
}
