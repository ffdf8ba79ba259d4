//! The head of a request: parses it and keeps what the server uses.

use super::answer::Answer;
use super::{MAX_BODY, MAX_HEAD};

/// Maximum number of header fields. curl sends four, a browser twenty.
const MAX_FIELDS: usize = 32;

/// The parsed head of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) method: String,
    pub(super) path: String,
    /// Length of the body.
    pub(super) body: usize,
    /// The connection may carry another request after this one.
    pub(super) keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body (RFC 9110 §10.1.1).
    pub(super) expects_continue: bool,
    /// The protocols that the client asks for an upgrade to (RFC 9110 §7.8), as a list with commas.
    pub(super) upgrade: String,
}

impl Head {
    /// Whether the client asks for an upgrade to `protocol`.
    pub(super) fn upgrades_to(&self, protocol: &str) -> bool {
        self.upgrade.split(',').any(|other| other.trim().eq_ignore_ascii_case(protocol))
    }
}

/// The upgrade protocol of a console.
pub(super) const CONSOLE: &str = "minivmm-console";
/// Protocol of an upgraded connection that carries a migration.
pub(super) const MIGRATION: &str = "minivmm-migration";

/// Parses the head at the start of `bytes` and returns it with its length, or `None` while it is incomplete.
///
/// `Host` is not required, against RFC 9112 §3.2: this socket has one host.
pub(super) fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, Answer> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
        Ok(_) => return Err(too_large()),
        Err(httparse::Error::TooManyHeaders) => return Err(too_large()),
        Err(httparse::Error::Version) => {
            return Err(Answer::refusal(505, "This is an HTTP/1.1 server; speak HTTP/1.1 or 1.0."));
        }
        Err(error) => return Err(Answer::refusal(400, format!("This is no HTTP request: {error}."))),
    };
    let (Some(method), Some(path), Some(version)) = (request.method, request.path, request.version) else {
        return Err(Answer::refusal(400, "This is no HTTP request: its first line is not complete."));
    };
    let mut head = Head {
        method: method.into(),
        path: path.into(),
        body: 0,
        keep_alive: version == 1,
        expects_continue: false,
        upgrade: String::new(),
    };
    let mut said = None;
    for field in request.headers.iter() {
        read_field(&mut head, &mut said, field)?;
    }
    head.body = said.unwrap_or(0);
    Ok(Some((head, length)))
}

fn too_large() -> Answer {
    Answer::refusal(
        431,
        format!("The head of a request has at most {MAX_HEAD} bytes and {MAX_FIELDS} fields."),
    )
}

/// Applies one header field. `said` is the value of an earlier Content-Length.
fn read_field(head: &mut Head, said: &mut Option<usize>, field: &httparse::Header<'_>) -> Result<(), Answer> {
    let value = field.value.trim_ascii();
    let has = |word: &str| {
        let mut words = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        words.any(|other| other.eq_ignore_ascii_case(word.as_bytes()))
    };
    match field.name {
        name if name.eq_ignore_ascii_case("content-length") => {
            let length = read_length(value)?;
            // Two different lengths are ambiguous (RFC 9112 §6.3).
            if said.replace(length).is_some_and(|other| other != length) {
                return Err(Answer::refusal(400, "The request has two lengths; send one Content-Length."));
            }
        }
        name if name.eq_ignore_ascii_case("transfer-encoding") => {
            return Err(Answer::refusal(411, "Send the body as it is, with its Content-Length."));
        }
        name if name.eq_ignore_ascii_case("connection") => {
            head.keep_alive &= !has("close");
        }
        name if name.eq_ignore_ascii_case("upgrade") => {
            head.upgrade.push(',');
            head.upgrade.push_str(&String::from_utf8_lossy(value));
        }
        name if name.eq_ignore_ascii_case("expect") => head.expects_continue |= has("100-continue"),
        _ => {}
    }
    Ok(())
}

fn read_length(value: &[u8]) -> Result<usize, Answer> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Answer::refusal(400, "The Content-Length is no number."));
    }
    // A number that overflows usize is too large.
    let length = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
    if length > MAX_BODY {
        return Err(Answer::refusal(413, format!("A body has at most {MAX_BODY} bytes.")));
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Head {
        let (head, length) = parse_head(text.as_bytes()).unwrap().unwrap();
        assert_eq!(length, text.len());
        head
    }

    fn refused(text: &str) -> u16 {
        parse_head(text.as_bytes()).unwrap_err().status
    }

    #[test]
    fn heads_as_clients_send_them_are_understood() {
        let curl =
            head("GET /v1/machine HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/7\r\nAccept: */*\r\n\r\n");
        assert_eq!((curl.method.as_str(), curl.path.as_str(), curl.body), ("GET", "/v1/machine", 0));
        assert!(curl.keep_alive && !curl.expects_continue);
        let put = head(
            "PUT /b HTTP/1.1\r\ncontent-length: 10\r\nConnection: TE, Close\r\nExpect: 100-Continue\r\n\r\n",
        );
        assert_eq!(put.body, 10);
        assert!(!put.keep_alive && put.expects_continue);
        assert!(!head("GET / HTTP/1.0\r\n\r\n").keep_alive);
        assert_eq!(head("GET / HTTP/1.1\nContent-Length: 1\nContent-Length: 1\n\n").body, 1);
    }

    #[test]
    fn a_head_that_is_not_all_there_is_waited_for() {
        let text = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(parse_head(&text.as_bytes()[..end]), Ok(None), "{end}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_or_not_at_all_is_refused() {
        assert_eq!(refused("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), 400);
        for length in ["", "-1", "+1", "0x10", "1,1", "1 1", "ten"] {
            assert_eq!(
                refused(&format!("PUT / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n")),
                400,
                "{length}"
            );
        }
        assert_eq!(refused("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), 411);
        assert_eq!(refused("GET / HTTP/2.0\r\n\r\n"), 505);
        assert_eq!(refused("\0\0\0\0"), 400);
        assert_eq!(refused("GET / HTTP/1.1\r\nno colon\r\n\r\n"), 400);
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_has_come() {
        for length in ["65537", "18446744073709551616", "99999999999999999999999999"] {
            assert_eq!(refused(&format!("PUT / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n")), 413);
        }
        assert_eq!(head("PUT / HTTP/1.1\r\nContent-Length: 65536\r\n\r\n").body, 65536);
        assert_eq!(refused(&format!("GET /{}", "x".repeat(MAX_HEAD))), 431);
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(MAX_HEAD))), 431);
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_FIELDS + 1))), 431);
    }
}
