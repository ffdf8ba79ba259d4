//! A machine inside this process, as an embedding program has it.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use minivmm::Machine;
use minivmm::spec::Spec;
use tempfile::TempDir;
use tiny_guest::Guest;

/// A machine that takes longer than this for any step hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A console's output in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Output(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Output {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap()).into_owned()
    }

    /// Waits until it has `word` in it; false if that does not happen within [`LIMIT`].
    pub(crate) fn wait_for_word(&self, word: &str) -> bool {
        let said = self.0.0.lock().unwrap();
        let missing = |said: &mut Vec<u8>| !String::from_utf8_lossy(said).contains(word);
        !self.0.1.wait_timeout_while(said, LIMIT, missing).unwrap().1.timed_out()
    }

    /// Waits until it ends with one of `words`; false if that does not happen within [`LIMIT`].
    pub(crate) fn wait_for(&self, words: &[&str]) -> bool {
        let said = self.0.0.lock().unwrap();
        let missing = |said: &mut Vec<u8>| !words.iter().any(|word| said.ends_with(word.as_bytes()));
        !self.0.1.wait_timeout_while(said, LIMIT, missing).unwrap().1.timed_out()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.0.lock().unwrap().extend(bytes);
        self.0.1.notify_all();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The minimal machine for a guest, whose kernel goes into `folder`.
pub(crate) fn spec(folder: &TempDir, guest: Guest) -> Spec {
    Spec::new(guest.write(folder.path()).unwrap()).with_mem("4".parse().unwrap())
}

pub(crate) fn start(folder: &TempDir, guest: Guest) -> (Machine, Output) {
    let output = Output::default();
    (Machine::start(&spec(folder, guest), Box::new(output.clone())).unwrap(), output)
}

/// A running machine beside the one that is to do nothing. By the time that this one has answered several times, the other
/// would have done something, too, however busy the host is.
#[derive(Debug)]
pub(crate) struct Neighbour {
    machine: Machine,
    output: Output,
    answers: usize,
}

impl Neighbour {
    pub(crate) fn start(folder: &TempDir) -> Self {
        let (machine, output) = start(folder, Guest::EchoInterrupt);
        assert!(output.wait_for(&["ready\n"]));
        Neighbour { machine, output, answers: 0 }
    }

    pub(crate) fn answers(&mut self) {
        for _ in 0..10 {
            self.answers += 1;
            let line = format!("{:04}\n", self.answers);
            self.machine.console_input().write_all(line.as_bytes()).unwrap();
            assert!(self.output.wait_for(&[&line]), "{}", self.output.text());
        }
    }
}
