//! The guest's console for a program: read it, type into it, wait for what it shall say.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::scrollback::{Found, Scrollback};
use super::{ConsoleInput, last_words};

/// How much of the console an error shows.
const TAIL: usize = 4 << 10;
/// How much is kept of what the guest says instead of what is expected. A guest may talk for as long as it likes.
const HEARD: usize = 1 << 20;

/// A reader of a machine's console, and its keyboard.
///
/// It begins with the last 64 KiB that the guest has said and then hears all that it says, across reboots, until the
/// machine ends. There may be any number of readers; one that falls more than 64 KiB behind misses what is between
/// ([`GuestConsole::missed`]), and none holds up the guest. Writing waits while more than 1 MiB is unread by the guest.
#[derive(Debug, Clone)]
pub struct GuestConsole {
    said: Arc<Scrollback>,
    at: u64,
    missed: u64,
    input: ConsoleInput,
    /// Read and not given out yet: it follows what was expected, or that did not come.
    rest: VecDeque<u8>,
}

impl GuestConsole {
    pub(in crate::machine) fn new(said: Arc<Scrollback>, input: ConsoleInput) -> Self {
        GuestConsole { said, at: 0, missed: 0, input, rest: VecDeque::new() }
    }

    /// Types as much of `bytes` as there is room for, and never waits for more.
    pub(crate) fn try_type(&self, bytes: &[u8]) -> usize {
        self.input.try_type(bytes)
    }

    /// See [`ConsoleInput::set_terminal_size`].
    pub fn set_terminal_size(&self, columns: u16, rows: u16) {
        self.input.set_terminal_size(columns, rows);
    }

    /// Bytes that this reader has missed.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// What the guest has said last, at most 4 KiB of it, for people: its text, without control characters, so that it can be
    /// printed on a terminal. Where its kernel has panicked before that, the panic's line comes first: the trace that
    /// follows it can be longer, and does not say why.
    pub fn tail(&self) -> String {
        last_words::last_bytes(&self.said.tail(usize::MAX), TAIL)
    }

    /// The same, of so many lines.
    pub(crate) fn last_lines(&self, most: usize) -> String {
        last_words::last_lines(&self.said.tail(usize::MAX), most)
    }

    /// As [`Read::read`], waiting at most `limit`.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`].
    pub fn read_within(&mut self, into: &mut [u8], limit: Duration) -> io::Result<usize> {
        self.read_until(into, Instant::now().checked_add(limit))
    }

