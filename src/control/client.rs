//! The client's end of a control socket, for the verbs of the command.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::request::{CONSOLE, MIGRATION};
use super::wire::is_timeout;
use crate::host::connect::connect;

/// Limit for a machine to open its console.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// The longest answer in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// No process listens on the socket.
    #[error("the machine has ended, or is about to: its control socket does not answer ({0})")]
    Unreachable(#[source] io::Error),
    /// No answer within the limit.
    #[error("the machine did not answer within {0:?}: its process is stopped, or the host is overloaded")]
    TimedOut(Duration),
    /// The answer is not minivmm's protocol.
    #[error("the control socket does not speak minivmm's protocol: {0}")]
    Protocol(String),
    /// The machine refused.
    #[error("{reason}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The reason in words.
        reason: String,
    },
}

/// A request that was sent, with a connection of its own.
#[derive(Debug)]
pub(crate) struct PendingRequest {
    stream: UnixStream,
    received: Vec<u8>,
}

/// Sends a request and waits for the answer, `limit` altogether.
pub(crate) fn request(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&Value>,
    limit: Duration,
) -> Result<Value, ClientError> {
    let until = Instant::now() + limit;
    let mut pending = PendingRequest::send(socket, method, path, body, limit)?;
    pending.answer(until.saturating_duration_since(Instant::now()))?.ok_or(ClientError::TimedOut(limit))
}

