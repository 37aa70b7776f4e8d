//! A thread that works for others without getting in their way.

use std::{io, thread};

use tokio::runtime;

/// Runs some work to its end, on a thread of its own that interrupts nobody. What the work starts is like that, too.
///
/// # Errors
///
/// Where the system has no thread to give.
pub fn spawn(name: &str, work: impl Future<Output = ()> + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    let body = || {
        interrupt_nobody();
        match runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                runtime.block_on(work);
                // A look-up of the database's name may have no end.
                runtime.shutdown_background();
            }
            Err(error) => tracing::error!(%error, "a thread of the vault's own cannot work"),
        }
    };
    thread::Builder::new().name(name.to_owned()).spawn(body)
}

/// Lets this thread, and those that it starts, begin when a processor is free or it is their turn, and not at once when
/// they are woken (`SCHED_BATCH`, sched(7)). To throw a batch off its processor for each commit of the others costs more
/// than the commit.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no library asks for this and nothing else")]
fn interrupt_nobody() {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is this thread, and the structure is only read, during the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const priority) } != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "the system does not let a thread stand back");
    }
}

#[cfg(not(target_os = "linux"))]
fn interrupt_nobody() {}

#[cfg(test)]
mod tests {
    use std::{fs, sync::mpsc};

    use super::*;

    /// Field 41 of `proc_pid_stat(5)`, where `SCHED_BATCH` is 3.
    fn stands_back() -> bool {
        let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        fields.split_whitespace().nth(38).unwrap() == "3"
    }

    #[test]
    #[cfg_attr(not(target_os = "linux"), ignore = "threads are not asked for elsewhere")]
    fn it_and_the_threads_that_it_starts_stand_back() {
        let (tell, told) = mpsc::channel();
        let tell_too = tell.clone();
        let work = async move {
            tell.send(stands_back()).unwrap();
            thread::spawn(move || tell_too.send(stands_back()).unwrap()).join().unwrap();
        };
        spawn("background", work).unwrap().join().unwrap();
        assert_eq!(told.iter().collect::<Vec<_>>(), [true, true]);
        assert!(!stands_back());
    }
}
