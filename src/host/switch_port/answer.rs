//! The switch's answer to a request for a port: the head of an upgrade, or a refusal with its sentence.
//!
//! Only what this request can be answered with is read here, so that an embedder needs no parser of HTTP.

/// Longest head.
const HEAD: usize = 8 << 10;
/// Longest body of a refusal.
const BODY: usize = 16 << 10;
/// Longest sentence that is shown.
const SENTENCE: usize = 600;

/// What the bytes so far are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The beginning of one.
    Incomplete,
    /// A port of this name; behind `head` bytes come frames.
    Port { head: usize, name: Option<String> },
    /// None, and why.
    Refused(String),
    /// None of a switch, and why.
    Foreign(&'static str),
}

/// Reads `bytes`, to which more may come unless `is_all`.
pub(super) fn read(bytes: &[u8], is_all: bool) -> Answer {
    if !bytes.starts_with(b"HTTP/1.1 ".get(..bytes.len().min(9)).unwrap_or_default()) {
        return Answer::Foreign("its answer is not HTTP");
    }
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let Some((head, behind)) = end.and_then(|end| Some((bytes.get(..end)?, bytes.get(end + 4..)?))) else {
        return match (is_all, bytes.len() > HEAD) {
            (_, true) => Answer::Foreign("its answer has no end"),
            (true, _) => Answer::Foreign("it closes the connection before it has answered"),
            (false, false) => Answer::Incomplete,
        };
    };
    let Ok(head) = std::str::from_utf8(head) else { return Answer::Foreign("its answer is not text") };
    let field = |name: &str| {
        let fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
    };
    if head.starts_with("HTTP/1.1 101 ") {
        if !field("upgrade").is_some_and(|to| to.eq_ignore_ascii_case(super::attach::FRAMES)) {
            return Answer::Foreign("it changes to another protocol");
        }
        let name = field("port-name").filter(|name| is_port_name(name)).map(str::to_owned);
        return Answer::Port { head: bytes.len() - behind.len(), name };
    }
    let length =
        field("content-length").and_then(|length| length.parse::<usize>().ok()).unwrap_or(usize::MAX);
    if behind.len() < length.min(BODY) && !is_all {
        return Answer::Incomplete;
    }
    let body = behind.get(..length.min(behind.len())).unwrap_or_default();
    let sentence = serde_json::from_slice::<serde_json::Value>(body).ok();
    match sentence.as_ref().and_then(|answer| answer.get("error")?.as_str()) {
        Some(sentence) => Answer::Refused(printable(sentence)),
        None => Answer::Foreign("it refuses without a reason"),
    }
}

/// The names that a switch gives: `vm0.net0`, `port1`.
fn is_port_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=127).contains(&name.len()) && name.bytes().all(allowed)
}

/// The sentence as it follows a colon, without what a terminal would obey.
fn printable(sentence: &str) -> String {
    let sentence = sentence.trim().trim_end_matches('.');
    let mut letters = sentence.chars();
    // `Port ...`, and not `VLAN ...`.
    let is_word = letters.next().is_some_and(char::is_uppercase)
        && letters.next().is_some_and(|next| next.is_lowercase() || next == ' ');
    let lowered =
        sentence.chars().take(1).map(|first| if is_word { first.to_ascii_lowercase() } else { first });
    lowered
        .chain(sentence.chars().skip(1))
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .take(SENTENCE)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: minivmm-frames\r\nPort-Name: vm0.net0\r\n\r\n";
    const REFUSAL: &str =
        "HTTP/1.1 409 Conflict\r\nContent-Length: 33\r\n\r\n{\"error\":\"No\\u001b[2J; try `mac=`.\"}";

    #[test]
    fn a_port_begins_behind_the_head() {
        let port = Answer::Port { head: PORT.len(), name: Some("vm0.net0".into()) };
        let with_frames = [PORT.as_bytes(), &[0, 0, 0]].concat();
        assert_eq!(read(&with_frames, false), port);
        for end in 0..PORT.len() {
            assert_eq!(read(&PORT.as_bytes()[..end], false), Answer::Incomplete, "{end}");
        }
        let unnamed = PORT.replace("vm0.net0", "\u{1b}[2J");
        assert!(matches!(read(unnamed.as_bytes(), false), Answer::Port { name: None, .. }));
    }

    #[test]
    fn a_refusal_is_its_sentence_without_what_a_terminal_obeys() {
        let length = REFUSAL.split("\r\n\r\n").nth(1).unwrap().len();
        let refusal = REFUSAL.replace("33", &length.to_string());
        let said = Answer::Refused("no?[2J; try `mac=`".into());
        assert_eq!(read(refusal.as_bytes(), false), said);
        assert_eq!(read(&refusal.as_bytes()[..refusal.len() - 1], false), Answer::Incomplete);
        let without_length = refusal.replace("Content-Length", "X");
        assert_eq!(read(without_length.as_bytes(), false), Answer::Incomplete);
        assert_eq!(read(without_length.as_bytes(), true), said);
    }

    #[test]
    fn a_refusal_goes_on_behind_a_colon() {
        for (sentence, said) in [
            ("Port q1.net0 is there.", "port q1.net0 is there"),
            ("A port.", "a port"),
            ("VLAN 0 is none.", "VLAN 0 is none"),
            ("", ""),
        ] {
            assert_eq!(printable(sentence), said);
        }
    }

    #[test]
    fn what_is_no_answer_of_a_switch_is_told_apart() {
        let foreign = |bytes: &str, is_all| matches!(read(bytes.as_bytes(), is_all), Answer::Foreign(_));
        assert!(foreign("SSH-2.0-OpenSSH\r\n", false) && foreign("", true) && foreign(&PORT[..40], true));
        assert!(foreign(&format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD)), false));
        assert!(foreign(&PORT.replace("minivmm-frames", "minivmm-console"), false));
        assert!(foreign("HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}", false));
        assert!(foreign(&format!("HTTP/1.1 500 No\r\n\r\n{}", "x".repeat(BODY)), false));
    }
}
