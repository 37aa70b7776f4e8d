//! Serves batches of 100, for `.ci/instructions` to count the instructions of.
//!
//!     .ci/instructions
//!
//! The whole path but the connection: routes, token, policies, store, decryption, audit, answer. What could make one run
//! differ from the next is taken away: the clocks stand still, the random source is seeded, one thread runs all tasks. The
//! store's writer alone has a thread and a clock of its own: a checkpoint of the audit log that time brings may be counted.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench that meets what it does not expect must fail")]

mod support;

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
};

use portcullis::domain::{Clock, Entropy, Timestamp};
use support::Rig;
use tokio::runtime::{Builder, Runtime};
use zeroizing_alloc::ZeroAlloc;

/// As the server has it: wiping what is freed is part of what a batch costs.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<std::alloc::System> = ZeroAlloc(std::alloc::System);

/// Ten batches have a thousand events, and so one checkpoint of the audit log at least.
const BATCHES: usize = 50;
const WARM_UP: usize = 20;

fn main() {
    let batches = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(BATCHES);
    portcullis::telemetry::start_log("info", false);
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (stop, stopped) = mpsc::channel::<()>();
    // While a task like this one runs, the paused clock stands still instead of leaping to the next timer.
    runtime.spawn_blocking(move || stopped.recv());
    let directory = tempfile::tempdir().unwrap();
    let rig = runtime.block_on(Rig::new(directory.path(), Arc::new(StandingClock), Arc::<Seeded>::default()));
    warm_up(&runtime, &rig);
    counted_batches(&runtime, &rig, batches);
    after_the_count(&runtime, &rig);
    drop(stop);
}

fn warm_up(runtime: &Runtime, rig: &Rig) {
    for _ in 0..WARM_UP {
        runtime.block_on(rig.serve(rig.request()));
    }
}

/// Callgrind knows this function and the next by their names: it counts what lies between, on all threads.
#[inline(never)]
fn counted_batches(runtime: &Runtime, rig: &Rig, batches: usize) {
    for _ in 0..batches {
        black_box(runtime.block_on(rig.serve(rig.request())));
    }
}

#[inline(never)]
fn after_the_count(runtime: &Runtime, rig: &Rig) {
    runtime.block_on(rig.store.close());
}

/// Some day in 2026.
struct StandingClock;

impl Clock for StandingClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1_780_000_000_000_000)
    }
}

/// Random numbers that are the same in every run (splitmix64).
#[derive(Default)]
struct Seeded(AtomicU64);

impl Entropy for Seeded {
    fn fill(&self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let state = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.iter_mut().zip((mixed ^ (mixed >> 31)).to_le_bytes()).for_each(|(byte, random)| *byte = random);
        }
    }
}
