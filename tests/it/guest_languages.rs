//! `portcullis policy new`, `build` and `inspect`: what an author meets first. That all four languages really build, with
//! their own tools, is `.ci/guests`' to insist on; here they do where the tools are at hand.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    guests::{assemble, componentize, core_module},
    hostile_policies::curious,
};

const LANGUAGES: [&str; 4] = ["rust", "js", "python", "c"];

/// A folder to work in.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `portcullis policy …` without any tool on its PATH.
    fn policy(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.arg("policy").args(args).current_dir(self.0.path()).stdin(Stdio::null()).env_clear();
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.policy(args).output().unwrap()
    }

    /// What it says when it fails.
    fn refusal(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()), "{args:?}");
        text(&output.stderr)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// A Python policy whose tool is a script that leaves this file as the component.
    fn with_fake_tool(&self, name: &str, component: &[u8]) -> PathBuf {
        assert!(self.run(&["new", "--lang", "python", name]).status.success());
        self.write("component", component);
        let tool = format!("{name}/.venv/bin/componentize-py");
        let script = "#!/bin/sh\necho \"the tool was called with $*\"\nfor last; do :; done\nexec /bin/cp ../component \"$last\"\n";
        self.write(&tool, script);
        fs::set_permissions(self.path(&tool), fs::Permissions::from_mode(0o755)).unwrap();
        self.path(name)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// All files below a folder, by their paths from where the folder is.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder.parent().unwrap()).unwrap().to_owned());
            }
        }
    }
    found
}

#[test]
fn a_new_policy_is_written_whole_and_once() {
    for language in LANGUAGES {
        let desk = Desk::new();
        let output = desk.run(&["new", "--lang", language, "my-policy_2"]);
        let said = text(&output.stdout);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{language}");
        let written = files(&desk.path("my-policy_2"));
        let announced = said.lines().filter_map(|line| line.strip_prefix("wrote ")).map(PathBuf::from).collect();
        assert_eq!(written, announced, "{language}");
        for file in &written {
            let content = fs::read_to_string(desk.path(".").join(file)).unwrap();
            assert!(!content.contains("{{"), "{language}: {} is not filled in", file.display());
        }
        for file in ["policies.toml", "my-policy_2.settings", "my-policy_2.vectors.toml", "wit/policy.wit", "README.md"]
        {
            assert!(written.contains(&Path::new("my-policy_2").join(file)), "{language}: {file}");
        }
        let contract = include_str!("../../wit/policy.wit");
        assert_eq!(fs::read_to_string(desk.path("my-policy_2/wit/policy.wit")).unwrap(), contract);
        assert!(said.contains("portcullis policy build") && said.contains("portcullis policy test ."), "{said}");

        // What is there stays as it is.
        desk.write("my-policy_2/README.md", "mine");
        assert!(desk.refusal(&["new", "--lang", language, "my-policy_2"]).contains("is there already"));
        assert_eq!(fs::read_to_string(desk.path("my-policy_2/README.md")).unwrap(), "mine");
    }
}

#[test]
fn a_new_policy_has_a_plain_name_and_a_known_language() {
    let desk = Desk::new();
    let long = "a".repeat(65);
    for name in ["", "Policy", "a/b", "..", ".a", "_a", "a b", "ä", "/tmp/a", &long] {
        assert!(desk.refusal(&["new", "--lang", "c", "--", name]).contains("a policy's name"), "{name:?}");
    }
    assert_eq!(desk.run(&["new", "--lang", "cobol", "a"]).status.code(), Some(5));
    assert_eq!(desk.run(&["new", "a"]).status.code(), Some(5));
    assert!(fs::read_dir(desk.path(".")).unwrap().next().is_none(), "nothing was written");
}

