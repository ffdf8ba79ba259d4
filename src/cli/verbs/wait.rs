//! `minivmm wait`: until a machine has ended.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::{ANSWER, Speaker, VerbError};
use crate::cli::exit::Status;
use crate::cli::report;
use crate::control::client::{ClientError, PendingRequest};
use crate::spec::MachineName;

pub(super) fn wait(name: &MachineName) -> Result<ExitCode, VerbError> {
    let speaker = Speaker::to(name)?;
    let ending = Waiting::begin(&speaker)?.end(Duration::MAX)?;
    let Some(Ending { status, text }) = ending else { return Ok(Status::Failed.into()) };
    if status != Status::Done.code() {
        report::say(&format_args!("minivmm: {name}: {text}\n"));
    }
    Ok(status.into())
}

/// How a machine ended.
pub(super) struct Ending {
    status: u8,
    pub(super) text: String,
}

/// Waits for a machine's end.
pub(super) struct Waiting<'a> {
    speaker: &'a Speaker,
    asked: PendingRequest,
}

impl<'a> Waiting<'a> {
    pub(super) fn begin(speaker: &'a Speaker) -> Result<Self, VerbError> {
        Self::begin_within(speaker, ANSWER)
    }

    /// The same, for which there is room within `limit`.
    pub(super) fn begin_within(speaker: &'a Speaker, limit: Duration) -> Result<Self, VerbError> {
        let asked = PendingRequest::send(&speaker.0.socket, "GET", "/v1/wait", None, limit);
        Ok(Waiting { speaker, asked: asked.map_err(|source| speaker.failed(source))? })
    }

    /// The end, if it comes within `limit`.
    pub(super) fn end(&mut self, limit: Duration) -> Result<Option<Ending>, VerbError> {
        let Some(answer) = self.asked.answer(limit).map_err(|source| self.speaker.failed(source))? else {
            return Ok(None);
        };
        let status = answer.get("status").and_then(Value::as_u64).and_then(|n| u8::try_from(n).ok());
        let text = answer.get("text").and_then(Value::as_str);
        match (status, text) {
            (Some(status), Some(text)) => Ok(Some(Ending { status, text: text.into() })),
            _ => {
                let strange = ClientError::Protocol("its end has no status".into());
                Err(self.speaker.failed(strange))
            }
        }
    }
}
