//! What a guest used first after it was restored: read ahead beside the start, and noted for the next time.
//!
//! The host is asked to bring the pages into its page cache, all at once, and they are not mapped into the process: that saves few faults,
//! since the guest's writes take one each in any case, and the note would grow by what was read in vain.

use std::fs::File;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::thread::{self, Role};

use super::StartError;
use crate::kvm::memory::{GuestRam, read_ahead};
use crate::saved::WorkingSet;

/// How long a guest runs before it is noted what it has used.
const FIRST: Duration = Duration::from_secs(1);
/// How long the end of a boot waits for the note to be written.
const LINGER: Duration = Duration::from_secs(10);

/// The thread that does it. Dropped when no vCPU runs any more, it notes what there is.
#[derive(Debug)]
pub(super) struct Prefetch {
    /// When the guest began to run. Closed, it is over.
    runs: Option<Sender<Instant>>,
    /// Closes when the thread is done. The lock makes it [`Sync`]; only the drop takes it.
    ended: Mutex<Receiver<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetch {
    /// Begins to read ahead what of `memory`, which is mapped as `ram`, is noted in `set`.
    pub(super) fn begin(
        set: Arc<WorkingSet>,
        memory: Arc<File>,
        ram: Arc<GuestRam>,
    ) -> Result<Self, StartError> {
        let ((runs, began), (end, ended)) = (mpsc::channel(), mpsc::channel());
        let work = move || {
            let _end: Sender<()> = end;
            work(&set, &memory, &ram, &began);
        };
        let thread = thread::spawn(Role::Blocking, "prefetch", work).map_err(StartError::Thread)?;
        Ok(Prefetch { runs: Some(runs), ended: Mutex::new(ended), thread: Some(thread) })
    }

    /// The guest runs from now on.
    pub(super) fn guest_runs(&self) {
        if let Some(runs) = &self.runs {
            // The thread lives until this is dropped.
            let _ = runs.send(Instant::now());
        }
    }
}

fn work(set: &WorkingSet, memory: &File, ram: &GuestRam, began: &Receiver<Instant>) {
    let mut begin = None;
    for (offset, len) in set.ranges() {
        match began.try_recv() {
            Ok(at) => begin = Some(at),
            Err(TryRecvError::Empty) => {}
            // It has ended already.
            Err(TryRecvError::Disconnected) => break,
        }
        read_ahead(memory, *offset, *len);
    }
    let Some(begin) = begin.or_else(|| began.recv().ok()) else { return };
    // Not before: a machine begins to be made before there is a log.
    set.warn();
    // Until then, or until its end.
    match began.recv_timeout((begin + FIRST).saturating_duration_since(Instant::now())) {
        Ok(_) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
    }
    match ram.touched() {
        // Memory that shows no file.
        Ok(touched) if touched.is_empty() => {}
        Ok(touched) => {
            if let Err(error) = set.note(&touched) {
                log::warn!(
                    "what the guest used first is not noted, so that `--prefetch` is of no use: {error}"
                );
            }
        }
        Err(error) => {
            log::warn!(
                "what the guest used first is not noted, so that `--prefetch` is of no use: /proc/self/pagemap: {error}"
            );
        }
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.runs = None;
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(LINGER) == Err(RecvTimeoutError::Disconnected)
            && let Some(thread) = self.thread.take()
        {
            // A panic was printed when it happened.
            let _ = thread.join();
        }
    }
}
