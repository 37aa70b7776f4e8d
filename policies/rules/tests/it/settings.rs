//! What is refused, and in which words.

use rules::{
    chunks::CHUNK_BYTES,
    settings::{Binding, Policy, parse},
};

fn problems(text: &str) -> Vec<String> {
    parse(text).map(|policies| panic!("accepted: {policies:?}")).unwrap_err()
}

/// The problems of one rule, without line and place.
fn of_rule(body: &str) -> Vec<String> {
    let text = format!("[[policy]]\nname = \"p\"\nbindings = [\"*\"]\n[[policy.rules]]\n{body}\n");
    let problems = problems(&text);
    problems.iter().map(|problem| problem.split_once("rule 1: ").expect("names the rule").1.to_owned()).collect()
}

#[test]
fn all_problems_are_reported_with_line_policy_and_rule() {
    let text = r#"colour = "red"
[[policy]]
name = "first"
bindings = ["robot:r2", "user:*", "group:ops"]
owner = "me"

[[policy.rules]]
path_pattern = "a//b"
permissions = ["reed", "write"]
effect = "maybe"

[[policy.rules]]
path_pattern = "**"
permissions = ["read"]
[policy.rules.conditions]
ip_ranges = ["10.0.0.1/8", "vpn"]
require_mfa = "soon"
time_window = { days = ["mo"], from = "8", utc_offset = "CET" }
tags = "production"
country = "NL"

[[policy]]
name = "first"

[[policy]]
bindings = []
rules = []
"#;
    let expected = r#"line 1: unknown field "colour"; known are policy
line 4: policy "first": "robot:r2" binds no one; write "user:…", "sa:…", "group:…" or "*"
line 4: policy "first": "user:*" binds no one; write "user:…", "sa:…", "group:…" or "*"
line 5: policy "first": unknown field "owner"; known are name, description, bindings, rules
line 8: policy "first", rule 1: `path_pattern` "a//b": a pattern has no empty segment
line 9: policy "first", rule 1: unknown permission "reed"; use read, write, delete, list or admin
line 10: policy "first", rule 1: unknown effect "maybe"; use "allow" or "deny"
line 16: policy "first", rule 2: `ip_ranges` "10.0.0.1/8": address bits are set after the prefix; write "10.0.0.0/8"
line 16: policy "first", rule 2: `ip_ranges` "vpn": write a block such as "10.0.0.0/8", "2001:db8::/32", or one address
line 17: policy "first", rule 2: `require_mfa`: write a whole number above zero and one of ms, s, m, h, d, such as "15m"
line 18: policy "first", rule 2: `time_window`: `from` is not a time of day; write it as "08:00"
line 18: policy "first", rule 2: `time_window`: "mo" names no weekday; write "mon" to "sun", or a run such as "mon-fri"
line 18: policy "first", rule 2: `time_window`: `utc_offset` "CET" is none; write "Z" or one such as "+01:00", up to 14 hours
line 19: policy "first", rule 2: `tags` is a list of texts, one at least; mend it or leave it out
line 20: policy "first", rule 2: unknown field "country"; known are ip_ranges, require_mfa, time_window, tags, only_fields, without_fields
line 22: policy "first": the name is taken; give each policy its own
line 22: policy "first": `bindings` is missing; say whom the policy is about, or "*" for everyone
line 22: policy "first": no rules; add a [[policy.rules]] or remove the policy
line 25: policy 3: `name` is missing; give the policy one
line 26: policy 3: `bindings` is a list of texts, one at least; mend it or leave it out
line 27: policy 3: `rules` is a list of tables, each under its own double brackets"#;
    assert_eq!(problems(text).join("\n"), expected);
}

#[test]
fn problems_of_a_rule() {
    let table = [
        ("permissions = [\"read\"]", "`path_pattern` is missing"),
        ("path_pattern = \"**\"", "`permissions` is missing"),
        ("path_pattern = 1\npermissions = [\"read\"]", "`path_pattern` is a text in quotes, not integer"),
        ("path_pattern = \"**\"\npermissions = []", "`permissions` is a list of texts, one at least"),
        ("path_pattern = \"**\"\npermissions = [\"read\", 1]", "`permissions` is a list of texts"),
        ("path_pattern = \"**\"\npermissions = \"read\"", "`permissions` is a list of texts"),
        ("path_pattern = \"**\"\npermissions = [\"READ\"]", "unknown permission \"READ\""),
        ("path_pattern = \"**\"\npermissions = [\"*\"]", "unknown permission \"*\""),
        ("path_pattern = \"**\"\npermissions = [\"read\"]\neffect = true", "`effect` is a text in quotes, not boolean"),
        ("path_pattern = \"**\"\npermissions = [\"read\"]\nname = \"a/b\"", "`name` is 1 to 64"),
        ("path_pattern = \"**\"\npermissions = [\"read\"]\nconditions = []", "`conditions` is a table, not array"),
        ("path_pattern = \"**\"\npermissions = [\"read\"]\npriority = 1", "unknown field \"priority\""),
    ];
    for (body, expected) in table {
        let problems = of_rule(body);
        assert!(problems.len() == 1 && problems[0].starts_with(expected), "{body}: {problems:?}");
    }
}

