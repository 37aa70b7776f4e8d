//! The one engine, the one constructor of stores, and all limits of a guest.

use std::time::Duration;

use wasmtime::{Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, ResourceLimiter, Store};

use super::host::HostState;

/// How often the epoch advances: the grain of every deadline.
pub const TICK: Duration = Duration::from_millis(1);
/// Bytes that one call may make the host copy out of the guest.
const HOSTCALL_BYTES: usize = 256 * 1024;
/// Bytes that `configure` may make the host copy: problems of long settings are long.
const CONFIGURE_HOSTCALL_BYTES: usize = 4 * 1024 * 1024;
/// How long `configure` may take.
const CONFIGURE_DEADLINE: Duration = Duration::from_secs(20);
/// The most memory that a manifest may grant one guest.
pub const MOST_MEMORY: usize = 512 * 1024 * 1024;
const INSTANCES: usize = 64;
const TABLES: usize = 32;
const MEMORIES: usize = 16;
const TABLE_ELEMENTS: usize = 100_000;
/// Guests that may be alive at once, over all requests.
const POOL: u32 = 256;

/// What one guest may use. The store asks it before each growth.
#[derive(Debug, Clone)]
pub struct GuestLimits {
    /// Wall-clock time of one call.
    pub deadline: Duration,
    /// Linear memory, in bytes, all memories together.
    pub memory: usize,
    used: usize,
    /// Whether a growth was refused.
    pub exhausted: bool,
}

impl GuestLimits {
    /// Limits of which nothing is used yet.
    #[must_use]
    pub const fn new(deadline: Duration, memory: usize) -> Self {
        Self { deadline, memory, used: 0, exhausted: false }
    }
}

impl ResourceLimiter for GuestLimits {
    fn memory_growing(&mut self, current: usize, desired: usize, _most: Option<usize>) -> wasmtime::Result<bool> {
        let wanted = self.used.saturating_add(desired.saturating_sub(current));
        if wanted > self.memory {
            self.exhausted = true;
            return Ok(false);
        }
        self.used = wanted;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _most: Option<usize>) -> wasmtime::Result<bool> {
        let granted = desired <= TABLE_ELEMENTS;
        self.exhausted |= !granted;
        Ok(granted)
    }

    fn instances(&self) -> usize {
        INSTANCES
    }

    fn tables(&self) -> usize {
        TABLES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }
}

/// What a store is made for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Answering for the paths of one request.
    Evaluate,
    /// Reading settings, once.
    Configure,
}

/// The only place where a store is made. Every store has every limit.
pub fn new_store(engine: &Engine, state: HostState, purpose: Use) -> Store<HostState> {
    let mut store = Store::new(engine, state);
    store.limiter(|state| &mut state.limits);
    match purpose {
        Use::Evaluate => {
            let deadline = store.data().limits.deadline;
            store.set_epoch_deadline(ticks(deadline));
            store.set_hostcall_fuel(HOSTCALL_BYTES);
        }
        Use::Configure => {
            store.set_epoch_deadline(ticks(CONFIGURE_DEADLINE));
            store.set_hostcall_fuel(CONFIGURE_HOSTCALL_BYTES);
        }
    }
    store
}

/// A deadline in ticks, with one more for the tick that is under way.
pub fn ticks(deadline: Duration) -> u64 {
    u64::try_from(deadline.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// Makes the engine that compiles and runs all guests, and starts the thread that advances its epoch.
///
/// # Errors
///
/// Where this machine can run no guests at all.
pub fn engine() -> wasmtime::Result<Engine> {
    let engine = Engine::new(&config(true)).or_else(|error| {
        tracing::warn!(%error, "no pooled memory for policies (is address space limited?): using the slower allocator");
        Engine::new(&config(false))
    })?;
    let weak = engine.weak();
    std::thread::Builder::new().name("policy-epoch".into()).spawn(move || {
        while let Some(engine) = weak.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(TICK);
        }
    })?;
    Ok(engine)
}

fn config(pooled: bool) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .cranelift_nan_canonicalization(true)
        .cranelift_opt_level(OptLevel::Speed)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_relaxed_simd(false)
        .concurrency_support(false)
        .memory_init_cow(true)
        .wasm_backtrace_max_frames(None);
    if pooled {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(POOL)
            .total_core_instances(POOL * 4)
            .total_memories(POOL)
            .total_tables(POOL * 4)
            .max_memory_size(MOST_MEMORY)
            .table_elements(TABLE_ELEMENTS)
            .max_unused_warm_slots(POOL);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    }
    config
}
