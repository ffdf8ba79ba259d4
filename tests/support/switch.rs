//! Virtual switches as processes, and clients that play machines on their ports.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::host::Host;
use super::vmm::{Heard, LIMIT, Owned, wait};

/// Bytes of the virtio header.
const HEADER: usize = 12;

/// `minivmm switch NAME` in the foreground.
#[derive(Debug)]
pub(crate) struct Switch {
    child: Owned,
    pub(crate) stderr: Heard,
}

impl Switch {
    /// Starts one and waits until it listens.
    #[track_caller]
    pub(crate) fn start(host: &Host, words: &[&str]) -> Switch {
        let mut child = Owned::start(host.verb(&[&["switch"], words].concat()).stdout(Stdio::null()));
        let (stderr, _) = Heard::listen(child.stderr.take().unwrap());
        let switch = Switch { child, stderr };
        let listens = switch.stderr.wait(|text| text.windows(10).any(|word| word == b"listens on"));
        assert!(listens, "{}", switch.stderr.text());
        switch
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Waits for its end. Returns its status and all that it said.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let status = wait(&mut self.child, || self.stderr.text());
        (status.code(), self.stderr.text())
    }
}

/// The socket of a switch.
pub(crate) fn socket(host: &Host, name: &str) -> PathBuf {
    host.folder().join("switch").join(format!("{name}.sock"))
}

/// Waits until what `minivmm switch show` says of a switch is as wanted.
#[track_caller]
pub(crate) fn until(host: &Host, name: &str, is: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let shown = host.json(&["switch", "show", name, "--json"]);
        if is(&shown) {
            return shown;
        }
        assert!(begun.elapsed() < LIMIT, "{shown:#}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A machine's end of a port.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    number: u8,
    bytes: Vec<u8>,
    /// The head of the answer.
    pub(crate) head: String,
}

/// A frame of an experimental type (IEEE 802 §9.2.3) with or without a tag, to guest `to`, 255 for all.
pub(crate) fn frame(from: u8, to: u8, vlan: Option<u16>, text: &str) -> Vec<u8> {
    let to = if to == 255 { [255; 6] } else { [2, 0, 0, 0, 0, to] };
    let tag = vlan.map(|vlan| [[0x81, 0].as_slice(), &vlan.to_be_bytes()].concat()).unwrap_or_default();
    [to.as_slice(), &[2, 0, 0, 0, 0, from], &tag, &[0x88, 0xb5], text.as_bytes()].concat()
}

impl Client {
    /// Asks for a port of machine `vmNUMBER`, with further fields of the request. The answer's head if it is refused.
    pub(crate) fn attach(socket: &Path, number: u8, options: &str) -> Result<Client, String> {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let comma = if options.is_empty() { "" } else { "," };
        let body = format!(
            "{{\"machine\":\"vm{number}\",\"interface\":\"net0\",\"mac\":\"02:00:00:00:00:{number:02x}\",\"mtu\":1500{comma}{options}}}"
        );
        let head = format!(
            "POST /v1/ports HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: minivmm-frames\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&head));
            head.extend(byte);
        }
        let mut head = String::from_utf8(head).unwrap();
        if !head.starts_with("HTTP/1.1 101 ") {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            stream.read_to_string(&mut head).unwrap();
            return Err(head);
        }
        // The first message says that the port is there.
        let mut first = [0; 6];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(first[..5], [0x80, 0, 0, 2, 1]);
        Ok(Client { stream, number, bytes: Vec::new(), head })
    }

    pub(crate) fn send(&mut self, to: u8, vlan: Option<u16>, text: &str) {
        self.send_frame(&frame(self.number, to, vlan, text));
    }

    pub(crate) fn send_frame(&mut self, frame: &[u8]) {
        let word = u32::try_from(HEADER + frame.len()).unwrap().to_be_bytes();
        self.stream.write_all(&[word.as_slice(), &[0; HEADER], frame].concat()).unwrap();
    }

    /// The next frame; `None` at the end. Control messages are skipped.
    pub(crate) fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some((prefix, rest)) = self.bytes.split_first_chunk::<4>() {
                let word = u32::from_be_bytes(*prefix);
                let (is_control, len) = (word >> 31 == 1, usize::try_from(word & 0x7fff_ffff).unwrap());
                if rest.len() >= len {
                    let message: Vec<u8> = self.bytes.drain(..4 + len).skip(4).collect();
                    if is_control {
                        continue;
                    }
                    return Some(message[HEADER..].to_vec());
                }
            }
            let mut more = [0; 4096];
            match self.stream.read(&mut more) {
                Ok(count @ 1..) => self.bytes.extend(&more[..count]),
                Ok(0) => return None,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The next frame is this one.
    #[track_caller]
    pub(crate) fn hears(&mut self, from: u8, to: u8, vlan: Option<u16>, text: &str) {
        let expected = frame(from, to, vlan, text);
        let got = self.next();
        assert!(
            got.as_ref() == Some(&expected),
            "{:?} is not {text:?}",
            got.map(|got| String::from_utf8_lossy(&got).into_owned())
        );
    }
}
