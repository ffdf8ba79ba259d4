//! Patience for what another one is about to let go of: a copy that nobody wants any more takes a moment to end, and has its folder until then.

use std::thread;
use std::time::{Duration, Instant};

/// How long that is waited for.
const LIMIT: Duration = Duration::from_secs(5);
/// Between two attempts.
const RETRY: Duration = Duration::from_millis(5);

/// Has `attempt` again and again until it succeeds, as long as it fails by what `is_ending` says is about to end, for 5 s at most. It blocks: never
/// call it on a thread that a guest waits for.
pub(crate) fn soon<T, E>(
    attempt: impl FnMut() -> Result<T, E>,
    is_ending: impl Fn(&E) -> bool,
) -> Result<T, E> {
    within(LIMIT, attempt, is_ending)
}

fn within<T, E>(
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
    is_ending: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let until = Instant::now() + limit;
    loop {
        match attempt() {
            Err(error) if is_ending(&error) && Instant::now() < until => thread::sleep(RETRY),
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_is_waited_for_and_what_does_not_is_an_error() {
        let mut attempts = 0;
        let free_at_third = || {
            attempts += 1;
            if attempts < 3 { Err("busy") } else { Ok(attempts) }
        };
        assert_eq!(soon(free_at_third, |error| *error == "busy"), Ok(3));
        let mut attempts = 0;
        let fails = || {
            attempts += 1;
            Err::<(), _>("broken")
        };
        assert_eq!(soon(fails, |error| *error == "busy"), Err("broken"));
        assert_eq!(attempts, 1);
        let stays = || Err::<(), _>("busy");
        assert_eq!(within(Duration::from_millis(20), stays, |_| true), Err("busy"));
    }
}
