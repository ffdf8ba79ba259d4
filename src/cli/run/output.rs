//! What comes from the guest: the command's output, whose end is told by a token behind it, and the console's last words.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::machine::PANIC_LINE;

/// How much of the console is kept, and how much of that is shown.
const KEPT: usize = 16 << 10;
const LINES: usize = 15;

/// Passes a stream on as it comes, but for the token at its end. The guest sends the token when the command has ended;
/// without it, nobody could know whether something is still on its way.
#[derive(Debug)]
pub(super) struct UpToToken<W> {
    to: W,
    token: Vec<u8>,
    /// How much of the token the stream ends with so far: it has not been passed on.
    held: usize,
    /// The reader has gone away.
    gone: bool,
}

impl<W: Write> UpToToken<W> {
    pub(super) fn new(to: W, token: &str) -> Self {
        UpToToken { to, token: token.into(), held: 0, gone: false }
    }

    /// Takes the next bytes, and says whether the stream ends with the token now.
    pub(super) fn take(&mut self, bytes: &[u8]) -> bool {
        let held = self.token.get(..self.held).unwrap_or_default();
        let all = [held, bytes].concat();
        let most = self.token.len().min(all.len());
        let ends = |len: &usize| self.token.get(..*len).is_some_and(|start| all.ends_with(start));
        self.held = (0..=most).rev().find(ends).unwrap_or(0);
        self.write(all.get(..all.len() - self.held).unwrap_or_default());
        self.held == self.token.len()
    }

    /// There is no more. The beginning of a token was none then.
    pub(super) fn finish(mut self) {
        if self.held < self.token.len() {
            let rest = self.token.get(..self.held).unwrap_or_default().to_vec();
            self.write(&rest);
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.gone || bytes.is_empty() {
            return;
        }
        if let Err(error) = self.to.write_all(bytes).and_then(|()| self.to.flush()) {
            self.gone = true;
            // Closing the other end of a pipe is a reader's way to say that it has seen enough.
            if error.kind() != io::ErrorKind::BrokenPipe {
                log::error!("the output of the command is lost from here on: {error}");
            }
        }
    }
}

/// The guest's console: the last of it, and all of it on stderr where that is wanted.
#[derive(Debug, Clone, Default)]
pub(super) struct ConsoleTail {
    kept: Arc<Mutex<VecDeque<u8>>>,
    shown: bool,
}

impl ConsoleTail {
    pub(super) fn new(shown: bool) -> Self {
        ConsoleTail { shown, ..ConsoleTail::default() }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for ConsoleTail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.kept();
        kept.extend(bytes);
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
        drop(kept);
        if self.shown {
            // Nobody may listen any more: the last of it is kept all the same.
            let _ = io::stderr().write_all(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The last lines, as far as they can be printed: a guest shall not draw on the host's terminal.
impl fmt::Display for ConsoleTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept: Vec<u8> = self.kept().iter().copied().collect();
        let text = String::from_utf8_lossy(&kept);
        let plain = |line: &str| line.chars().filter(|c| *c == '\t' || !c.is_control()).collect::<String>();
        let lines: Vec<String> = text.lines().map(plain).filter(|line| !line.trim().is_empty()).collect();
        if lines.is_empty() {
            return writeln!(f, "the console said nothing");
        }
        writeln!(f, "the console said last:")?;
        let first = lines.len().saturating_sub(LINES);
        let panic = lines.iter().take(first).rfind(|line| line.contains(PANIC_LINE));
        panic.map_or(Ok(()), |line| writeln!(f, "  | {line}\n  | ..."))?;
        lines.iter().skip(first).try_for_each(|line| writeln!(f, "  | {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "aab-token";

    /// What comes out of these pieces, and whether the token was at the end of each.
    fn pass(pieces: &[&[u8]]) -> (Vec<u8>, Vec<bool>) {
        let mut out = Vec::new();
        let mut stream = UpToToken::new(&mut out, TOKEN);
        let ends = pieces.iter().map(|piece| stream.take(piece)).collect();
        stream.finish();
        (out, ends)
    }

    #[test]
    fn token_at_the_end_is_not_passed_on_wherever_it_is_cut() {
        let whole = [b"some output".as_slice(), TOKEN.as_bytes()].concat();
        for cut in 0..=whole.len() {
            let (out, ends) = pass(&[&whole[..cut], &whole[cut..]]);
            assert_eq!(out, b"some output", "cut at {cut}");
            assert!(ends[1]);
        }
        let single: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(pass(&single).0, b"some output");
    }

    #[test]
    fn what_only_begins_as_a_token_is_output() {
        assert_eq!(pass(&[b"aaaab-tokee", b"aa"]), (b"aaaab-tokeeaa".to_vec(), vec![false, false]));
        assert_eq!(pass(&[b"a", b"a", b"a", b"b-token"]), (b"a".to_vec(), vec![false, false, false, true]));
        // A token with output behind it was output too.
        assert_eq!(pass(&[b"aab-token", b"!"]), (b"aab-token!".to_vec(), vec![true, false]));
        assert_eq!(pass(&[b"", b""]), (Vec::new(), vec![false, false]));
    }

    #[test]
    fn reader_that_went_away_is_no_error() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut stream = UpToToken::new(Gone, TOKEN);
        assert!(!stream.take(b"output"));
        assert!(stream.take(TOKEN.as_bytes()));
        stream.finish();
    }

    #[test]
    fn consoles_last_lines_are_kept_and_cannot_move_the_cursor() {
        let mut tail = ConsoleTail::new(false);
        assert_eq!(tail.to_string(), "the console said nothing\n");
        for n in 0..10_000 {
            writeln!(tail, "line {n}\r").unwrap();
        }
        write!(tail, "\x1b[2J\u{9b}half\r\n\n\x07panic").unwrap();
        let said = tail.to_string();
        assert!(said.starts_with("the console said last:\n  | line 9987\n"), "{said}");
        assert!(said.ends_with("  | line 9999\n  | [2Jhalf\n  | panic\n"), "{said}");
        assert!(tail.kept().len() <= KEPT);
        write!(tail, "\nKernel panic - not syncing: of fear\n").unwrap();
        (0..30).for_each(|n| writeln!(tail, "frame {n}").unwrap());
        let said = tail.to_string();
        assert!(
            said.contains("last:\n  | Kernel panic - not syncing: of fear\n  | ...\n  | frame 15\n"),
            "{said}"
        );
    }
}