    fn read_until(&mut self, into: &mut [u8], deadline: Option<Instant>) -> io::Result<usize> {
        if !self.rest.is_empty() {
            let count = into.len().min(self.rest.len());
            for (to, from) in into.iter_mut().zip(self.rest.drain(..count)) {
                *to = from;
            }
            return Ok(count);
        }
        match self.said.read(&mut self.at, into, deadline) {
            Found::Bytes { count, missed } => {
                self.missed += missed;
                Ok(count)
            }
            Found::End => Ok(0),
            Found::Nothing => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Waits until the guest has said `words`, and gives all that was read up to and with them: at most the last MiB of it,
    /// so that no guest can make it grow. What follows them stays to be read.
    ///
    /// ```no_run
    /// # use std::io::Write;
    /// # use std::time::Duration;
    /// # fn login(machine: &minivmm::Machine) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut console = machine.console();
    /// console.expect("login: ", Duration::from_secs(60))?;
    /// console.write_all(b"root\n")?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ExpectError`], with the console's tail. What was read stays then, to be read or for something else to be expected.
    pub fn expect(&mut self, words: &str, limit: Duration) -> Result<String, ExpectError> {
        let deadline = Instant::now().checked_add(limit);
        let most = HEARD.max(words.len());
        let mut heard = Vec::from(std::mem::take(&mut self.rest));
        let (mut looked, mut bytes, mut until) = (0, [0; 4096], None);
        loop {
            if let Some(found) = find(heard.get(looked..).unwrap_or_default(), words.as_bytes()) {
                let end = looked + found + words.len();
                self.rest = heard.split_off(end).into();
                let begin = end.saturating_sub(most);
                return Ok(String::from_utf8_lossy(heard.get(begin..).unwrap_or_default()).into_owned());
            }
            // Twice as much, so that moving it costs little for each byte.
            if heard.len() > most.saturating_mul(2) {
                heard.drain(..heard.len() - most);
            }
            // Its beginning may be there already.
            looked = heard.len().saturating_sub(words.len());
            // What was said before the time was up counts; a guest that does not stop talking gets no more time for it.
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                until.get_or_insert_with(|| self.said.end());
            }
            let reason = match until {
                Some(end) if self.at >= end => ExpectFailure::TimedOut(limit),
                _ => match self.read_until(&mut bytes, deadline) {
                    Ok(0) => ExpectFailure::Ended,
                    Ok(count) => {
                        heard.extend(bytes.get(..count).unwrap_or_default());
                        continue;
                    }
                    Err(_) => ExpectFailure::TimedOut(limit),
                },
            };
            self.rest = heard.split_off(heard.len().saturating_sub(most)).into();
            return Err(ExpectError { words: words.to_owned(), reason, tail: self.tail() });
        }
    }
}

/// Where `words` begin; nowhere beyond the end, also where there are none.
fn find(text: &[u8], words: &[u8]) -> Option<usize> {
    if words.is_empty() {
        return Some(0);
    }
    text.windows(words.len()).position(|window| window == words)
}

impl Read for GuestConsole {
    /// Waits for the guest; 0 once the machine has ended.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.read_until(into, None)
    }
}

impl Write for GuestConsole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.input.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.input.flush()
    }
}

/// The guest did not say what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExpectError {
    /// What it did not say.
    pub words: String,
    /// Why nothing is expected any more.
    pub reason: ExpectFailure,
    /// What it said last.
    pub tail: String,
}

/// Why nothing is expected any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExpectFailure {
    /// The time was up.
    TimedOut(Duration),
    /// The machine ended.
    Ended,
}

impl fmt::Display for ExpectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest did not say {:?} ", self.words)?;
        match self.reason {
            ExpectFailure::TimedOut(limit) => write!(f, "within {limit:?}")?,
            ExpectFailure::Ended => write!(f, "before its machine ended")?,
        }
        if self.tail.is_empty() {
            write!(f, "; it said nothing")
        } else {
            write!(f, "; it said last:\n{}", self.tail)
        }
    }
}

impl std::error::Error for ExpectError {}

#[cfg(test)]
mod tests {
    use super::super::last_words::PANIC_TAIL;
    use super::*;
    use crate::machine::console::Console;
    use crate::machine::ends::PANIC_LINE;
    use crate::spec::ConsoleChoice;

    const SOON: Duration = Duration::from_secs(60);

    fn console() -> (Arc<Scrollback>, GuestConsole) {
        let said = Arc::new(Scrollback::default());
        (said.clone(), GuestConsole::new(said, ConsoleInput::new(Console::new(ConsoleChoice::Ttys0))))
    }

