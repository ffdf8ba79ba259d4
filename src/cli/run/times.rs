//! What a run took, for `--time`.

use std::fmt::{self, Display};
use std::time::{Duration, Instant};

/// When what happened, by the clock of this process; but for the time of init, which its own clock says.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// The guest was about to run.
    pub(super) running: Option<Instant>,
    /// Init waited for its command.
    pub(super) ready: Option<Instant>,
    /// The command was given to it.
    pub(super) given: Option<Instant>,
    pub(super) up: Option<Instant>,
    pub(super) exited: Option<Instant>,
    /// From the first line of init until it waited.
    pub(super) init: Option<Duration>,
}

impl Times {
    /// In words: one line, without its end. What is not known is left out.
    pub(super) fn since(&self, begin: Instant) -> impl Display + use<> {
        let between = |from: Option<Instant>, to: Option<Instant>| Some(to?.saturating_duration_since(from?));
        let boot = between(self.running, self.ready);
        let last = between(self.given, self.up);
        let parts = [
            ("monitor", between(Some(begin), self.running)),
            ("kernel", boot.map(|boot| boot.saturating_sub(self.init.unwrap_or_default()))),
            // A machine that goes on from a warm one had its boot before.
            match boot {
                Some(_) => ("init", self.init.map(|init| init + last.unwrap_or_default())),
                None => ("resume", between(self.running, self.up)),
            },
            ("command", between(self.up, self.exited)),
        ];
        Words(parts)
    }
}

struct Words([(&'static str, Option<Duration>); 4]);

impl Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.0.iter().filter_map(|(name, took)| Some((name, took.as_ref()?)));
        for (number, (name, took)) in known.enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{name} {:.3} s", took.as_secs_f64())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_those_of_a_boot_or_of_a_warm_machine() {
        let begin = Instant::now();
        let at = |millis| Some(begin + Duration::from_millis(millis));
        let init = Some(Duration::from_millis(40));
        let boot =
            Times { running: at(20), ready: at(320), given: at(320), up: at(325), exited: at(1325), init };
        let words = boot.since(begin).to_string();
        assert_eq!(words, "monitor 0.020 s, kernel 0.260 s, init 0.045 s, command 1.000 s");
        let warm = Times { running: at(8), given: at(9), up: at(12), exited: at(13), ..Times::default() };
        assert_eq!(warm.since(begin).to_string(), "monitor 0.008 s, resume 0.004 s, command 0.001 s");
        // One that never came up.
        let none = Times { running: at(8), ..Times::default() };
        assert_eq!(none.since(begin).to_string(), "monitor 0.008 s");
    }
}
