//! Compiled code, kept on disk for the next start. Only code that this vault wrote itself is ever loaded.

use std::{
    hash::{Hash, Hasher},
    path::Path,
};

use sha2::{Digest, Sha256};
use wasmtime::{Engine, component::Component};

use super::{
    compiler::{Compiler, Order},
    guest::Unfit,
    sealed::SealedDirectory,
};
use crate::domain::{Key, hex};

/// Compiled modules that are kept beside those in force.
const SPARE: usize = 64;

/// Goes up when the way from a module to its code changes.
const FORMAT: u32 = 1;

/// Compiles modules, or takes what was compiled before.
pub struct Loader {
    /// What compiled code runs on.
    pub engine: Engine,
    /// Where modules are compiled.
    pub compiler: Compiler,
    cache: Option<SealedDirectory>,
}

impl Loader {
    /// A loader that remembers what it compiled where it has a directory and a key for that.
    #[must_use]
    pub fn new(engine: Engine, compiler: Compiler, memory: Option<(&Path, &Key)>) -> Self {
        let open = |(directory, key): (&Path, &Key)| {
            SealedDirectory::open(directory.join("compiled"), "compiled policies", key.clone())
                .inspect_err(
                    |error| tracing::warn!(%error, "compiled policies cannot be kept: each start compiles anew"),
                )
                .ok()
        };
        Self { engine, compiler, cache: memory.and_then(open) }
    }

    /// The component that a module is once it is configured.
    pub(super) fn component(&self, order: &Order<'_>) -> Result<Component, Unfit> {
        let name = self.name(order);
        if let Some(component) = self.remembered(&name) {
            return Ok(component);
        }
        let code = self.compiler.compile(&self.engine, order)?;
        let component =
            load(&self.engine, &code).map_err(|error| Unfit::from(format!("its code is odd: {error:#}")))?;
        if let Some(cache) = &self.cache {
            if let Err(error) = cache.write(&name, &code) {
                tracing::warn!(%error, "a compiled policy cannot be kept");
            }
            cache.sweep(|kept| kept == name, SPARE);
        }
        Ok(component)
    }

    fn remembered(&self, name: &str) -> Option<Component> {
        let code = self.cache.as_ref()?.read(name).unwrap_or_else(|error| {
            tracing::error!(%error, "ALARM: a compiled policy on disk is refused; it is compiled anew");
            None
        });
        // What another build of the engine wrote does not load; it is not found either, by its name.
        load(&self.engine, &code?).ok()
    }

    /// What compiled code depends on: module, settings, the memory for reading them, engine and program.
    fn name(&self, order: &Order<'_>) -> String {
        let mut parts = PartsDigest(Sha256::new());
        self.engine.precompile_compatibility_hash().hash(&mut parts);
        parts.write(env!("CARGO_PKG_VERSION").as_bytes());
        parts.write(&FORMAT.to_be_bytes());
        parts.write(&Sha256::digest(order.module));
        parts.write(&Sha256::digest(order.settings));
        parts.write(&order.limits.memory.to_be_bytes());
        hex(&parts.0.finalize())
    }
}

/// Makes code runnable. Any bytes but a compiler's own would be a way in.
#[expect(unsafe_code, reason = "the only way to load compiled code")]
fn load(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the bytes come from this program's own compiler, over a pipe or out of a file that was authenticated with
    // a key which this vault alone has.
    unsafe { Component::deserialize(engine, code) }
}

/// A hasher without collisions: what is hashed names a file of machine code.
struct PartsDigest(Sha256);

impl Hasher for PartsDigest {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}
