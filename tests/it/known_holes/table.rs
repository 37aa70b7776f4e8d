//! `docs/security.md` and the tests agree: each row of the list of past holes is there, with tests that exist or a reason.

use std::{collections::BTreeSet, fs, path::Path};

use super::leaks::files;

/// The rows of the list: C-1 to C-75, S-1 to S-4.
fn rows() -> Vec<String> {
    let numbered = |letter: &str, most: usize| (1..=most).map(|n| format!("{letter}-{n}")).collect::<Vec<_>>();
    [numbered("C", 75), numbered("S", 4)].concat()
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Every function of the sources and tests, by `file::name`.
fn functions() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeSet::new();
    for folder in ["src", "tests", "policies/rules/src", "policies/rules/tests", "fuzz/fuzz_targets"] {
        for path in files(&root.join(folder)).into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs")) {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let text = fs::read_to_string(&path).unwrap();
            for line in text.lines() {
                let code = line.trim_start().trim_start_matches("pub ").trim_start_matches("async ");
                if let Some(rest) = code.strip_prefix("fn ") {
                    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                    found.insert(format!("{name}::{}", &rest[..end]));
                }
            }
            found.insert(name);
        }
    }
    found
}

/// What stands in backquotes in a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_past_hole_has_a_test_or_a_reason() {
    let document = read("docs/security.md");
    let functions = functions();
    let mut missing = Vec::new();
    let (mut with_tests, mut with_reasons) = (0, 0);
    for row in rows() {
        let begins = format!("| {row} |");
        let lines: Vec<_> = document.lines().filter(|line| line.starts_with(&begins)).collect();
        assert_eq!(lines.len(), 1, "{row} has one line in docs/security.md");
        let cells: Vec<_> = lines[0].trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 3, "{row}: its number, what happened elsewhere, what holds here");
        let tests: Vec<_> = quoted(cells[2]).filter(|text| text.contains(".rs")).collect();
        missing.extend(tests.iter().filter(|test| !functions.contains(**test)).map(|test| format!("{row}: {test}")));
        let reasoned = cells[2].contains("Does not apply:") || cells[2].contains("Left open:");
        assert!(!tests.is_empty() || reasoned, "{row} has neither a test nor a reason");
        with_tests += usize::from(!tests.is_empty());
        with_reasons += usize::from(tests.is_empty());
    }
    assert!(missing.is_empty(), "named in docs/security.md and not there: {missing:#?}");
    println!("{with_tests} rows with tests, {with_reasons} with a reason");
}

#[test]
fn every_threat_is_answered() {
    let document = read("docs/security.md");
    let functions = functions();
    for row in 1..=32 {
        let begins = format!("| {row} |");
        let lines: Vec<_> = document.lines().filter(|line| line.starts_with(&begins)).collect();
        assert_eq!(lines.len(), 1, "threat {row} has one line in docs/security.md");
        let tests: Vec<_> = quoted(lines[0]).filter(|text| text.contains(".rs")).collect();
        assert!(!tests.is_empty() || lines[0].contains("Left open:"), "threat {row} is tested nowhere");
        for test in tests {
            assert!(functions.contains(test), "threat {row}: {test} is not there");
        }
    }
}

/// Whoever takes a test of a row away, or adds one, says so in the document.
#[test]
fn every_test_of_a_row_is_in_the_document() {
    let document = read("docs/security.md");
    let named = |name: &str| {
        let mut parts = name.split('_');
        matches!(parts.next(), Some("c" | "s")) && parts.next().is_some_and(|part| part.parse::<u8>().is_ok())
    };
    for function in functions() {
        if let Some((_, name)) = function.split_once("::")
            && named(name)
        {
            assert!(document.contains(&format!("`{function}`")), "{function} is not in docs/security.md");
        }
    }
}
