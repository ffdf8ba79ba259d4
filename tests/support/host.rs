//! Machines with names, and the verbs that speak to them, in a runtime directory of the test's own.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tiny_guest::Guest;

use super::vmm::{LIMIT, Launch, Vmm, until_connected};

/// A place for machines that no other test sees.
#[derive(Debug)]
pub(crate) struct Host(pub(crate) TempDir);

impl Host {
    pub(crate) fn new() -> Self {
        Host(tempfile::tempdir().unwrap())
    }

    pub(crate) fn launch(&self, guest: Guest, name: &str) -> Launch {
        let mut launch = Launch::new(guest).args(&["--name", name]);
        launch.command.env("XDG_RUNTIME_DIR", self.0.path());
        launch.stdin(Stdio::piped())
    }

    /// A guest that has printed `word`.
    pub(crate) fn start(&self, guest: Guest, name: &str, word: &str) -> Vmm {
        let machine = self.launch(guest, name).spawn();
        machine.expect(word, 1);
        machine
    }

    pub(crate) fn verb(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
        command.args(words).env("XDG_RUNTIME_DIR", self.0.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.verb(words).output().unwrap()
    }

    /// The output of a verb that succeeds.
    #[track_caller]
    pub(crate) fn does(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""), "{words:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.does(words)).unwrap()
    }

    #[track_caller]
    pub(crate) fn fails(&self, words: &[&str], status: i32, said: &str) {
        let output = self.run(words);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{words:?}: {stderr}");
        assert!(output.stdout.is_empty() && stderr.contains(said), "{words:?}: {stderr}");
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.0.path().join("minivmm")
    }

    pub(crate) fn files(&self) -> Vec<String> {
        let files = fs::read_dir(self.folder()).unwrap();
        let mut files: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        files
    }

    #[track_caller]
    pub(crate) fn until_connected(&self, name: &str, clients: usize) {
        until_connected(&self.folder().join(format!("{name}.sock")), clients);
    }

    pub(crate) fn connect(&self, name: &str) -> UnixStream {
        let stream = UnixStream::connect(self.folder().join(format!("{name}.sock"))).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// An HTTP request as any program could send it: status and body.
    #[track_caller]
    pub(crate) fn http(&self, name: &str, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = self.connect(name);
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}
