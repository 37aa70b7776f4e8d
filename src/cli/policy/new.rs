//! `portcullis policy new`: a folder with a small real policy that builds and is tested at once.

use std::{fs, io::ErrorKind, path::Path};

use clap::Args;

use super::Language;
use crate::{cli::CommandResult, policy::is_policy_name};

#[derive(Args)]
pub struct NewArgs {
    /// What to write it in.
    #[arg(long, value_enum)]
    lang: Language,
    /// Its name, and the folder's.
    name: String,
}

/// A file's path and its text. `NAME` in the path and `{{…}}` in the text are filled in.
type File = (&'static str, &'static str);

/// What every folder has.
const COMMON: [File; 5] = [
    ("wit/policy.wit", include_str!("../../../wit/policy.wit")),
    ("policies.toml", include_str!("templates/policies.toml")),
    ("NAME.settings", include_str!("templates/policy.settings")),
    ("NAME.vectors.toml", include_str!("templates/policy.vectors.toml")),
    ("README.md", include_str!("templates/README.md")),
];

/// What is a language's own.
struct Template {
    files: &'static [File],
    /// What to do in the folder before the first build, besides having the language.
    prepare: &'static str,
    source: &'static str,
    /// What its modules need beyond a policy's usual limits: lines of the manifest.
    limits: &'static str,
}

const RUST: Template = Template {
    files: &[
        ("Cargo.toml", include_str!("templates/rust/Cargo.toml.in")),
        (".cargo/config.toml", include_str!("templates/rust/config.toml")),
        ("src/lib.rs", include_str!("templates/rust/lib.rs")),
        (".gitignore", include_str!("templates/rust/gitignore")),
    ],
    prepare: "rustup target add wasm32-unknown-unknown",
    source: "src/lib.rs",
    limits: "",
};

const JAVASCRIPT: Template = Template {
    files: &[
        ("package.json", include_str!("templates/js/package.json.in")),
        ("policy.js", include_str!("templates/js/policy.js")),
        (".gitignore", include_str!("templates/js/gitignore")),
    ],
    prepare: "npm install",
    source: "policy.js",
    limits: "memory = \"64MiB\"\ndeadline = \"100ms\"\n",
};

const PYTHON: Template = Template {
    files: &[
        ("requirements.txt", include_str!("templates/python/requirements.txt")),
        ("app.py", include_str!("templates/python/app.py")),
        (".gitignore", include_str!("templates/python/gitignore")),
    ],
    prepare: "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt",
    source: "app.py",
    limits: "memory = \"64MiB\"\ndeadline = \"100ms\"\n",
};

const C: Template = Template {
    files: &[("guest.c", include_str!("templates/c/guest.c")), (".gitignore", include_str!("templates/c/gitignore"))],
    prepare: "apt-get install clang-19 lld-19 wasi-libc libclang-rt-19-dev-wasm32   # or what your system calls them",
    source: "guest.c",
    limits: "",
};

/// Runs the command.
pub fn run(args: &NewArgs) -> CommandResult {
    let name = args.name.as_str();
    if !is_policy_name(name) {
        let rule = "a policy's name is made of lower-case letters, digits, `-` and `_`, begins with a letter or digit, \
                    and has 64 at most";
        return Err(rule.into());
    }
    let template = match args.lang {
        Language::Rust => RUST,
        Language::Js => JAVASCRIPT,
        Language::Python => PYTHON,
        Language::C => C,
    };
    fs::create_dir(name).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => format!("{name} is there already; nothing was written"),
        _ => format!("{name}: {error}"),
    })?;
    for (path, text) in COMMON.iter().chain(template.files) {
        write(&Path::new(name).join(path.replace("NAME", name)), &template.fill(text, name))?;
        println!("wrote {name}/{}", path.replace("NAME", name));
    }
    println!("\nNext:\n{}", template.fill(include_str!("templates/next.txt"), name));
    Ok(0)
}

impl Template {
    fn fill(&self, text: &str, name: &str) -> String {
        text.replace("{{name}}", name)
            .replace("{{prepare}}", self.prepare)
            .replace("{{source}}", self.source)
            .replace("{{limits}}\n", self.limits)
    }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, text));
    made.map_err(|error| format!("{}: {error}", path.display()))
}
