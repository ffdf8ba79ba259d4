//! The other end of a control socket, for the verbs of the command.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::request::CONSOLE;
use super::wire::is_late;
use crate::host::connect::connect;

/// How long a machine may take to give its console.
const ATTACH: Duration = Duration::from_secs(10);
/// Bytes of the longest answer that makes sense.
const MAX_ANSWER: usize = 1 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody is there, or nobody any more.
    #[error("the machine has ended, or is about to: its control socket does not answer ({0})")]
    Gone(#[source] io::Error),
    /// No answer in time.
    #[error(
        "the machine did not answer within {0:?}: its process is stopped, or the host has no time for it"
    )]
    Late(Duration),
    /// Something else answers there, or a minivmm that speaks otherwise.
    #[error("the control socket does not speak as minivmm does: {0}")]
    Strange(String),
    /// The machine says no.
    #[error("{reason}")]
    Refused {
        /// Of HTTP.
        status: u16,
        /// In words.
        reason: String,
    },
}

/// A request on its way, with a connection of its own.
#[derive(Debug)]
pub(crate) struct Asked {
    stream: UnixStream,
    heard: Vec<u8>,
}

/// Asks, and gives back what is answered within `limit`.
pub(crate) fn ask(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&Value>,
    limit: Duration,
) -> Result<Value, ClientError> {
    let until = Instant::now() + limit;
    let mut asked = Asked::send(socket, method, path, body, limit)?;
    asked.answer(until.saturating_duration_since(Instant::now()))?.ok_or(ClientError::Late(limit))
}

impl Asked {
    /// Sends a request, for which there is room within `limit`, and does not wait for the answer.
    pub(crate) fn send(
        socket: &Path,
        method: &str,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Self, ClientError> {
        let mut stream = call(socket, limit)?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        match stream.write_all(head.as_bytes()) {
            // It may have answered without listening to all.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(ClientError::Gone(error)),
            _ => Ok(Asked { stream, heard: Vec::new() }),
        }
    }

    /// The answer, if it comes within `limit`; may be asked again if not.
    pub(crate) fn answer(&mut self, limit: Duration) -> Result<Option<Value>, ClientError> {
        let until = Instant::now().checked_add(limit);
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            self.stream.set_read_timeout(left).map_err(ClientError::Gone)?;
            match hear(&mut self.stream, &mut self.heard)? {
                Came::Bytes => {}
                Came::End => return parse(&self.heard).map(Some),
                Came::Nothing => return Ok(None),
            }
        }
    }
}

/// Connects within `limit`.
fn call(socket: &Path, limit: Duration) -> Result<UnixStream, ClientError> {
    connect(socket, Instant::now() + limit).map_err(|error| match error.kind() {
        ErrorKind::TimedOut => ClientError::Late(limit),
        _ => ClientError::Gone(error),
    })
}

/// What came of reading.
enum Came {
    Bytes,
    /// There will be no more.
    End,
    /// Within the connection's time limit.
    Nothing,
}

/// Reads some more of an answer.
fn hear(stream: &mut UnixStream, heard: &mut Vec<u8>) -> Result<Came, ClientError> {
    let mut bytes = [0; 4096];
    match stream.read(&mut bytes) {
        Ok(0) => return Ok(Came::End),
        Ok(n) => heard.extend(bytes.iter().take(n)),
        // Broken off behind its last byte, since it did not read all of ours.
        Err(error) if error.kind() == ErrorKind::ConnectionReset && !heard.is_empty() => {
            return Ok(Came::End);
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => {}
        Err(error) if is_late(&error) => return Ok(Came::Nothing),
        Err(error) => return Err(ClientError::Gone(error)),
    }
    if heard.len() > MAX_ANSWER {
        return Err(ClientError::Strange("its answer has no end".into()));
    }
    Ok(Came::Bytes)
}

/// Both directions of a machine's console.
#[derive(Debug)]
pub(crate) struct Attached {
    /// The connection, and nothing but the console's bytes on it.
    pub(crate) stream: UnixStream,
    /// What came with the answer's head: the console's first bytes.
    pub(crate) heard: Vec<u8>,
}

impl Attached {
    /// Asks for the console and its keyboard.
    pub(crate) fn to(socket: &Path) -> Result<Self, ClientError> {
        let mut stream = call(socket, ATTACH)?;
        let head = format!(
            "GET /v1/console HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: {CONSOLE}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).map_err(ClientError::Gone)?;
        stream.set_read_timeout(Some(ATTACH)).map_err(ClientError::Gone)?;
        let mut heard = Vec::new();
        loop {
            match hear(&mut stream, &mut heard)? {
                Came::Bytes => {}
                Came::End => {
                    return parse(&heard).and(Err(ClientError::Strange("it gives no console".into())));
                }
                Came::Nothing => return Err(ClientError::Late(ATTACH)),
            }
            if let Some(head) = upgraded(&heard)? {
                stream.set_read_timeout(None).map_err(ClientError::Gone)?;
                heard.drain(..head);
                return Ok(Attached { stream, heard });
            }
        }
    }
}

/// Bytes of the head that says the connection is the console's now; `None` while it is not whole or says something else,
/// which ends with the connection.
fn upgraded(bytes: &[u8]) -> Result<Option<usize>, ClientError> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut fields);
    match (response.parse(bytes), response.code) {
        (Ok(httparse::Status::Complete(head)), Some(101)) => Ok(Some(head)),
        (Ok(_), _) => Ok(None),
        (Err(error), _) => Err(ClientError::Strange(error.to_string())),
    }
}

