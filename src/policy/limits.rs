//! The one engine, the one constructor of stores, and all limits of a guest.

use std::{
    thread,
    time::{Duration, Instant},
};

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, ResourceLimiter, Store,
};

use super::{host::HostState, lane, manifest::MODULES};

/// How often the epoch advances: the grain of every deadline.
pub const TICK: Duration = Duration::from_millis(1);
/// Bytes that one call may make the host copy out of the guest.
const HOSTCALL_BYTES: usize = 256 * 1024;
/// Bytes that `configure` may make the host copy: problems of long settings are long.
const CONFIGURE_HOSTCALL_BYTES: usize = 4 * 1024 * 1024;
/// The most memory that a manifest may grant one guest.
pub const MOST_MEMORY: usize = 512 * 1024 * 1024;
/// Core instances of one guest: its own, those that adapt it to the contract, a language's shared libraries.
const INSTANCES: u32 = 64;
/// Tables of one guest: its own, and that of the adapters.
const TABLES: u32 = 4;
/// Memories of one guest. With one there is nothing to add up: its size is what the guest has.
const MEMORIES: u32 = 1;
const TABLE_ELEMENTS: usize = 100_000;
/// How much of a guest's memory, and of its tables, stays with its place in the pool for the next one, in bytes.
const RESIDENT_BYTES: usize = 4 * 1024 * 1024;
const RESIDENT_TABLE_BYTES: usize = 64 * 1024;
/// The fewest and the most guests that may be alive at once, over all requests. Each reserves 4 GiB of addresses, which
/// cost nothing until they are used, and of which a process has 128 TiB.
const FEWEST_GUESTS: u32 = 256;
const MOST_GUESTS: u32 = 4_096;

/// What one guest may use. The store asks it before each growth.
#[derive(Debug, Clone)]
pub struct GuestLimits {
    /// Wall-clock time of one call of `evaluate`.
    pub deadline: Duration,
    /// Wall-clock time of `configure`.
    pub configure_deadline: Duration,
    /// Linear memory, in bytes.
    pub memory: usize,
    /// The most linear memory that was granted, in bytes.
    pub granted: usize,
    /// Whether a growth was refused since this was last reset.
    pub exhausted: bool,
}

impl GuestLimits {
    /// Limits of which nothing is used yet.
    pub const fn new(deadline: Duration, configure_deadline: Duration, memory: usize) -> Self {
        Self { deadline, configure_deadline, memory, granted: 0, exhausted: false }
    }
}

impl ResourceLimiter for GuestLimits {
    fn memory_growing(&mut self, _current: usize, desired: usize, _most: Option<usize>) -> wasmtime::Result<bool> {
        let granted = desired <= self.memory;
        self.exhausted |= !granted;
        if granted {
            self.granted = self.granted.max(desired);
        }
        Ok(granted)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _most: Option<usize>) -> wasmtime::Result<bool> {
        let granted = desired <= TABLE_ELEMENTS;
        self.exhausted |= !granted;
        Ok(granted)
    }

    fn instances(&self) -> usize {
        INSTANCES as usize
    }

    fn tables(&self) -> usize {
        TABLES as usize
    }

    fn memories(&self) -> usize {
        MEMORIES as usize
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
            let deadline = store.data().limits.configure_deadline;
            store.set_epoch_deadline(ticks(deadline));
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
    thread::Builder::new().name("policy-epoch".into()).spawn(move || {
        let (start, mut ticked) = (Instant::now(), 0);
        while let Some(engine) = weak.upgrade() {
            // By the clock, not by the number of sleeps: those always last longer, and more so on a busy machine.
            let due = start.elapsed().as_millis() / TICK.as_millis();
            (ticked..due).for_each(|_| engine.increment_epoch());
            ticked = due;
            drop(engine);
            thread::sleep(TICK);
        }
    })?;
    Ok(engine)
}

/// Guests that may be alive at once. A session never waits, so there are no more of them than threads that serve requests
/// and slow modules, and each holds one guest of each module at most.
fn pool_size() -> u32 {
    let threads = thread::available_parallelism().map_or(1, usize::from) + lane::threads();
    let guests = u32::try_from(threads.saturating_mul(MODULES)).unwrap_or(u32::MAX);
    guests.clamp(FEWEST_GUESTS, MOST_GUESTS)
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
        let guests = pool_size();
        let mut pool = PoolingAllocationConfig::new();
        // INVARIANT: what a store's limits allow to each guest is there for all of them.
        pool.total_component_instances(guests)
            .total_core_instances(guests * INSTANCES)
            .total_memories(guests * MEMORIES)
            .total_tables(guests * TABLES)
            .max_tables_per_module(TABLES)
            .max_memory_size(MOST_MEMORY)
            .table_elements(TABLE_ELEMENTS)
            .max_unused_warm_slots(guests)
            // What a guest has written is put back by copying, page by page where the kernel tells which pages those are;
            // given back to the kernel instead, every page costs the next guest a fault, four fifths of a single read.
            .linear_memory_keep_resident(RESIDENT_BYTES)
            .table_keep_resident(RESIDENT_TABLE_BYTES)
            .pagemap_scan(Enabled::Auto);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    }
    config
}