#[test]
fn problems_of_conditions() {
    let table = [
        ("ip_ranges = []", "`ip_ranges` is a list of texts, one at least"),
        ("ip_ranges = [\"10.0.0.0/40\"]", "`ip_ranges` \"10.0.0.0/40\": write a block"),
        ("require_mfa = 15", "`require_mfa`: write true, false, or the greatest age"),
        ("require_mfa = \"0m\"", "`require_mfa`: write a whole number above zero"),
        ("time_window = {}", "`time_window` limits nothing"),
        ("time_window = { utc_offset = \"Z\" }", "`time_window` limits nothing"),
        ("time_window = { from = 08:00:00 }", "`from` is a text in quotes, not datetime"),
        ("time_window = { from = \"25:00\" }", "`time_window`: `from` is not a time of day"),
        ("time_window = { from = \"08:00\", to = \"08:00\" }", "`time_window`: `from` and `to` are the same"),
        ("time_window = { until = \"08:00\", to = \"09:00\" }", "unknown field \"until\""),
        ("time_window = \"mon-fri\"", "`time_window` is a table, not string"),
        ("tags = []", "`tags` is a list of texts, one at least"),
        ("only_fields = []", "`only_fields` is a list of texts, one at least"),
        ("without_fields = [1]", "`without_fields` is a list of texts, one at least"),
    ];
    for (condition, expected) in table {
        let problems =
            of_rule(&format!("path_pattern = \"**\"\npermissions = [\"read\"]\nconditions = {{ {condition} }}"));
        assert!(problems.len() == 1 && problems[0].starts_with(expected), "{condition}: {problems:?}");
    }
    let deny =
        "path_pattern = \"**\"\npermissions = [\"read\"]\neffect = \"deny\"\nconditions = { only_fields = [\"a\"] }";
    assert!(of_rule(deny)[0].starts_with("`only_fields` limits what an allowed access sees"));
    let many = (0..65).map(|n| format!("\"f{n}\"")).collect::<Vec<_>>().join(",");
    let many = format!("path_pattern = \"**\"\npermissions = [\"read\"]\nconditions = {{ without_fields = [{many}] }}");
    assert_eq!(of_rule(&many), ["`without_fields` has more than 64 fields"]);
}

#[test]
fn syntax_is_reported_with_its_line() {
    let problems = problems("[[policy]]\nname = \"a\nbindings = [\"*\"]\n");
    assert!(!problems.is_empty() && problems[0].starts_with("line 2: "), "{problems:?}");
    assert!(parse("[policy]\nname = \"a\"\n").is_err());
    assert!(parse("policy = 1").is_err());
    assert!(parse("policy = [1]").is_err());
    assert!(parse("").unwrap().is_empty());
}

#[test]
fn bindings_are_typed() {
    let parsed = |binding: &str| {
        let text = format!(
            "[[policy]]\nname = \"p\"\nbindings = [{binding:?}]\nrules = [{{ path_pattern = \"**\", permissions = [\"read\"] }}]"
        );
        parse(&text).ok().and_then(|mut policies: Vec<Policy>| policies.pop()?.bindings.pop())
    };
    assert_eq!(parsed("*"), Some(Binding::Everyone));
    assert_eq!(parsed("user:ada@example.org"), Some(Binding::Subject("user:ada@example.org".to_owned())));
    assert_eq!(parsed("sa:a/b"), Some(Binding::Subject("sa:a/b".to_owned())));
    assert_eq!(parsed("group:Domain Admins"), Some(Binding::Group("Domain Admins".to_owned())));
    let long = format!("user:{}", "a".repeat(201));
    for bad in ["", "ada", "user:", "User:ada", "user:*", "user:a b", "group:", "group:*", "group:a\n", "**", &long] {
        assert_eq!(parsed(bad), None, "{bad:?}");
    }
}

#[test]
fn large_settings_are_read_in_pieces() {
    let rule = |n: usize| format!("[[policy.rules]]\npath_pattern = \"a/b{n}/**\"\npermissions = [\"read\"]\n");
    let rules: String = (1..=2_000).map(rule).collect();
    let policy = |name: &str| format!("[[policy]]\nname = \"{name}\"\nbindings = [\"*\"]\n{rules}");
    let text = format!("{}{}", policy("one"), policy("two"));
    assert!(text.len() > 4 * CHUNK_BYTES);
    let policies = parse(&text).unwrap();
    assert_eq!(policies.iter().map(|policy| policy.rules.len()).collect::<Vec<_>>(), [2_000, 2_000]);
    for policy in &policies {
        let numbered = (1..=2_000).map(|n| (format!("{}/{n}", policy.name), format!("a/b{n}/**")));
        assert!(policy.rules.iter().map(|rule| (rule.name.clone(), rule.pattern.as_str().to_owned())).eq(numbered));
    }
    let broken = text.replace("a/b1999/**", "a/b1999/").replacen("name = \"two\"", "name = \"one\"", 1);
    let mut expected = Vec::new();
    for (at, line) in broken.lines().enumerate() {
        if line.contains("b1999/") {
            let problem = "rule 1999: `path_pattern` \"a/b1999/\": a pattern has no empty segment";
            expected.push(format!("line {}: policy \"one\", {problem}", at + 1));
        } else if line == "[[policy]]" && at > 0 {
            expected.push(format!("line {}: policy \"one\": the name is taken; give each policy its own", at + 1));
        }
    }
    assert_eq!((expected.len(), problems(&broken)), (3, expected));
}

#[test]
fn a_report_has_a_limit() {
    let rule = "[[policy.rules]]\npath_pattern = \"/\"\npermissions = [\"read\"]\n";
    let problems = problems(&format!("[[policy]]\nname = \"p\"\nbindings = [\"*\"]\n{}", rule.repeat(150)));
    assert_eq!((problems.len(), problems[100].as_str()), (101, "and 50 more"));
}
