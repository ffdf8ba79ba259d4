//! The line that says what the command is: shell text, of which this understands as much as it has to.

use crate::ports::{LINE_MAX, WORDS, bytes};

/// Most words.
const MOST: usize = 8;

pub struct Task {
    line: &'static [u8],
    ends: [usize; MOST],
    pub count: usize,
}

impl Task {
    pub fn read(line: &'static [u8]) -> Self {
        let mut task = Task { line, ends: [0; MOST], count: 0 };
        let words = task.between(b"; set -- ", b"");
        let to = bytes(WORDS, LINE_MAX);
        let (mut at, mut len, mut quoted) = (0, 0, false);
        while at < words.len() && task.count < MOST && len < to.len() {
            match words[at] {
                b'\'' => quoted = !quoted,
                b'\\' if !quoted => {
                    at += 1;
                    to[len] = words[at];
                    len += 1;
                }
                b' ' if !quoted => {
                    task.ends[task.count] = len;
                    task.count += 1;
                }
                byte => {
                    to[len] = byte;
                    len += 1;
                }
            }
            at += 1;
        }
        if task.count < MOST {
            task.ends[task.count] = len;
            task.count += 1;
        }
        task
    }

    /// A word of the command; an empty one if there is none.
    pub fn word(&self, number: usize) -> &'static [u8] {
        if number >= self.count {
            return &[];
        }
        let from = if number == 0 { 0 } else { self.ends[number - 1] };
        &bytes(WORDS, LINE_MAX)[from..self.ends[number]]
    }

    /// What is between `before` and the next `after`.
    pub fn between(&self, before: &[u8], after: &[u8]) -> &'static [u8] {
        let find = |text: &[u8], part: &[u8]| text.windows(part.len().max(1)).position(|at| at == part);
        let from = find(self.line, before).map_or(self.line.len(), |at| at + before.len());
        let rest = &self.line[from..];
        let end = if after.is_empty() { rest.len() } else { find(rest, after).unwrap_or(rest.len()) };
        &rest[..end]
    }
}
