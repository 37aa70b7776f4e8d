//! A thread that works for others without getting in their way.

use std::{io, thread};

#[cfg(target_os = "linux")]
use thread_priority::{
    Error, NormalThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id, thread_schedule_policy,
};
use tokio::runtime;

/// What the library takes for niceness 0.
#[cfg(target_os = "linux")]
const NICENESS_0: u8 = 49;

/// Runs some work to its end, on a thread of its own that interrupts nobody. The threads that the work starts are like
/// that, too.
///
/// # Errors
///
/// Where the system has no thread to give.
pub fn spawn(
    name: &'static str,
    work: impl Future<Output = ()> + Send + 'static,
) -> io::Result<thread::JoinHandle<()>> {
    let body = move || {
        #[cfg(target_os = "linux")]
        if let Err(error) = stand_back() {
            tracing::warn!(name, %error, "a thread interrupts those that serve requests");
        }
        match runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                runtime.block_on(work);
                // A look-up of the database's name may have no end.
                runtime.shutdown_background();
            }
            Err(error) => tracing::error!(name, %error, "a thread cannot work: what it is for will be refused"),
        }
    };
    thread::Builder::new().name(name.to_owned()).spawn(body)
}

/// Lets this thread, and those that it starts, begin when a processor is free or it is their turn, and not at once when
/// they are woken (`SCHED_BATCH`, sched(7)). To throw a request off its processor for each commit of the others costs more
/// than the commit.
#[cfg(target_os = "linux")]
fn stand_back() -> Result<(), Error> {
    const ORDINARY: ThreadSchedulePolicy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other);
    const BATCH: ThreadSchedulePolicy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Batch);
    if thread_schedule_policy()? != ORDINARY {
        // Somebody chose it for the whole program.
        return Ok(());
    }
    let niceness = rustix::process::getpriority_process(None);
    let ordinary = ThreadPriorityValue::try_from(NICENESS_0).map_err(|_| Error::Priority("out of range"))?;
    let set = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Crossplatform(ordinary), BATCH);
    // The policy is set before the niceness, which is not to change.
    niceness.and_then(|niceness| rustix::process::setpriority_process(None, niceness)).ok();
    if thread_schedule_policy()? == BATCH { Ok(()) } else { set }
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use std::{fs, sync::mpsc};

    use super::*;

    /// This thread's policy (`SCHED_BATCH` is 3) and niceness: fields 41 and 19 of `proc_pid_stat(5)`.
    fn standing() -> [String; 2] {
        let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        [38, 16].map(|field| fields.split_whitespace().nth(field).unwrap().to_owned())
    }

    #[test]
    fn it_and_the_threads_that_it_starts_stand_back() {
        let (tell, told) = mpsc::channel();
        let tell_too = tell.clone();
        let work = async move {
            tell.send(standing()).unwrap();
            thread::spawn(move || tell_too.send(standing()).unwrap()).join().unwrap();
        };
        spawn("background", work).unwrap().join().unwrap();
        let [_, niceness] = standing();
        assert_eq!(told.iter().collect::<Vec<_>>(), [["3".to_owned(), niceness.clone()], ["3".to_owned(), niceness]]);
    }
}