    #[test]
    fn words_are_found_however_they_come_and_what_follows_stays() {
        let (said, mut console) = console();
        said.push(b"Debian GNU/Linux vm0 lo");
        let late = said.clone();
        let guest = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            late.push(b"gin: and more");
        });
        assert_eq!(console.expect("login: ", SOON).unwrap(), "Debian GNU/Linux vm0 login: ");
        guest.join().unwrap();
        assert_eq!(console.expect("", SOON).unwrap(), "");
        assert_eq!(console.expect("more", SOON).unwrap(), "and more");
        said.push(b"login: login: ");
        assert_eq!(console.expect("login: ", SOON).unwrap(), "login: ");
        assert_eq!(console.clone().expect("login: ", SOON).unwrap(), "login: ");
        let mut into = [0; 3];
        assert_eq!(console.read(&mut into).unwrap(), 3);
        assert_eq!(&into, b"log");
    }

    #[test]
    fn what_is_not_said_is_an_error_with_the_last_words() {
        let (said, mut console) = console();
        said.push(b"Kernel panic");
        let error = console.expect("login: ", Duration::from_millis(1)).unwrap_err();
        assert!(matches!(error.reason, ExpectFailure::TimedOut(_)));
        let text = error.to_string();
        assert!(text.contains("login: ") && text.ends_with("it said last:\nKernel panic"), "{text}");
        // Something else may have been said instead.
        assert_eq!(console.expect("panic", Duration::ZERO).unwrap(), "Kernel panic");
        said.close();
        assert_eq!(console.expect("login: ", SOON).unwrap_err().reason, ExpectFailure::Ended);
        assert_eq!(console.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn panic_comes_first_in_the_tail_however_long_its_trace_is() {
        let (said, console) = console();
        let panic = "[    1.5] Kernel panic - not syncing: of fear";
        said.push(format!("a line\n{panic}\r\n").as_bytes());
        said.push("frame\n".repeat(10).as_bytes());
        assert!(
            console.tail().starts_with("a line\n") && !console.tail().contains("..."),
            "{}",
            console.tail()
        );
        said.push("frame\n".repeat(TAIL).as_bytes());
        let tail = console.tail();
        assert!(tail.starts_with(&format!("{panic}\n...\n")) && tail.ends_with("frame\n"), "{tail}");
        // Cut within the line, and a line without an end.
        said.push(format!("\n{PANIC_LINE}{}", "x".repeat(TAIL - 10)).as_bytes());
        assert!(console.tail().starts_with(PANIC_LINE), "{}", console.tail());
        assert!(console.tail().len() < TAIL + 2 * PANIC_TAIL);
    }

    /// Says `text` again and again, as fast as the reader takes it, until the reader has gone.
    fn talk(said: &Arc<Scrollback>, text: &'static [u8]) -> std::thread::JoinHandle<()> {
        let said = said.clone();
        std::thread::spawn(move || {
            while Arc::strong_count(&said) > 1 {
                said.push(text);
            }
        })
    }

    #[test]
    fn a_guest_that_talks_without_end_gets_neither_more_time_nor_more_memory() {
        let (said, mut console) = console();
        let guest = talk(&said, &[b'y'; 64]);
        let begin = Instant::now();
        let error = console.expect("login: ", Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error.reason, ExpectFailure::TimedOut(_)));
        assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
        drop((said, console));
        guest.join().unwrap();
    }

    #[test]
    fn what_is_said_instead_of_what_is_expected_is_kept_up_to_a_mebibyte() {
        let (said, mut console) = console();
        for round in 0..80 {
            said.push(&vec![b'a' + round % 26; 50 << 10]);
            console.expect("login: ", Duration::ZERO).unwrap_err();
            assert!(console.rest.len() <= HEARD, "{}", console.rest.len());
        }
        assert_eq!((console.missed(), console.rest.len()), (0, HEARD));
        said.push(b"login: ");
        let heard = console.expect("login: ", Duration::ZERO).unwrap();
        assert!(heard.len() == HEARD && heard.ends_with("blogin: "), "{}", heard.len());
        assert!(console.rest.is_empty());
        // A reader that waits for long keeps no more.
        let late = said.clone();
        let guest = std::thread::spawn(move || {
            for _ in 0..500 {
                late.push(&[b'z'; 16 << 10]);
                std::thread::sleep(Duration::from_micros(200));
            }
            late.push(b"now");
        });
        let heard = console.expect("now", SOON).unwrap();
        guest.join().unwrap();
        assert!(heard.len() <= HEARD && heard.ends_with("znow"), "{}", heard.len());
    }
}