impl PendingRequest {
    /// Sends a request within `limit`, and does not wait for the answer.
    pub(crate) fn send(
        socket: &Path,
        method: &str,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Self, ClientError> {
        let mut stream = connect_within(socket, limit)?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        match stream.write_all(head.as_bytes()) {
            // The server may answer before it has read everything.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(ClientError::Unreachable(error)),
            _ => Ok(PendingRequest { stream, received: Vec::new() }),
        }
    }

    /// The answer, or `None` if it does not arrive within `limit`; the caller may try again then.
    pub(crate) fn answer(&mut self, limit: Duration) -> Result<Option<Value>, ClientError> {
        let until = Instant::now().checked_add(limit);
        loop {
            let remaining = until.map(|until| until.saturating_duration_since(Instant::now()));
            if remaining.is_some_and(|remaining| remaining.is_zero()) {
                return Ok(None);
            }
            self.stream.set_read_timeout(remaining).map_err(ClientError::Unreachable)?;
            match read_more(&mut self.stream, &mut self.received)? {
                ReadOutcome::Bytes => {}
                ReadOutcome::End => return parse(&self.received).map(Some),
                ReadOutcome::TimedOut => return Ok(None),
            }
        }
    }
}

/// Connects within `limit`.
fn connect_within(socket: &Path, limit: Duration) -> Result<UnixStream, ClientError> {
    connect(socket, Instant::now() + limit).map_err(|error| match error.kind() {
        ErrorKind::TimedOut => ClientError::TimedOut(limit),
        _ => ClientError::Unreachable(error),
    })
}

/// The outcome of a read.
enum ReadOutcome {
    Bytes,
    /// End of the stream.
    End,
    /// The connection's time limit passed.
    TimedOut,
}

/// Reads more of an answer.
fn read_more(stream: &mut UnixStream, received: &mut Vec<u8>) -> Result<ReadOutcome, ClientError> {
    let mut bytes = [0; 4096];
    match stream.read(&mut bytes) {
        Ok(0) => return Ok(ReadOutcome::End),
        Ok(n) => received.extend(bytes.iter().take(n)),
        // The server closed the connection with unread bytes of ours in it; its answer is complete.
        Err(error) if error.kind() == ErrorKind::ConnectionReset && !received.is_empty() => {
            return Ok(ReadOutcome::End);
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => {}
        Err(error) if is_timeout(&error) => return Ok(ReadOutcome::TimedOut),
        Err(error) => return Err(ClientError::Unreachable(error)),
    }
    if received.len() > MAX_ANSWER {
        return Err(ClientError::Protocol("its answer has no end".into()));
    }
    Ok(ReadOutcome::Bytes)
}

/// An answer that is read as it comes.
#[derive(Debug)]
pub(crate) struct ByteStream {
    /// The connection, which carries the bytes of the answer only. A client that shuts down its writing half wants no more than
    /// the rest.
    pub(crate) stream: UnixStream,
    /// Bytes that were read together with the head of the answer.
    pub(crate) received: Vec<u8>,
}

impl ByteStream {
    /// Sends a request whose answer, if it is not refused, is a stream.
    pub(crate) fn open(socket: &Path, method: &str, path: &str, body: &Value) -> Result<Self, ClientError> {
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (stream, received) = open_stream(socket, &request, 200, "it gives no stream")?;
        Ok(ByteStream { stream, received })
    }
}

/// The stream of a migration.
#[derive(Debug)]
pub(crate) struct MigrationConnection {
    /// The connection, which carries frames only.
    pub(crate) stream: UnixStream,
    /// Frames that were read together with the head of the answer.
    pub(crate) received: Vec<u8>,
}

impl MigrationConnection {
    /// Has a machine migrate.
    pub(crate) fn open(socket: &Path, body: &Value) -> Result<Self, ClientError> {
        let body = body.to_string();
        let request = format!(
            "POST /v1/migrate HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: {MIGRATION}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (stream, received) = open_stream(socket, &request, 101, "it does not migrate")?;
        Ok(MigrationConnection { stream, received })
    }
}

/// Sends `request` and reads the head of its answer, which has this `status` or refuses. What was read behind the head is
/// returned with the connection.
fn open_stream(
    socket: &Path,
    request: &str,
    status: u16,
    otherwise: &str,
) -> Result<(UnixStream, Vec<u8>), ClientError> {
    let mut stream = connect_within(socket, OPEN_LIMIT)?;
    stream.write_all(request.as_bytes()).map_err(ClientError::Unreachable)?;
    stream.set_read_timeout(Some(OPEN_LIMIT)).map_err(ClientError::Unreachable)?;
    let mut received = Vec::new();
    loop {
        match read_more(&mut stream, &mut received)? {
            ReadOutcome::Bytes => {}
            ReadOutcome::End => {
                return parse(&received).and(Err(ClientError::Protocol(otherwise.into())));
            }
            ReadOutcome::TimedOut => return Err(ClientError::TimedOut(OPEN_LIMIT)),
        }
        if let Some(head) = head_length(&received, status)? {
            stream.set_read_timeout(None).map_err(ClientError::Unreachable)?;
            received.drain(..head);
            return Ok((stream, received));
        }
    }
}

/// Both directions of a machine's console.
#[derive(Debug)]
pub(crate) struct ConsoleConnection {
    /// The connection, which carries the console's bytes only.
    pub(crate) stream: UnixStream,
    /// Console output that was read together with the head of the answer.
    pub(crate) received: Vec<u8>,
}

impl ConsoleConnection {
    /// Opens the console for reading and typing.
    pub(crate) fn open(socket: &Path) -> Result<Self, ClientError> {
        let request = format!(
            "GET /v1/console HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: {CONSOLE}\r\n\r\n"
        );
        let (stream, received) = open_stream(socket, &request, 101, "it gives no console")?;
        Ok(ConsoleConnection { stream, received })
    }
}

/// The length of a complete head with this status. `None` while the head is not complete, and for any other
/// status, whose answer ends with the connection.
fn head_length(bytes: &[u8], status: u16) -> Result<Option<usize>, ClientError> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut fields);
    match (response.parse(bytes), response.code) {
        (Ok(httparse::Status::Complete(head)), Some(code)) if code == status => Ok(Some(head)),
        (Ok(_), _) => Ok(None),
        (Err(error), _) => Err(ClientError::Protocol(error.to_string())),
    }
}

/// Parses a complete answer; null for an empty body.
fn parse(bytes: &[u8]) -> Result<Value, ClientError> {
    if bytes.is_empty() {
        return Err(ClientError::Unreachable(ErrorKind::UnexpectedEof.into()));
    }
    let protocol_error = |what: &str| ClientError::Protocol(what.into());
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut fields);
    let (status, body) = match (response.parse(bytes), response.code) {
        (Ok(httparse::Status::Complete(head)), Some(code)) => (code, bytes.get(head..).unwrap_or_default()),
        (Err(error), _) => return Err(ClientError::Protocol(error.to_string())),
        _ => return Err(protocol_error("its answer is incomplete")),
    };
    let value = match body {
        [] => Value::Null,
        body => serde_json::from_slice(body).map_err(|error| ClientError::Protocol(error.to_string()))?,
    };
    match status {
        200..=299 => Ok(value),
        _ => {
            let sentence = value.get("error").and_then(Value::as_str);
            Err(sentence.map_or_else(
                || protocol_error(&format!("status {status} without a reason")),
                |sentence| ClientError::Refused { status, reason: clause(sentence) },
            ))
        }
    }
}

/// A sentence as it follows a name and a colon: without its full stop, and without a capital that only marks
/// the start of the sentence.
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
        assert!(matches!(parse(b""), Err(ClientError::Unreachable(_))));
        let protocol_error: [&[u8]; 4] = [
            b"SSH-2.0\r\n",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n{",
            b"HTTP/1.1 500 No\r\n\r\n{}",
        ];
        for answer in protocol_error {
            assert!(matches!(parse(answer), Err(ClientError::Protocol(_))), "{answer:?}");
        }
    }

    #[test]
    fn a_console_begins_behind_the_head_that_upgrades() {
        let head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: minivmm-console\r\n\r\n";
        assert_eq!(head_length(&[head.as_slice(), b"login: "].concat(), 101).unwrap(), Some(head.len()));
        assert_eq!(head_length(&head[..40], 101).unwrap(), None);
        // This answer ends with the connection.
        assert_eq!(head_length(b"HTTP/1.1 503 No\r\n\r\n{\"error\":\"No.\"}", 101).unwrap(), None);
        assert!(matches!(head_length(b"SSH-2.0\r\n\r\n", 101), Err(ClientError::Protocol(_))));
    }
}
