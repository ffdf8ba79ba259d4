//! Requests about the network interfaces of a machine: forwards and captures.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::router::{Call, Reply};
use super::target::{ByteSource, ControlTarget, NextBytes};
use crate::host::capture::{CaptureLimits, CaptureStream, StreamState};
use crate::machine::NetError;
use crate::spec::PortForward;

/// What stands for the id of an interface where only one can be meant.
pub(crate) const ONLY: &str = "-";
/// Media type of a capture.
pub(crate) const PCAPNG: &str = "application/x-pcapng";

/// The id in the path; `None`: the only one.
fn id<'a>(call: &Call<'a>) -> Option<&'a str> {
    Some(call.parameter(0)).filter(|id| *id != ONLY)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Forward {
    forward: PortForward,
}

/// The body of a request for a forward.
pub(crate) fn forward_body(forward: PortForward) -> Value {
    serde_json::json!({ "forward": forward })
}

fn forward(call: &Call<'_>) -> Result<PortForward, Reply> {
    let parsed = serde_json::from_slice(call.body());
    parsed.map(|Forward { forward }| forward).map_err(|error| {
        Reply::refusal(400, format!("Send {{\"forward\": \"8080:80\"}}: {}.", clean(&error)))
    })
}

/// What serde says, without the place in a body of one line.
pub(super) fn clean(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what).to_owned()
}

pub(super) fn forwards(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    match target.forwards_of(id(call)) {
        Ok(forwards) => Reply::json(&forwards),
        Err(error) => refuse(&error),
    }
}

pub(super) fn add_forward(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    forward(call).map_or_else(
        |refusal| refusal,
        |forward| match target.add_forward(id(call), forward) {
            Ok(bound) => Reply::json(&bound),
            Err(error) => refuse(&error),
        },
    )
}

pub(super) fn remove_forward(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    forward(call).map_or_else(
        |refusal| refusal,
        |forward| match target.remove_forward(id(call), forward) {
            Ok(bound) => Reply::json(&bound),
            Err(error) => refuse(&error),
        },
    )
}

/// When a capture ends by itself.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Capture {
    frames: Option<u64>,
    seconds: Option<u64>,
}

/// The body of a request for a capture.
pub(crate) fn capture_body(frames: Option<u64>, seconds: Option<u64>) -> Value {
    serde_json::json!({ "frames": frames, "seconds": seconds })
}

pub(super) fn capture(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    let limits = match capture_limits(call) {
        Ok(limits) => limits,
        Err(refusal) => return refusal,
    };
    match target.capture(id(call), limits) {
        Ok(stream) => Reply::Bytes(PCAPNG, stream),
        Err(error) => refuse(&error),
    }
}

/// What the body of a request for a capture says.
pub(crate) fn capture_limits(call: &Call<'_>) -> Result<CaptureLimits, Reply> {
    let body = call.body();
    let asked = if body.is_empty() { Ok(Capture::default()) } else { serde_json::from_slice(body) };
    match asked {
        Ok(Capture { frames, seconds }) => {
            Ok(CaptureLimits { frames, time: seconds.map(Duration::from_secs) })
        }
        Err(error) => {
            let sentence =
                format!("Send nothing, or {{\"frames\": NUMBER, \"seconds\": NUMBER}}: {}.", clean(&error));
            Err(Reply::refusal(400, sentence))
        }
    }
}

fn refuse(error: &NetError) -> Reply {
    let status = match error {
        NetError::NoNet { .. } | NetError::None { .. } | NetError::NoForward { .. } => 404,
        NetError::TooManyCaptures(_) => 503,
        NetError::NoUserNet { .. }
        | NetError::Several { .. }
        | NetError::Forward(_)
        | NetError::Forwarded(_)
        | NetError::TooManyForwards(_)
        | NetError::Ended => 409,
    };
    Reply::refusal(status, error.to_string())
}

impl ByteSource for CaptureStream {
    fn next(&mut self, buffer: &mut Vec<u8>, limit: Duration) -> NextBytes {
        match CaptureStream::next(self, buffer, limit) {
            StreamState::Bytes => NextBytes::Bytes,
            StreamState::Nothing => NextBytes::Nothing,
            StreamState::Ended => NextBytes::Ended,
        }
    }

    fn finish(&mut self) {
        CaptureStream::finish(self);
    }
}
