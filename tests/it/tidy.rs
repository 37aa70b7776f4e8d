//! What must hold of the sources themselves: the direction of imports, who may name what, the floors of dependencies.

use std::{collections::BTreeMap, fs, path::Path};

/// Which modules of the crate each module may import. Whoever adds an arrow adds it here, and says why.
const ARROWS: [(&str, &[&str]); 13] = [
    ("domain", &[]),
    ("crypto", &["domain"]),
    ("store", &["domain"]),
    ("policy", &["domain"]),
    ("audit", &["domain"]),
    ("auth", &["domain"]),
    ("telemetry", &[]),
    ("vault", &["domain", "crypto", "store", "policy", "audit", "auth", "telemetry"]),
    ("http", &["domain", "store", "policy", "audit", "auth", "telemetry", "vault"]),
    ("config", &["domain", "crypto", "auth", "http"]),
    ("server", &["domain", "audit", "crypto", "store", "policy", "auth", "telemetry", "vault", "http", "config"]),
    (
        "cli",
        &["domain", "audit", "crypto", "store", "policy", "auth", "telemetry", "vault", "http", "config", "server"],
    ),
    ("main", &["cli"]),
];

/// Libraries that one module alone names.
const OWNED: [(&str, &str); 15] = [
    ("aes_gcm", "crypto"),
    ("hkdf", "crypto"),
    ("argon2", "crypto"),
    ("vsss_rs", "crypto"),
    ("rand_core", "crypto"),
    ("sqlx", "store"),
    ("rusqlite", "store"),
    ("thread_priority", "store"),
    ("wasmtime", "policy"),
    ("wasmtime_wizer", "policy"),
    ("jsonwebtoken", "auth"),
    ("axum", "http"),
    ("clap", "cli"),
    ("wit_bindgen_c", "cli"),
    ("wit_bindgen_core", "cli"),
];

/// Texts that only these files may hold, whatever the reason: the invariants of the design as a search.
const RESERVED: [(&str, &[&str]); 8] = [
    ("unsafe {", &["src/policy/cache.rs"]),
    ("Principal::verified(", &["src/auth/mod.rs"]),
    ("keyring.open(", &["src/vault/keys.rs"]),
    (".vault.read(", &["src/http/secrets.rs"]),
    (".read_batch(", &["src/http/batch.rs", "src/vault/reading.rs"]),
    ("Store::new(", &["src/policy/limits.rs"]),
    ("SystemTime::now", &["src/server.rs"]),
    ("getrandom::fill", &["src/server.rs", "src/crypto/keyring.rs"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The sources by path below the root, without their tests.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.insert(name(&path), fs::read_to_string(&path).unwrap());
            }
        }
    }
    assert!(found.len() > 30, "the sources were found");
    found
}

fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()
}

fn module(file: &str) -> &str {
    let below = file.strip_prefix("src/").unwrap();
    below.split('/').next().unwrap().trim_end_matches(".rs")
}

/// The code before the tests of the file; nothing of a file of tests.
fn production<'t>(file: &str, text: &'t str) -> &'t str {
    if file.contains("tests") { "" } else { text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text) }
}

/// The names that follow `prefix` in the text, each up to its first character that is none of a name.
fn named_after<'t>(text: &'t str, prefix: &'t str) -> impl Iterator<Item = &'t str> {
    text.match_indices(prefix).map(move |(at, _)| {
        let rest = &text[at + prefix.len()..];
        &rest[..rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())]
    })
}

/// `use crate::{a::…, b::…}` names more than one module behind one prefix.
fn crate_imports(text: &str) -> Vec<String> {
    let mut names: Vec<String> = named_after(text, "crate::").filter(|n| !n.is_empty()).map(str::to_owned).collect();
    for (at, _) in text.match_indices("use crate::{") {
        let block = &text[at + "use crate::{".len()..];
        let block = &block[..block.find("\n};").unwrap_or_else(|| block.find("};").unwrap())];
        let mut depth = 0;
        let mut word = String::new();
        for c in block.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => names.push(std::mem::take(&mut word)),
                _ if depth == 0 => word.push(c),
                _ => (),
            }
        }
        names.push(word);
    }
    let first = |name: &String| name.trim().split("::").next().unwrap_or_default().to_owned();
    names.iter().map(first).filter(|name| !name.is_empty()).collect()
}

