//! Long work on an image: a bar on a terminal, and Ctrl-C.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use devices::thread::{Role, spawn};
use diskimage::Progress;

use super::error::DiskVerbError;
use super::size::Bytes;
use crate::host::signals::{Signal, Signals};
use crate::host::stdio::Output;

/// Time between two drawings.
const TICK: Duration = Duration::from_millis(100);
/// Characters between the brackets.
const WIDTH: u64 = 40;
/// Goes to the beginning of the line and removes it.
const CLEAR: &str = "\r\x1b[K";

/// Follows long work. The bar is removed on drop.
#[derive(Debug)]
pub(in crate::cli) struct Bar {
    output: Option<Output>,
    drawn: Option<Instant>,
    /// The signal that ends the work; 0 if none came.
    signal: Arc<AtomicI32>,
}

impl Bar {
    /// Begins long work: from now on a signal ends it in an orderly way, and the second one at once.
    pub(in crate::cli) fn begin() -> io::Result<Self> {
        Self::begin_with(|| {})
    }

    /// The same; the first signal has `cancel` called, on a thread of its own.
    pub(in crate::cli) fn begin_with(cancel: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let mut cancel = Some(cancel);
        let signals = Signals::block()?;
        let signal = Arc::new(AtomicI32::new(0));
        let came = signal.clone();
        let watch = move || {
            while let Ok(next) = signals.wait(None) {
                let Some(Signal::End(number)) = next else { continue };
                if came.swap(number, Ordering::Relaxed) != 0 {
                    std::process::exit(128 + number);
                }
                // It may take its time, in which the second signal counts.
                if let Some(cancel) = cancel.take() {
                    let _ = spawn(Role::Cli, "cancel", cancel);
                }
            }
        };
        spawn(Role::Cli, "signals", watch)?;
        let output = Some(Output::error()).filter(|output| output.is_terminal());
        Ok(Bar { output, drawn: None, signal })
    }

    /// The bar alone: a signal ends this process at once.
    pub(in crate::cli) fn without_signals() -> Self {
        let output = Some(Output::error()).filter(|output| output.is_terminal());
        Bar { output, drawn: None, signal: Arc::default() }
    }

    /// The error of work that ended early: the signal, if one came.
    pub(super) fn failed(&self, error: impl Into<DiskVerbError>) -> DiskVerbError {
        self.interrupted().map_or_else(|| error.into(), DiskVerbError::Interrupted)
    }

    /// Whether anybody sees it.
    pub(in crate::cli) fn is_shown(&self) -> bool {
        self.output.is_some()
    }

    /// The signal that ends the work, if one came.
    pub(in crate::cli) fn interrupted(&self) -> Option<u8> {
        u8::try_from(self.signal.load(Ordering::Relaxed)).ok().filter(|signal| *signal > 0)
    }
}

impl Progress for Bar {
    fn at(&mut self, done: u64, total: u64) -> ControlFlow<()> {
        if self.signal.load(Ordering::Relaxed) != 0 {
            return ControlFlow::Break(());
        }
        if let Some(output) = &mut self.output
            && self.drawn.is_none_or(|drawn| drawn.elapsed() >= TICK)
        {
            // A terminal that does not take it does not matter.
            let _ = output.write_all(format!("{CLEAR}{}", line(done, total)).as_bytes());
            self.drawn = Some(Instant::now());
        }
        ControlFlow::Continue(())
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let (Some(output), Some(_)) = (&mut self.output, self.drawn) {
            let _ = output.write_all(CLEAR.as_bytes());
        }
    }
}

/// The bar in one line of less than 80 characters.
fn line(done: u64, total: u64) -> String {
    let part =
        |of: u64| u64::try_from(u128::from(done.min(total)) * u128::from(of) / u128::from(total.max(1)));
    let (filled, percent) = (part(WIDTH).unwrap_or(0), part(100).unwrap_or(0));
    let bar: String = (0..WIDTH).map(|at| if at < filled { '#' } else { ' ' }).collect();
    format!("[{bar}] {percent:3} % of {}", Bytes(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_is_as_long_as_what_is_done() {
        assert_eq!(line(0, 100), format!("[{}]   0 % of 100 bytes", " ".repeat(40)));
        assert_eq!(line(1 << 29, 1 << 30), format!("[{}{}]  50 % of 1 GiB", "#".repeat(20), " ".repeat(20)));
        assert!(line(5, 4).contains("100 %") && line(0, 0).contains("  0 %"));
        assert!(line(u64::MAX, u64::MAX).contains("100 %") && line(1, u64::MAX).len() < 80);
    }

    #[test]
    fn signal_ends_the_work_and_is_its_error() {
        let mut bar = Bar { output: None, drawn: None, signal: Arc::default() };
        let error = || DiskVerbError::ShrinkLive("vm0:vda".into());
        assert!(bar.at(1, 2).is_continue() && matches!(bar.failed(error()), DiskVerbError::ShrinkLive(_)));
        bar.signal.store(2, Ordering::Relaxed);
        assert!(bar.at(1, 2).is_break() && matches!(bar.failed(error()), DiskVerbError::Interrupted(2)));
    }
}
