//! The command's output, whose end is marked by a token.

use std::io::{self, Write};

/// Passes a stream on, without the token at its end. The guest sends the token when the command has ended;
/// otherwise output could still be on its way.
#[derive(Debug)]
pub(super) struct TokenFilter<W> {
    to: W,
    token: Vec<u8>,
    /// Length of the token's prefix at the end of the stream; these bytes are held back.
    matched: usize,
    /// Writing failed; later output is discarded.
    broken: bool,
    /// The reason, until it is reported.
    failure: Option<io::Error>,
    /// Output came that was discarded, since this was asked last.
    discarded: bool,
}

impl<W: Write> TokenFilter<W> {
    pub(super) fn new(to: W, token: &str) -> Self {
        TokenFilter { to, token: token.into(), matched: 0, broken: false, failure: None, discarded: false }
    }

    /// Passes on the next bytes; true if the stream now ends with the token.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        let matched = self.token.get(..self.matched).unwrap_or_default();
        let all = [matched, bytes].concat();
        let most = self.token.len().min(all.len());
        let ends = |len: &usize| self.token.get(..*len).is_some_and(|start| all.ends_with(start));
        self.matched = (0..=most).rev().find(ends).unwrap_or(0);
        self.write(all.get(..all.len() - self.matched).unwrap_or_default());
        self.matched == self.token.len()
    }

    /// The stream has ended. A partial token was output.
    pub(super) fn finish(&mut self) {
        if self.matched < self.token.len() {
            let rest = self.token.get(..self.matched).unwrap_or_default().to_vec();
            self.write(&rest);
        }
    }

    /// Why writing failed, once.
    pub(super) fn failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// Whether there was output that nobody gets, since the last call. The token is none.
    pub(super) fn has_discarded(&mut self) -> bool {
        std::mem::take(&mut self.discarded)
    }

    fn write(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.broken {
            self.discarded = true;
            return;
        }
        self.failure = self.to.write_all(bytes).and_then(|()| self.to.flush()).err();
        self.broken = self.failure.is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    const TOKEN: &str = "aab-token";

    /// The output for these pieces, and whether the token was at the end of each.
    fn pass(pieces: &[&[u8]]) -> (Vec<u8>, Vec<bool>) {
        let mut out = Vec::new();
        let mut stream = TokenFilter::new(&mut out, TOKEN);
        let ends = pieces.iter().map(|piece| stream.push(piece)).collect();
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
        // A token that is followed by output was output too.
        assert_eq!(pass(&[b"aab-token", b"!"]), (b"aab-token!".to_vec(), vec![true, false]));
        assert_eq!(pass(&[b"", b""]), (Vec::new(), vec![false, false]));
    }

    /// Accepts `room` bytes, with short writes and interruptions, and then fails.
    struct Fails {
        taken: Vec<u8>,
        room: usize,
        calls: usize,
        with: ErrorKind,
    }

    impl Write for Fails {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            if self.calls.is_multiple_of(2) {
                return Err(ErrorKind::Interrupted.into());
            }
            let count = bytes.len().min(3).min(self.room - self.taken.len());
            self.taken.extend(&bytes[..count]);
            if count == 0 { Err(self.with.into()) } else { Ok(count) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn output_that_cannot_be_written_is_told_once_and_its_end_is_still_seen() {
        for with in [ErrorKind::BrokenPipe, ErrorKind::StorageFull] {
            let mut stream = TokenFilter::new(Fails { taken: Vec::new(), room: 6, calls: 0, with }, TOKEN);
            assert!(!stream.push(b"out") && stream.failure().is_none());
            assert!(!stream.push(b"put and more") && !stream.push(b"and more"));
            assert_eq!(stream.failure().map(|error| error.kind()), Some(with));
            assert!(stream.push(TOKEN.as_bytes()));
            stream.finish();
            assert!(stream.failure().is_none());
            assert_eq!(stream.to.taken, b"output");
        }
    }

    #[test]
    fn what_is_held_until_the_end_can_fail_too() {
        let with = ErrorKind::StorageFull;
        let mut stream = TokenFilter::new(Fails { taken: Vec::new(), room: 0, calls: 0, with }, TOKEN);
        assert!(!stream.push(b"aab") && stream.failure().is_none());
        stream.finish();
        assert!(stream.failure().is_some());
    }
}
