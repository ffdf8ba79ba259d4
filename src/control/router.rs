//! Finds the request that a method and a path name in a table of [`Route`]s.

use std::fmt;
use std::os::unix::net::UnixStream;

use super::answer::Answer;
use super::request_reader::Request;
use super::target::{ByteSource, Console, EventSource};
use crate::machine::Asker;

/// One kind of request to a target of type `T`.
pub struct Route<T: ?Sized + 'static> {
    /// HTTP method.
    pub method: &'static str,
    /// Path, with its leading slash. A segment in braces is a parameter: `/v1/nets/{id}`.
    pub path: &'static str,
    /// Summary in one line.
    pub summary: &'static str,
    /// Statuses of its answers, besides those of every request: see `default` in the OpenAPI file.
    pub statuses: &'static [u16],
    /// Carries it out.
    pub(crate) run: fn(&T, &Call<'_>) -> Reply,
}

/// A request as its route gets it.
pub(crate) struct Call<'a> {
    request: &'a Request,
    parameters: Vec<&'a str>,
}

impl<'a> Call<'a> {
    /// The body.
    pub(crate) fn body(&self) -> &'a [u8] {
        &self.request.body
    }

    /// Who sent it.
    pub(crate) fn asker(&self) -> &'a Asker {
        &self.request.asker
    }

    /// Parameter `index` of the path; empty if the path has fewer.
    pub(crate) fn parameter(&self, index: usize) -> &'a str {
        self.parameters.get(index).copied().unwrap_or_default()
    }

    /// Whether the client asks for an upgrade to `protocol`.
    pub(crate) fn upgrades_to(&self, protocol: &str) -> bool {
        self.request.head.upgrades_to(protocol)
    }
}

/// The outcome of a request.
pub(crate) enum Reply {
    /// An answer.
    Answer(Answer),
    /// An answer once the machine has ended.
    Wait,
    /// Events until the machine has ended.
    Events(Box<dyn EventSource>),
    /// The console until the machine has ended or the client disconnects; with its keyboard or without.
    Console(Box<dyn Console>, Typing),
    /// Bytes of this media type until their source ends or the client has closed its end.
    Bytes(&'static str, Box<dyn ByteSource>),
    /// The connection is handed over, and is not HTTP afterwards.
    Upgrade(Upgrade),
}

/// Whether the client of a console types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Typing {
    /// It does: the connection is upgraded.
    Yes,
    /// It reads only.
    No,
}

/// A connection that is handed over.
pub(crate) struct Upgrade {
    /// The protocol.
    pub(crate) to: &'static str,
    /// Further fields of the head.
    pub(crate) fields: Vec<(&'static str, String)>,
    /// Gets the connection, and the bytes that the client has sent behind its request.
    pub(crate) then: Box<dyn FnOnce(UnixStream, Vec<u8>)>,
}

impl Reply {
    /// A refusal whose sentence says how to mend it.
    pub(crate) fn refusal(status: u16, sentence: impl AsRef<str>) -> Self {
        Reply::Answer(Answer::refusal(status, sentence))
    }

    /// A value as JSON.
    pub(crate) fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_value(value) {
            Ok(value) => Reply::Answer(Answer::json(value)),
            Err(error) => Reply::refusal(500, format!("the answer cannot be written as JSON: {error}")),
        }
    }

    /// Done, without a body.
    pub(crate) fn done() -> Self {
        Reply::Answer(Answer::done())
    }
}

/// Carries out a request that is one of `routes`. Routes of one path stand next to each other.
pub(crate) fn answer<T: ?Sized>(routes: &[Route<T>], target: &T, request: &Request) -> Reply {
    let (method, path) = (request.head.method.as_str(), request.head.path.as_str());
    let on_path = || routes.iter().filter_map(|route| Some((route, parameters(route.path, path)?)));
    if let Some((route, parameters)) = on_path().find(|(route, _)| route.method == method) {
        return (route.run)(target, &Call { request, parameters });
    }
    let methods: Vec<_> = on_path().map(|(route, _)| route.method).collect();
    Reply::Answer(if methods.is_empty() {
        let mut paths: Vec<_> = routes.iter().map(|route| route.path).collect();
        paths.dedup();
        Answer::refusal(404, format!("There is no such path here; there are {}.", paths.join(", ")))
    } else {
        let methods = methods.join(", ");
        Answer::refusal(405, format!("This path takes {methods}.")).allowing(methods)
    })
}

/// The parameters in `path`, if it is one of `pattern`.
fn parameters<'a>(pattern: &str, path: &'a str) -> Option<Vec<&'a str>> {
    let (mut parts, mut found) = (path.split('/'), Vec::new());
    for expected in pattern.split('/') {
        let part = parts.next()?;
        if expected.starts_with('{') && !part.is_empty() {
            found.push(part);
        } else if part != expected {
            return None;
        }
    }
    parts.next().is_none().then_some(found)
}

impl<T: ?Sized> fmt::Debug for Route<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_gives_the_parameters_of_its_pattern() {
        let found = |path| parameters("/v1/nets/{id}/forwards/{port}", path);
        assert_eq!(found("/v1/nets/net0/forwards/1:2"), Some(vec!["net0", "1:2"]));
        for other in ["/v1/nets/net0/forwards", "/v1/nets//forwards/1", "/v1/nets/a/b/forwards/1", "/", ""] {
            assert_eq!(found(other), None, "{other}");
        }
        assert_eq!(found("/v1/nets/net0/forwards/1/"), None);
        assert_eq!(parameters("/v1/wait", "/v1/wait"), Some(Vec::new()));
    }
}
