//! What a module is, by its bytes alone: whether it fits the contract, and for authors what else can be seen of it.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
};

use serde::Serialize;
use wasmparser::{
    BinaryReaderError, ComponentExternalKind, ComponentTypeRef, CustomSectionReader, KnownCustom, Parser, Payload,
    TypeBounds,
};

use super::guest::{MAX_MODULE_BYTES, Unfit};

const PACKAGE: &str = "portcullis:policy/";
const OFFERED: [&str; 5] = ["types", "principal", "context", "secret", "diagnostics"];

/// What a file's first bytes say that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModuleKind {
    /// A component: what a policy directory takes.
    Component,
    /// A core module: what a compiler leaves, and `portcullis policy componentize` takes.
    CoreModule,
    /// Neither.
    NotWebAssembly,
}

impl ModuleKind {
    fn of(bytes: &[u8]) -> Self {
        match bytes.get(..8) {
            Some(b"\0asm\x01\0\0\0") => Self::CoreModule,
            Some([0, b'a', b's', b'm', ..]) => Self::Component,
            _ => Self::NotWebAssembly,
        }
    }

    /// The word for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Component => "component",
            Self::CoreModule => "core module",
            Self::NotWebAssembly => "not WebAssembly",
        }
    }
}

/// What can be known of a module without compiling or running it.
#[derive(Debug, Serialize)]
pub struct Description {
    /// Component or core module.
    pub kind: ModuleKind,
    /// Why no server would take it; none where it fits the contract.
    pub problems: Vec<String>,
    /// The interfaces of the contract that it can ask: all that it can ever see.
    pub inputs: Vec<String>,
    /// Everything that it imports, as it is written there.
    pub imports: Vec<String>,
    /// Everything that it exports.
    pub exports: Vec<String>,
    /// The languages and tools that it says it was made with.
    pub producers: Vec<String>,
}

/// Describes a module.
#[must_use]
pub fn describe(bytes: &[u8]) -> Description {
    let (inputs, problems) = match inspect(bytes) {
        Ok(inputs) => (inputs, Vec::new()),
        Err(Unfit(problems)) => (Vec::new(), problems),
    };
    let mut parts = Parts::default();
    // What is not whole is among the problems already; the names up to there are shown all the same.
    catch_unwind(AssertUnwindSafe(|| parts.read(bytes).ok())).ok();
    let Parts { imports, exports, producers, .. } = parts;
    let producers = producers.into_iter().collect();
    Description { kind: ModuleKind::of(bytes), problems, inputs, imports, exports, producers }
}

/// The interfaces that a component imports, once it is known to be one of our world. Reads names alone and compiles
/// nothing; that they stand for the contract's types shows when the module is linked.
///
/// # Errors
///
/// [`Unfit`] with everything that does not fit.
pub fn inspect(bytes: &[u8]) -> Result<Vec<String>, Unfit> {
    if bytes.len() > MAX_MODULE_BYTES {
        return Err(Unfit::from(format!("it has {} bytes, {MAX_MODULE_BYTES} are the most", bytes.len())));
    }
    check_kind(bytes)?;
    let mut parts = Parts::default();
    parts.read(bytes).map_err(|error| Unfit::from(format!("it is no whole component: {error}")))?;
    let mut problems = Vec::new();
    let mut imports = Vec::new();
    for name in &parts.imports {
        match offered(name) {
            // The types are a vocabulary: importing them shows nothing.
            Some("types") => (),
            Some(interface) => imports.push(interface.to_owned()),
            None => problems.push(format!("it imports `{}`, which is not offered to policies", name.escape_default())),
        }
    }
    for wanted in ["configure", "evaluate"] {
        if !parts.functions.iter().any(|name| name == wanted) {
            problems
                .push(format!("it does not export `{wanted}`: is it built for the world `policy` of wit/policy.wit?"));
        }
    }
    if problems.is_empty() { Ok(imports) } else { Err(Unfit(problems)) }
}

fn check_kind(bytes: &[u8]) -> Result<(), Unfit> {
    if !bytes.starts_with(b"\0asm") {
        return Err(Unfit::from("it is not WebAssembly".to_owned()));
    }
    if bytes.get(4..8) == Some(&[1, 0, 0, 0]) {
        let what = "it is a core module, not a component: run `portcullis policy componentize` on it";
        return Err(Unfit::from(what.to_owned()));
    }
    Ok(())
}

fn offered(import: &str) -> Option<&str> {
    let (interface, version) = import.strip_prefix(PACKAGE)?.split_once('@')?;
    (OFFERED.contains(&interface) && version.starts_with("0.1.")).then_some(interface)
}

/// What stands in a module, by name.
#[derive(Default)]
struct Parts {
    imports: Vec<String>,
    exports: Vec<String>,
    /// Those of the exports that are a component's functions.
    functions: Vec<String>,
    producers: BTreeSet<String>,
}

impl Parts {
    fn read(&mut self, bytes: &[u8]) -> Result<(), BinaryReaderError> {
        // What modules within a component import and export is between them; what made them says who made the whole.
        let mut depth = 0_u32;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                // What it says of itself may be nonsense.
                Payload::CustomSection(section) => drop(self.read_producers(&section)),
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        let import = import?;
                        // A name for a type that is known already shows nothing.
                        if !matches!(import.ty, ComponentTypeRef::Type(TypeBounds::Eq(_))) {
                            self.imports.push(import.name.name.to_owned());
                        }
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        let export = export?;
                        self.exports.push(export.name.name.to_owned());
                        if export.kind == ComponentExternalKind::Func {
                            self.functions.push(export.name.name.to_owned());
                        }
                    }
                }
                Payload::ImportSection(section) if depth == 0 => {
                    for import in section.into_imports() {
                        let import = import?;
                        self.imports.push(format!("{} {}", import.module, import.name));
                    }
                }
                Payload::ExportSection(section) if depth == 0 => {
                    for export in section {
                        self.exports.push(export?.name.to_owned());
                    }
                }
                _ => (),
            }
        }
        Ok(())
    }

    fn read_producers(&mut self, section: &CustomSectionReader<'_>) -> Result<(), BinaryReaderError> {
        let KnownCustom::Producers(producers) = section.as_known() else { return Ok(()) };
        for field in producers {
            for value in field?.values {
                let value = value?;
                self.producers.insert(format!("{} {}", value.name, value.version).trim_end().to_owned());
            }
        }
        Ok(())
    }
}