#[test]
fn inspecting_tells_components_from_the_rest() {
    let desk = Desk::new();
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/policies/rules.wasm");
    let inspect = |module: &str| {
        let (words, json) = (desk.run(&["inspect", module]), desk.run(&["inspect", module, "--json"]));
        assert_eq!(words.status.code(), json.status.code());
        let json: Value = serde_json::from_slice(&json.stdout).unwrap();
        (words.status.code(), text(&words.stdout), json)
    };

    let (code, words, json) = inspect(rules);
    assert_eq!((code, &json["fits"], &json["kind"]), (Some(0), &true.into(), &"component".into()), "{words}");
    assert_eq!(json["inputs"], serde_json::json!(["principal", "context", "secret"]));
    assert_eq!(json["exports"], serde_json::json!(["configure", "evaluate"]));
    assert_eq!(json["size"], fs::metadata(rules).unwrap().len());
    let digest = json["sha256"].as_str().unwrap();
    for line in
        ["kind     component", "sees     principal, context, secret", &format!("sha256   {digest}"), "made by  "]
    {
        assert!(words.contains(line), "{line}: {words}");
    }

    desk.write("core.wasm", core_module("allow"));
    let (code, words, json) = inspect("core.wasm");
    assert_eq!((code, &json["fits"], &json["kind"]), (Some(1), &false.into(), &"core_module".into()));
    assert!(words.contains("policy componentize"), "{words}");
    assert!(json["exports"].as_array().unwrap().contains(&"evaluate".into()), "{json}");

    desk.write("garbage.wasm", "no module at all \u{1b}[2J");
    let (code, words, json) = inspect("garbage.wasm");
    assert_eq!((code, &json["kind"]), (Some(1), &"not_web_assembly".into()));
    assert!(words.contains("it is not WebAssembly") && !words.contains("exports"), "{words}");

    // Half a component shows what it has, and that it is half.
    let whole = fs::read(rules).unwrap();
    desk.write("half.wasm", &whole[..whole.len() / 2]);
    let (code, words, _) = inspect("half.wasm");
    assert!(code == Some(1) && words.contains("no whole component"), "{words}");

    assert!(desk.refusal(&["inspect", "none.wasm"]).contains("none.wasm"));
}

#[test]
fn inspecting_names_what_is_not_offered() {
    let desk = Desk::new();
    desk.write("foreign.wasm", componentize(curious(), "curious"));
    let output = desk.run(&["inspect", "foreign.wasm"]);
    let words = text(&output.stdout);
    assert!(output.status.code() == Some(1) && words.contains("which is not offered to policies"), "{words}");
}

#[test]
fn a_missing_tool_is_named_with_what_to_install() {
    for (language, advice) in [
        ("rust", ["`cargo` is not installed", "rustup target add wasm32-unknown-unknown"]),
        ("js", ["`npm` is not installed", "apt-get install nodejs npm"]),
        ("python", ["`componentize-py` is not installed", "pip install -r requirements.txt"]),
        ("c", ["clang is not installed", "apt-get install clang-19 lld-19 wasi-libc libclang-rt-19-dev-wasm32"]),
    ] {
        let desk = Desk::new();
        assert!(desk.run(&["new", "--lang", language, "a"]).status.success());
        let empty = desk.path("empty");
        fs::create_dir(&empty).unwrap();
        let output = desk.policy(&["build", "a"]).env("PATH", &empty).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{language}: {said}");
        assert!(advice.iter().all(|part| said.contains(part)), "{language}: {said}");
        assert!(!desk.path("a/a.wasm").exists());
    }
}

#[test]
fn a_build_needs_one_language_and_the_contract() {
    let desk = Desk::new();
    assert!(desk.refusal(&["build", "none"]).contains("none"));
    desk.write("a/app.py", "");
    assert!(desk.refusal(&["build", "a"]).contains("wit/policy.wit"));
    desk.write("b/wit/policy.wit", "");
    assert!(desk.refusal(&["build", "b"]).contains("is looked for"));
    desk.write("b/app.py", "");
    desk.write("b/guest.c", "");
    assert!(desk.refusal(&["build", "b"]).contains("more than one language"));
}

