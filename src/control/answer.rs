//! Answers of the control socket as HTTP/1.1 responses.

use serde_json::{Value, json};

/// A response whose body is complete.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(super) status: u16,
    body: Option<Value>,
    /// The methods that the path supports, for a 405 (RFC 9110 §15.5.6).
    allow: Option<String>,
}

impl Answer {
    /// 204: done, without a body.
    pub(super) fn done() -> Self {
        Answer { status: 204, body: None, allow: None }
    }

    pub(super) fn json(body: Value) -> Self {
        Answer { status: 200, body: Some(body), allow: None }
    }

    /// A refusal whose sentence says how to mend it. The text of an error becomes such a sentence.
    pub(super) fn refusal(status: u16, text: impl AsRef<str>) -> Self {
        Answer { status, body: Some(json!({ "error": sentence(text.as_ref()) })), allow: None }
    }

    pub(super) fn allowing(self, methods: String) -> Self {
        Answer { allow: Some(methods), ..self }
    }

    /// The response as it is sent.
    pub(super) fn bytes(&self, keep_alive: bool) -> Vec<u8> {
        let mut text = status_line(self.status);
        if !keep_alive {
            text.push_str("Connection: close\r\n");
        }
        if let Some(methods) = &self.allow {
            text.push_str(&format!("Allow: {methods}\r\n"));
        }
        match &self.body {
            // A 204 has neither body nor length (RFC 9110 §8.6).
            None => text.push_str("\r\n"),
            Some(body) => {
                let body = format!("{body}\n");
                let length = body.len();
                text.push_str(&format!(
                    "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
                ));
            }
        }
        text.into_bytes()
    }

    /// The head of a stream of this media type, which lasts until the connection closes.
    pub(super) fn stream_head(kind: &str) -> Vec<u8> {
        format!("{}Connection: close\r\nContent-Type: {kind}\r\n\r\n", status_line(200)).into_bytes()
    }

    /// The head of a 101 response with further `fields`; the connection is not HTTP afterwards.
    pub(super) fn upgrade_head(to: &str, fields: &[(&str, String)]) -> Vec<u8> {
        let mut text = format!("{}Connection: Upgrade\r\nUpgrade: {to}\r\n", status_line(101));
        fields.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
        text.push_str("\r\n");
        text.into_bytes()
    }
}

/// The text with a capital letter and a full stop.
fn sentence(text: &str) -> String {
    let mut letters = text.trim_end_matches('.').chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(letters).chain(['.']).collect()
}

fn status_line(status: u16) -> String {
    let reason = match status {
        101 => "Switching Protocols",
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    };
    format!("HTTP/1.1 {status} {reason}\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_how_long_it_is_and_whether_another_may_follow() {
        let text = |answer: Answer, keep| String::from_utf8(answer.bytes(keep)).unwrap();
        assert_eq!(text(Answer::done(), true), "HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(
            text(Answer::json(json!({ "a": 1 })), true),
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n{\"a\":1}\n"
        );
        let refused = text(Answer::refusal(405, "no").allowing("GET, PUT".into()), false);
        assert!(
            refused
                .starts_with("HTTP/1.1 405 Method Not Allowed\r\nConnection: close\r\nAllow: GET, PUT\r\n")
        );
        assert!(refused.ends_with("\r\n\r\n{\"error\":\"No.\"}\n"));
        assert_eq!(Answer::refusal(409, "As it is."), Answer::refusal(409, "as it is"));
    }
}
