//! Settings are read once: `configure` runs at load, and the memory that it leaves behind becomes the module.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use wasmtime::{
    Engine, Store, Trap,
    component::{Instance, Lift, Linker, WasmList},
};
use wasmtime_wizer::{ComponentInstanceState, Wizer};

use super::{
    guest::{Unfit, compile},
    host::HostState,
    limits::{GuestLimits, Use, new_store},
};

/// Most problems with settings that are told, and the most bytes of each.
const PROBLEMS: usize = 100;
const PROBLEM_BYTES: usize = 1_024;

const PAGE_BYTES: usize = 64 * 1024;
/// How often a snapshot reads each memory: for what is in use, then for its bytes.
const READINGS: usize = 2;

/// Runs `configure(settings)` and answers the component as it stands then.
///
/// # Errors
///
/// Every problem that the module finds in its settings; or that it trapped, ran too long, or called an import.
pub fn configure(engine: &Engine, bytes: &[u8], settings: &str, limits: GuestLimits) -> Result<Vec<u8>, Unfit> {
    let refuse = |what: &str, error: &wasmtime::Error| Unfit::from(format!("{what}: {error:#}"));
    let deadline = limits.configure_deadline;
    let wizer = Wizer::new();
    let (context, instrumented) =
        wizer.instrument_component(bytes).map_err(|error| refuse("it cannot be snapshotted", &error))?;
    let component = compile(engine, &instrumented)?;
    let mut linker = Linker::new(engine);
    linker
        .define_unknown_imports_as_traps(&component)
        .map_err(|error| refuse("its imports cannot be closed for `configure`", &error))?;
    let mut store = new_store(engine, HostState::unasked(limits), Use::Configure);
    let instance =
        linker.instantiate(&mut store, &component).map_err(|error| refuse("it cannot be instantiated", &error))?;
    let configure = instance
        .get_typed_func::<(&str,), (Result<(), Vec<String>>,)>(&mut store, "configure")
        .map_err(|error| refuse("its `configure` is not the contract's", &error))?;
    let (verdict,) = configure.call(&mut store, (settings,)).map_err(|error| match error.downcast_ref() {
        Some(Trap::Interrupt) => Unfit::from(format!("`configure` did not end within {deadline:?}")),
        _ => refuse("`configure` failed (it may call no import)", &error),
    })?;
    verdict.map_err(in_words)?;
    let mut reader = Reader::new(store, instance);
    let snapshot = ready(wizer.snapshot_component(&context, &mut reader))
        .ok_or_else(|| Unfit::from("it cannot be snapshotted".to_owned()))?
        .map_err(|error| refuse("it cannot be snapshotted", &error))?;
    match reader.failed {
        Some(error) => Err(refuse("its memory cannot be read (its type must allow two pages more)", &error)),
        None => Ok(snapshot),
    }
}

/// The module's problems with its settings, within limits and as plain lines: they go to logs and terminals.
fn in_words(problems: Vec<String>) -> Unfit {
    let more = problems.len().saturating_sub(PROBLEMS);
    let line = |problem: String| {
        let end = problem.floor_char_boundary(PROBLEM_BYTES);
        let text = problem.get(..end).unwrap_or_default().replace(char::is_control, " ");
        format!("settings: {text}")
    };
    let mut lines: Vec<_> = problems.into_iter().take(PROBLEMS).map(line).collect();
    if lines.is_empty() {
        lines.push("settings: refused without a reason".to_owned());
    }
    if more > 0 {
        lines.push(format!("settings: and {more} more problems"));
    }
    Unfit(lines)
}

/// Reads the instance's memories and globals through the accessors that the instrumentation added.
struct Reader {
    store: Store<HostState>,
    instance: Instance,
    failed: Option<wasmtime::Error>,
}

impl Reader {
    /// From here on no code of the guest's own runs, so that the limits on it only stand in the way: the accessors hand
    /// over the whole memory, and grow it by a page each time to have room for doing so.
    fn new(mut store: Store<HostState>, instance: Instance) -> Self {
        store.set_hostcall_fuel(usize::MAX);
        store.set_epoch_deadline(u64::from(u32::MAX));
        let limits = &mut store.data_mut().limits;
        limits.memory = limits.memory.saturating_add(READINGS * PAGE_BYTES);
        Self { store, instance, failed: None }
    }

    fn read<R: Lift + 'static>(&mut self, instance: &str, function: &str) -> wasmtime::Result<R> {
        let missing = || wasmtime::Error::msg("an accessor is missing");
        let (_, interface) = self.instance.get_export(&mut self.store, None, instance).ok_or_else(missing)?;
        let (_, export) = self.instance.get_export(&mut self.store, Some(&interface), function).ok_or_else(missing)?;
        let function = self.instance.get_typed_func::<(), (R,)>(&mut self.store, export)?;
        Ok(function.call(&mut self.store, ())?.0)
    }

    fn scalar<R: Lift + Default + 'static>(&mut self, instance: &str, function: &str) -> R {
        self.read(instance, function).unwrap_or_else(|error| {
            self.failed = Some(error);
            R::default()
        })
    }
}

impl ComponentInstanceState for Reader {
    async fn call_func_ret_list_u8(&mut self, instance: &str, func: &str, contents: impl FnOnce(&[u8]) + Send) {
        match self.read::<WasmList<u8>>(instance, func) {
            Ok(list) => contents(list.as_le_slice(&self.store)),
            Err(error) => {
                self.failed = Some(error);
                // INVARIANT: `contents` must be called; what comes of it is thrown away.
                contents(&[]);
            }
        }
    }

    async fn call_func_ret_s32(&mut self, instance: &str, func: &str) -> i32 {
        self.scalar(instance, func)
    }

    async fn call_func_ret_s64(&mut self, instance: &str, func: &str) -> i64 {
        self.scalar(instance, func)
    }

    async fn call_func_ret_f32(&mut self, instance: &str, func: &str) -> u32 {
        self.scalar::<f32>(instance, func).to_bits()
    }

    async fn call_func_ret_f64(&mut self, instance: &str, func: &str) -> u64 {
        self.scalar::<f64>(instance, func).to_bits()
    }
}

/// The value of a future that never waits, as every future over [`Reader`] is.
fn ready<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