#[test]
fn a_build_puts_the_component_where_the_manifest_says() {
    let desk = Desk::new();
    let folder = desk.with_fake_tool("a", &assemble("allow"));
    let output = desk.run(&["build", "a"]);
    let (said, tool_said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{tool_said}");
    assert!(said.contains("kind     component") && said.contains("portcullis policy test a"), "{said}");
    assert!(tool_said.contains("--world policy componentize --stub-wasi app"), "{tool_said}");
    assert_eq!(fs::read(folder.join("a.wasm")).unwrap(), assemble("allow"));
    let leftovers: Vec<_> =
        files(&folder).into_iter().filter(|file| file.to_str().unwrap().contains("/.policy")).collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");

    // Without a manifest it has the folder's name, and an output can be named.
    fs::remove_file(folder.join("policies.toml")).unwrap();
    fs::rename(&folder, desk.path("b")).unwrap();
    assert!(desk.run(&["build", "b"]).status.success());
    assert!(desk.path("b/b.wasm").exists());
    assert!(desk.run(&["build", "b", "--output", "elsewhere.wasm"]).status.success());
    assert!(desk.path("elsewhere.wasm").exists());
}

#[test]
fn a_build_that_fails_keeps_the_module_that_is_there() {
    let desk = Desk::new();
    let folder = desk.with_fake_tool("a", &componentize(curious(), "curious"));
    fs::write(folder.join("a.wasm"), "the old one").unwrap();
    let said = desk.refusal(&["build", "a"]);
    assert!(said.contains("no server would take it") && said.contains("not offered"), "{said}");

    fs::write(folder.join(".venv/bin/componentize-py"), "#!/bin/sh\necho 'line 3: nonsense' >&2\nexit 7\n").unwrap();
    let said = desk.refusal(&["build", "a"]);
    assert!(said.contains("line 3: nonsense") && said.contains("exit status: 7"), "{said}");

    fs::write(folder.join(".venv/bin/componentize-py"), "#!/bin/sh\n").unwrap();
    assert!(desk.refusal(&["build", "a"]).contains("left no module"));
    assert_eq!(fs::read_to_string(folder.join("a.wasm")).unwrap(), "the old one");
}

#[test]
fn the_c_policy_builds_and_decides() {
    if !["/usr/bin/clang-19", "/usr/include/wasm32-wasi/stdlib.h"].iter().all(|file| Path::new(file).exists()) {
        eprintln!("NOT TESTED: there is no clang with a C library for WebAssembly; .ci/guests insists");
        return;
    }
    let desk = Desk::new();
    assert!(desk.run(&["new", "--lang", "c", "a"]).status.success());
    let mut build = desk.policy(&["build", "a"]);
    let build = build.env("PATH", "/usr/bin:/bin").env("CC", "clang-19").output().unwrap();
    assert_eq!(build.status.code(), Some(0), "{}", text(&build.stderr));
    decides(&desk);

    // What the C library can do and a policy cannot is explained.
    let source = fs::read_to_string(desk.path("a/guest.c")).unwrap();
    let printing = source.replace("#include \"policy.h\"", "#include <stdio.h>\n#include \"policy.h\"");
    let printing = printing.replace("string note;", "string note; puts(\"hello\");");
    desk.write("a/guest.c", printing);
    let mut build = desk.policy(&["build", "a"]);
    let build = build.env("PATH", "/usr/bin:/bin").env("CC", "clang-19").output().unwrap();
    assert!(text(&build.stderr).contains("a policy has no files"), "{}", text(&build.stderr));
    decides(&desk);
}

#[test]
fn the_rust_policy_builds_and_decides() {
    let Some(toolchain) = rust_toolchain() else {
        eprintln!("NOT TESTED: there is no Rust toolchain for WebAssembly; .ci/guests insists");
        return;
    };
    let desk = Desk::new();
    assert!(desk.run(&["new", "--lang", "rust", "a"]).status.success());
    let mut build = desk.policy(&["build", "a"]);
    for name in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"] {
        build.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    let target = concat!(env!("CARGO_MANIFEST_DIR"), "/target/guests");
    let build = build.envs(toolchain).env("CARGO_TARGET_DIR", target).output().unwrap();
    assert_eq!(build.status.code(), Some(0), "{}", text(&build.stderr));
    decides(&desk);
}

/// What to add to the environment so that `policy build` finds a compiler that has, or can build, the library.
fn rust_toolchain() -> Option<Vec<(&'static str, &'static str)>> {
    let target = "wasm32-unknown-unknown";
    let library = Command::new("rustc").args(["--print", "target-libdir", "--target", target]).output().ok()?;
    if Path::new(text(&library.stdout).trim()).is_dir() {
        return Some(Vec::new());
    }
    // Debian's compiler, with its library as source.
    let wanted = ["/usr/bin/cargo", "/usr/bin/wasm-ld-19", "/usr/lib/rustlib/src/rust/library/Cargo.lock"];
    wanted.iter().all(|file| Path::new(file).exists()).then(|| {
        vec![
            ("CARGO", "/usr/bin/cargo"),
            ("RUSTC", "/usr/bin/rustc"),
            ("RUSTC_BOOTSTRAP", "1"),
            ("CARGO_UNSTABLE_BUILD_STD", "std,panic_abort"),
            ("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld-19"),
        ]
    })
}

/// The new policy `a` allows what its settings say, and nothing else.
fn decides(desk: &Desk) {
    let eval = |path: &str| {
        let who = ["eval", "--policies", "a", "--identity", "user:ada", "--group", "developers", "--path", path];
        desk.run(&who).status.code()
    };
    assert_eq!(eval("environments/staging/db"), Some(0));
    assert_eq!(eval("environments/production/db"), Some(3));
}
