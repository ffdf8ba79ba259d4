//! How long the host may take for a start. Opening and reading may never return: a file of a server that is away, a device
//! that hangs. They are done on the [`BlockingThread`], and the one who waits gives up when one step takes longer than [`LIMIT`].

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::StartError;
use super::blocking::BlockingThread;

/// The longest that one step may take: an open, or the read of a piece of a file.
const LIMIT: Duration = Duration::from_secs(30);

/// How long work that was interrupted may take to end before it is left alone.
const LINGER: Duration = Duration::from_millis(500);

/// What a start is doing, for the one who waits for it; and the order to stop, for the one who works.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    step: Mutex<Step>,
    changed: Condvar,
    stop: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Step {
    /// In words; empty before the first.
    what: Arc<str>,
    since: Option<Instant>,
    /// It waits for the caller, who may take any time.
    unlimited: bool,
    ended: bool,
}

impl Progress {
    /// Of work that is to end once `stop` is set, and that nobody waits for with a limit.
    pub(super) fn until(stop: Arc<AtomicBool>) -> Self {
        Progress(Arc::new(Shared { stop, ..Shared::default() }))
    }

    /// From here on the work is at `what`, such as `opening the disk /srv/vm0.raw`.
    pub(crate) fn begin(&self, what: impl Into<Arc<str>>) {
        let mut step = self.step();
        (step.what, step.since, step.unlimited) = (what.into(), Some(Instant::now()), false);
    }

    /// More work begins, after work that has ended.
    fn restart(&self) {
        let mut step = self.step();
        (step.since, step.unlimited, step.ended) = (Some(Instant::now()), false, false);
    }

    /// From here on the work waits for the caller, and has no limit.
    pub(super) fn wait_for_caller(&self) {
        self.step().unlimited = true;
    }

    /// The start is not wanted any more.
    pub(crate) fn interrupt(&self) {
        let _step = self.step();
        self.0.stop.store(true, Ordering::Release);
        self.0.changed.notify_all();
    }

    /// Set once nobody wants the result.
    pub(crate) fn stop(&self) -> &Arc<AtomicBool> {
        &self.0.stop
    }

    /// Whether nobody wants the result.
    pub(crate) fn is_stopped(&self) -> bool {
        self.0.stop.load(Ordering::Acquire)
    }

    fn end(&self) {
        self.step().ended = true;
        self.0.changed.notify_all();
    }

