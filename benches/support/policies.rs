//! A policy directory with the shipped `rules` module.

use std::{fs, path::Path, sync::Arc};

use portcullis::{domain::Timestamp, policy::Policies};

/// Makes the directory, and loads it.
pub fn load(directory: &Path, settings: &str) -> Arc<Policies> {
    fs::create_dir_all(directory).unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/rules.wasm");
    fs::copy(shipped, directory.join("rules.wasm")).unwrap();
    fs::write(directory.join("rules.toml"), settings).unwrap();
    // Under an instrument everything is slow, and a deadline must not change what is counted.
    let manifest = "[[policy]]\nname = \"rules\"\nmodule = \"rules.wasm\"\nsettings = \"rules.toml\"\ndeadline = \
                    \"10s\"\nconfigure_deadline = \"300s\"\n";
    fs::write(directory.join("policies.toml"), manifest).unwrap();
    Arc::new(Policies::load(directory.to_owned(), Timestamp::default()).unwrap())
}
