//! What the library has to say while a machine runs, as lines on stderr.

use std::io::{self, IsTerminal};

use super::report;

struct StderrLogger;

/// Says warnings and errors from now on; the rest is for debuggers of the library.
pub(super) fn install() {
    static LOGGER: StderrLogger = StderrLogger;
    // Fails where somebody has installed a logger before: then that one is meant.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}

impl log::Log for StderrLogger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            // A terminal may be in raw mode, where a line starts only where it is told to.
            let end = if io::stderr().is_terminal() { "\r\n" } else { "\n" };
            report::say(&format_args!("minivmm: {}{end}", record.args()));
        }
    }

    fn flush(&self) {}
}
