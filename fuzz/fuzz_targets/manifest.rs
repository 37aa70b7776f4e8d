//! Manifests: what is taken keeps the documented rules, is taken again the same, and what follows it cannot change it.

#![no_main]

use std::{collections::BTreeSet, time::Duration};

use libfuzzer_sys::fuzz_target;
use portcullis::policy::{is_policy_name, parse_manifest};

fuzz_target!(|text: &str| {
    let entries = match parse_manifest(text) {
        Ok(entries) => entries,
        Err(problems) => return assert!(!problems.is_empty(), "a refusal says why"),
    };
    assert!(text.parse::<toml::Table>().is_ok(), "what is taken is TOML");
    assert!(entries.len() <= 64);
    let names: BTreeSet<_> = entries.iter().map(|entry| &entry.name).collect();
    assert_eq!(names.len(), entries.len(), "names are unique");
    for entry in &entries {
        assert!(is_policy_name(&entry.name));
        let files = [Some(&entry.module), entry.settings.as_ref(), entry.vectors.as_ref()];
        for file in files.into_iter().flatten() {
            assert!(!file.contains('/') && !file.starts_with('.') && !file.is_empty(), "{file:?} is beside");
        }
        assert!(!entry.paths.is_empty() && entry.actions.as_ref().is_none_or(|actions| !actions.is_empty()));
        assert!((Duration::from_millis(1)..=Duration::from_secs(10)).contains(&entry.deadline));
        assert!(entry.configure_deadline <= Duration::from_mins(5) && entry.memory >= 1024 * 1024);
    }
    let again = parse_manifest(&format!("{text}\n# a remark\n")).unwrap();
    assert_eq!(format!("{again:?}"), format!("{entries:?}"));
});