#[test]
fn imports_point_one_way() {
    let arrows: BTreeMap<_, _> = ARROWS.into_iter().collect();
    for (file, text) in sources().iter().filter(|(file, _)| *file != "src/lib.rs") {
        let here = module(file);
        let allowed = arrows.get(here).unwrap_or_else(|| panic!("{file}: a module that ARROWS does not know"));
        for import in crate_imports(production(file, text)) {
            let known = arrows.contains_key(import.as_str());
            let fine = import == here || allowed.contains(&import.as_str()) || !known;
            assert!(fine, "{file} imports {import}: {here} may import {allowed:?}");
        }
    }
}

#[test]
fn libraries_are_named_by_their_owners_alone() {
    for (file, text) in &sources() {
        for (library, owner) in OWNED {
            let path = format!("{library}::");
            let named = production(file, text).lines().any(|line| {
                let code = line.trim_start();
                !code.starts_with("//")
                    && code.split(|c: char| c.is_whitespace() || "(<&{,".contains(c)).any(|w| w.starts_with(&path))
            });
            // The error of the store carries the library's own, and the program parses the command line.
            let fine = module(file) == owner || (library == "clap" && module(file) == "main");
            assert!(!named || fine, "{file} names {library}, which belongs to {owner}");
        }
    }
}

#[test]
fn reserved_texts_stay_where_they_belong() {
    let sources = sources();
    for (text, homes) in RESERVED {
        let holders: Vec<_> =
            sources.iter().filter(|(file, code)| production(file, code).contains(text)).map(|(file, _)| file).collect();
        assert!(!holders.is_empty(), "nobody says {text:?}: the rule guards nothing");
        for holder in holders {
            assert!(homes.contains(&holder.as_str()), "{holder} says {text:?}, which belongs to {homes:?}");
        }
    }
}

#[test]
fn secret_paths_are_read_by_one_extractor() {
    for (file, text) in &sources() {
        for (at, _) in production(file, text).match_indices("Path<String>") {
            let line = text[..at].lines().count();
            // A policy's name is no secret's path.
            assert_eq!(file, "src/http/policies.rs", "{file}:{line}: axum matches before it percent-decodes");
        }
    }
}

/// The oldest version that has what we rely on, from the design's list of past holes.
const FLOORS: [(&str, [u64; 3]); 9] = [
    ("wasmtime", [48, 0, 8]),
    ("jsonwebtoken", [10, 3, 0]),
    ("sqlx", [0, 8, 1]),
    ("aes-gcm", [0, 10, 3]),
    ("rustls", [0, 23, 18]),
    ("rustls-webpki", [0, 103, 13]),
    ("hyper", [1, 0, 0]),
    // Bundles SQLite 3.51.3, the first without the WAL-reset corruption; the server asserts it again when it starts.
    ("libsqlite3-sys", [0, 37, 0]),
    ("zeroize", [1, 3, 0]),
];

/// Crates that must not be in the tree at all.
const BANNED: [&str; 6] = ["openssl", "openssl-sys", "native-tls", "rsa", "wasmtime-wasi", "h2"];

#[test]
fn dependencies_are_at_or_above_their_floors() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let lock: toml::Table = lock.parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    let versions = |wanted: &str| -> Vec<[u64; 3]> {
        let of_name = packages.iter().filter(|package| package["name"].as_str() == Some(wanted));
        of_name.map(|package| numbers(package["version"].as_str().unwrap())).collect()
    };
    for (name, floor) in FLOORS {
        let found = versions(name);
        assert!(!found.is_empty(), "{name} is not in the tree: take it off the list");
        assert!(found.iter().all(|version| *version >= floor), "{name}: {found:?}, {floor:?} or newer is wanted");
    }
    for name in BANNED {
        assert!(versions(name).is_empty(), "{name} must not be in the tree");
    }
}

fn numbers(version: &str) -> [u64; 3] {
    let plain = version.split(['-', '+']).next().unwrap();
    let parts: Vec<u64> = plain.split('.').map(|part| part.parse().unwrap()).collect();
    [parts[0], parts[1], parts[2]]
}
