//! `minivmm wait`: waits until a machine has ended.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::{ANSWER_LIMIT, MachineClient, VerbError};
use crate::cli::exit::Status;
use crate::cli::report;
use crate::control::client::{ClientError, PendingRequest};
use crate::spec::MachineName;

pub(super) fn wait(name: &MachineName) -> Result<ExitCode, VerbError> {
    let client = MachineClient::find(name)?;
    let ending = EndWaiter::start(&client)?.end(Duration::MAX)?;
    let Some(Ending { status, text }) = ending else { return Ok(Status::Failed.into()) };
    if status != Status::Done.code() {
        report::message(&format_args!("minivmm: {name}: {text}\n"));
    }
    Ok(status.into())
}

/// How a machine ended.
pub(super) struct Ending {
    status: u8,
    pub(super) text: String,
}

/// Waits for a machine's end.
pub(super) struct EndWaiter<'a> {
    client: &'a MachineClient,
    pending: PendingRequest,
}

impl<'a> EndWaiter<'a> {
    pub(super) fn start(client: &'a MachineClient) -> Result<Self, VerbError> {
        Self::start_within(client, ANSWER_LIMIT)
    }

    /// The same with a limit for sending the request.
    pub(super) fn start_within(client: &'a MachineClient, limit: Duration) -> Result<Self, VerbError> {
        let pending = PendingRequest::send(&client.0.socket, "GET", "/v1/wait", None, limit);
        Ok(EndWaiter { client, pending: pending.map_err(|source| client.failed(source))? })
    }

    /// The end, if it comes within `limit`.
    pub(super) fn end(&mut self, limit: Duration) -> Result<Option<Ending>, VerbError> {
        let Some(answer) = self.pending.answer(limit).map_err(|source| self.client.failed(source))? else {
            return Ok(None);
        };
        let status = answer.get("status").and_then(Value::as_u64).and_then(|n| u8::try_from(n).ok());
        let text = answer.get("text").and_then(Value::as_str);
        match (status, text) {
            (Some(status), Some(text)) => Ok(Some(Ending { status, text: text.into() })),
            _ => {
                let protocol_error = ClientError::Protocol("its end has no status".into());
                Err(self.client.failed(protocol_error))
            }
        }
    }
}