    fn step(&self) -> MutexGuard<'_, Step> {
        self.0.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end of the work, which may not come.
    fn ends_within(&self, limit: Duration) -> bool {
        let step = self.step();
        let waited = self.0.changed.wait_timeout_while(step, limit, |step| !step.ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    /// Waits until the work has ended, was interrupted, or has been at one step for `limit`.
    fn wait(&self, limit: Duration) -> Result<(), StartError> {
        let begin = Instant::now();
        let mut step = self.step();
        while !step.ended {
            if self.is_stopped() {
                return Err(StartError::Interrupted);
            }
            let spent = step.since.unwrap_or(begin).elapsed();
            let left = if step.unlimited { limit } else { limit.saturating_sub(spent) };
            if left.is_zero() {
                self.0.stop.store(true, Ordering::Release);
                return Err(StartError::Unanswered { what: step.what.to_string(), limit });
            }
            step = self.0.changed.wait_timeout(step, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

/// Does `work` on `thread` and waits for it, with a limit for each step that it begins; the thread comes back for more. Work that
/// was given up ends when the host answers, and what it has opened is closed then; its thread ends behind it.
///
/// # Errors
/// Those of `work`; [`StartError::Unanswered`], [`StartError::Interrupted`].
pub(crate) fn within<T: Send + 'static, E: From<StartError> + Send + 'static>(
    thread: BlockingThread,
    progress: &Progress,
    work: impl FnOnce(&Progress) -> Result<T, E> + Send + 'static,
) -> Result<(T, BlockingThread), E> {
    limited(LIMIT, thread, progress, work, || ()).0
}

/// The same; the caller does `beside` before it waits.
pub(crate) fn within_and<T: Send + 'static, E: From<StartError> + Send + 'static, B>(
    thread: BlockingThread,
    progress: &Progress,
    work: impl FnOnce(&Progress) -> Result<T, E> + Send + 'static,
    beside: impl FnOnce() -> B,
) -> (Result<(T, BlockingThread), E>, B) {
    limited(LIMIT, thread, progress, work, beside)
}

fn limited<T: Send + 'static, E: From<StartError> + Send + 'static, B>(
    limit: Duration,
    thread: BlockingThread,
    progress: &Progress,
    work: impl FnOnce(&Progress) -> Result<T, E> + Send + 'static,
    beside: impl FnOnce() -> B,
) -> (Result<(T, BlockingThread), E>, B) {
    // It holds one result. A channel without a bound would take room for 31 of these, which are large.
    let (sender, receiver) = mpsc::sync_channel::<Result<Result<T, E>, Box<dyn Any + Send>>>(1);
    let own = progress.clone();
    own.restart();
    thread.execute(move || {
        // Nobody takes the result of work that was given up.
        let _ = sender.send(catch_unwind(AssertUnwindSafe(|| work(&own))));
        own.end();
    });
    let beside = beside();
    if let Err(error) = progress.wait(limit) {
        // Work that is not stuck ends now, and gives back what it holds, such as the name of a socket.
        if !progress.ends_within(LINGER) {
            thread.leave();
        }
        return (Err(error.into()), beside);
    }
    let result = match receiver.recv() {
        Ok(Ok(result)) => result.map(|result| (result, thread)),
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => Err(StartError::Internal("the start").into()),
    };
    (result, beside)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    fn thread() -> BlockingThread {
        BlockingThread::spawn().unwrap()
    }

    #[test]
    fn work_that_goes_on_has_all_the_time_that_its_steps_take() {
        let (progress, begin) = (Progress::default(), Instant::now());
        // Longer than a busy host takes for one step, and shorter than all of them.
        let done = limited(
            20 * SHORT,
            thread(),
            &progress,
            |progress| {
                (0..24).for_each(|step| {
                    progress.begin(format!("step {step}"));
                    std::thread::sleep(SHORT);
                });
                Ok::<u32, StartError>(7)
            },
            || (),
        )
        .0;
        let (result, thread) = done.unwrap();
        assert_eq!(result, 7);
        assert!(begin.elapsed() >= 24 * SHORT);
        // The thread has time for more, which does not begin at the last step's time.
        progress.step().since = begin.checked_sub(2 * LIMIT);
        let (result, _) = limited(LIMIT, thread, &progress, |_| Ok::<u32, StartError>(8), || ()).0.unwrap();
        assert_eq!(result, 8);
    }

    #[test]
    fn step_that_does_not_end_is_given_up_with_its_name() {
        let (release, hangs) = mpsc::channel::<()>();
        let (ends, ended) = mpsc::channel();
        let progress = Progress::default();
        // Not by the work itself, whose thread a busy host may start later than the limit.
        progress.begin("opening the disk /away/vm0.raw");
        let done = limited(
            SHORT,
            thread(),
            &progress,
            move |progress| {
                let _ = hangs.recv();
                ends.send(progress.is_stopped()).unwrap();
                Ok::<(), StartError>(())
            },
            || (),
        )
        .0;
        let said = done.unwrap_err().to_string();
        assert!(said.starts_with("opening the disk /away/vm0.raw takes longer than"), "{said}");
        // The thread is not left behind for ever: it ends with the host's answer.
        drop(release);
        assert!(ended.recv().unwrap());
    }

    #[test]
    fn work_is_interrupted_at_once_whatever_it_waits_for() {
        let (release, hangs) = mpsc::channel::<()>();
        let progress = Progress::default();
        let other = progress.clone();
        let (at_work, begun) = mpsc::channel();
        let waits = std::thread::spawn(move || {
            limited(
                Duration::from_secs(3600),
                thread(),
                &other,
                move |_| {
                    at_work.send(()).unwrap();
                    let _ = hangs.recv();
                    Ok::<(), StartError>(())
                },
                || (),
            )
            .0
        });
        begun.recv().unwrap();
        progress.interrupt();
        assert!(matches!(waits.join().unwrap(), Err(StartError::Interrupted)));
        drop(release);
    }
}