/// Reads a whole answer: null where there is nothing to say.
fn parse(bytes: &[u8]) -> Result<Value, ClientError> {
    if bytes.is_empty() {
        return Err(ClientError::Gone(ErrorKind::UnexpectedEof.into()));
    }
    let strange = |what: &str| ClientError::Strange(what.into());
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut fields);
    let (status, body) = match (response.parse(bytes), response.code) {
        (Ok(httparse::Status::Complete(head)), Some(code)) => (code, bytes.get(head..).unwrap_or_default()),
        (Err(error), _) => return Err(ClientError::Strange(error.to_string())),
        _ => return Err(strange("its answer broke off")),
    };
    let value = match body {
        [] => Value::Null,
        body => serde_json::from_slice(body).map_err(|error| ClientError::Strange(error.to_string()))?,
    };
    match status {
        200..=299 => Ok(value),
        _ => {
            let sentence = value.get("error").and_then(Value::as_str);
            Err(sentence.map_or_else(
                || strange(&format!("status {status} without a reason")),
                |sentence| ClientError::Refused { status, reason: clause(sentence) },
            ))
        }
    }
}

/// A sentence as it goes on behind a name and a colon: without its full stop, and without its capital where that is only the
/// sentence's.
fn clause(sentence: &str) -> String {
    let text = sentence.trim_end_matches('.');
    let mut letters = text.chars();
    let (first, second) = (letters.next(), letters.clone().next());
    match first {
        Some(first) if second.is_none_or(|letter| letter == ' ' || letter.is_lowercase()) => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_values_refusals_are_sentences_and_the_rest_is_strange() {
        assert_eq!(parse(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap(), Value::Null);
        let body = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{\"a\":1}\n";
        assert_eq!(parse(body).unwrap(), serde_json::json!({ "a": 1 }));
        let refused = parse(b"HTTP/1.1 409 Conflict\r\n\r\n{\"error\":\"No.\"}").unwrap_err();
        assert!(matches!(refused, ClientError::Refused { status: 409, reason } if reason == "no"));
        let clauses =
            ["A balloon.", "The machine has ended.", "16 clients wait.", "HTTP it is.", "", "."].map(clause);
        assert_eq!(clauses, ["a balloon", "the machine has ended", "16 clients wait", "HTTP it is", "", ""]);
        assert!(matches!(parse(b""), Err(ClientError::Gone(_))));
        let strange: [&[u8]; 4] = [
            b"SSH-2.0\r\n",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n{",
            b"HTTP/1.1 500 No\r\n\r\n{}",
        ];
        for answer in strange {
            assert!(matches!(parse(answer), Err(ClientError::Strange(_))), "{answer:?}");
        }
    }

    #[test]
    fn a_console_begins_behind_the_head_that_upgrades() {
        let head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: minivmm-console\r\n\r\n";
        assert_eq!(upgraded(&[head.as_slice(), b"login: "].concat()).unwrap(), Some(head.len()));
        assert_eq!(upgraded(&head[..40]).unwrap(), None);
        // Whose end is the connection's.
        assert_eq!(upgraded(b"HTTP/1.1 503 No\r\n\r\n{\"error\":\"No.\"}").unwrap(), None);
        assert!(matches!(upgraded(b"SSH-2.0\r\n\r\n"), Err(ClientError::Strange(_))));
    }
}
