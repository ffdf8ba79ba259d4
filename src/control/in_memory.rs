//! A connection in memory, for tests and fuzzing of the protocol with any bytes.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::{Phase, Registration, serve_connection};
use super::routes::MachineService;
use super::server::Ending;
use super::target::{
    Balloon, ByteSource, Console, ControlTarget, EventSource, Info, Keyboard, NextBytes, NextEvent,
    ResetError,
};
use super::wire::Wire;
use super::{Limits, MAX_BODY, MAX_HEAD};
use crate::host::capture::CaptureLimits;
use crate::machine::{
    Asker, BalloonError, BoundForward, CopyLimits, CopyProgress, CopyReport, DiskChangeError, DiskState,
    MachineEvent, MachineState, NetError, PauseError, ResizeError, RevertError, SaveError, SaveOptions,
    Stats,
};
use crate::migration::Patience;
use crate::spec::{DiskGrowth, DiskLimitsChange, PortForward};

/// Everything that the server sends to a client that sends `input` in pieces of `piece` bytes and then
/// disconnects. The machine accepts every request.
pub fn serve_bytes(input: &[u8], piece: usize) -> Vec<u8> {
    let mut memory = MemoryWire { input, piece: piece.max(1), output: Vec::new() };
    let machine = MachineService(Arc::new(StubMachine));
    serve_connection(&mut memory, &SingleConnection, &machine, &Limits::DEFAULT);
    memory.output
}

struct MemoryWire<'a> {
    input: &'a [u8],
    piece: usize,
    output: Vec<u8>,
}

impl Wire for MemoryWire<'_> {
    fn read(&mut self, into: &mut [u8], _: Instant) -> io::Result<usize> {
        assert!(into.len() <= MAX_HEAD + MAX_BODY, "an unbounded read");
        let (now, later) = self.input.split_at(self.piece.min(into.len()).min(self.input.len()));
        into.iter_mut().zip(now).for_each(|(into, byte)| *into = *byte);
        self.input = later;
        Ok(now.len())
    }

    fn write_some(&mut self, bytes: &[u8], _: Instant) -> io::Result<usize> {
        self.output.extend(bytes);
        Ok(bytes.len())
    }

    fn is_readable(&self) -> bool {
        true
    }

    fn finish(&mut self) {}

    fn is_closed(&self) -> bool {
        self.input.is_empty()
    }

    fn shared_stream(&self) -> Option<&UnixStream> {
        None
    }
}

struct SingleConnection;

impl Registration for SingleConnection {
    fn enter(&self, _: Phase) -> bool {
        true
    }

    fn ending(&self) -> Option<Ending> {
        None
    }

    fn stops_within(&self, _: Duration) -> bool {
        true
    }
}

#[derive(Debug)]
struct StubMachine;

impl ControlTarget for StubMachine {
    fn info(&self) -> Info {
        Info {
            name: None,
            pid: 1,
            version: "0",
            state: self.state(),
            full_disks: Vec::new(),
            uptime: 0.0,
            mem: 512,
            cpus: 1,
            console: "ttyS0",
            banner: Vec::new(),
            disks: Vec::new(),
            forwards: Vec::new(),
            spec: None,
        }
    }

    fn state(&self) -> MachineState {
        MachineState::Running
    }

    fn pause(&self, _: Duration) -> Result<(), PauseError> {
        Ok(())
    }

    fn resume(&self) -> Result<(), SaveError> {
        Ok(())
    }

    fn reset(&self, _: Duration) -> Result<(), ResetError> {
        Ok(())
    }

    fn power_button(&self) {}

    fn kill(&self) {}

    fn snapshot(&self, _: &Asker, _: &Path, _: Duration) -> Result<(), SaveError> {
        Ok(())
    }

    fn revert(&self, _: &Asker, _: &Path) -> Result<(), RevertError> {
        Ok(())
    }

    fn save_and_end(&self, _: &Asker, _: &Path, _: SaveOptions, _: Duration) -> Result<(), SaveError> {
        Ok(())
    }

    fn save_running(
        &self,
        _: &Asker,
        _: &Path,
        _: SaveOptions,
        _: CopyLimits,
        _: Duration,
    ) -> Result<CopyReport, SaveError> {
        Ok(CopyReport::default())
    }

    fn copy_progress(&self) -> Option<CopyProgress> {
        None
    }

    fn cancel_copy(&self, _: Option<&str>) {}

    fn migrate(
        &self,
        _: &Asker,
        _: SaveOptions,
        _: CopyLimits,
        _: Patience,
    ) -> Box<dyn FnOnce(UnixStream, Vec<u8>)> {
        Box::new(|_, _| ())
    }

    fn balloon(&self) -> Balloon {
        Balloon { mib: 0, actual_mib: 0 }
    }

    fn set_balloon(&self, mib: u64) -> Result<(), BalloonError> {
        let mem = crate::spec::MemSize::default();
        if mib < 512 { Ok(()) } else { Err(BalloonError::NothingLeft { mib, mem }) }
    }

    fn stats(&self) -> Option<Stats> {
        Some(Stats::default())
    }

    fn disks(&self) -> Vec<DiskState> {
        Vec::new()
    }

    fn grow_disk(&self, id: &str, _: DiskGrowth) -> Result<u64, ResizeError> {
        Err(ResizeError::NoDisk { id: id.into(), ids: Vec::new() })
    }

    fn set_disk_limits(&self, _: &str, _: DiskLimitsChange) -> Result<(), DiskChangeError> {
        Ok(())
    }

    fn eject_disk(&self, id: &str) -> Result<(), DiskChangeError> {
        Err(DiskChangeError::NoDisk { id: id.into(), ids: Vec::new() })
    }

    fn insert_disk(&self, id: &str, _: &Path) -> Result<DiskState, DiskChangeError> {
        self.eject_disk(id).and(Err(DiskChangeError::Ended))
    }

    fn forwards(&self) -> Vec<BoundForward> {
        Vec::new()
    }

    fn forwards_of(&self, net: Option<&str>) -> Result<Vec<BoundForward>, NetError> {
        Err(NetError::NoNet { id: net.unwrap_or_default().into(), ids: Vec::new() })
    }

    fn add_forward(&self, net: Option<&str>, _: PortForward) -> Result<BoundForward, NetError> {
        Err(NetError::NoNet { id: net.unwrap_or_default().into(), ids: Vec::new() })
    }

    fn remove_forward(&self, net: Option<&str>, _: PortForward) -> Result<BoundForward, NetError> {
        Err(NetError::NoNet { id: net.unwrap_or_default().into(), ids: Vec::new() })
    }

    fn capture(&self, net: Option<&str>, _: CaptureLimits) -> Result<Box<dyn ByteSource>, NetError> {
        match net {
            None => Ok(Box::new(OneItem(true))),
            Some(id) => Err(NetError::NoNet { id: id.into(), ids: Vec::new() }),
        }
    }

    fn events(&self) -> Box<dyn EventSource> {
        Box::new(OneItem(true))
    }

    fn set_terminal_size(&self, _: u16, _: u16) {}

    fn console(&self) -> Box<dyn Console> {
        Box::new(OneItem(true))
    }
}

impl Console for OneItem {
    fn read(&mut self, into: &mut [u8], _: Duration) -> io::Result<usize> {
        let output: &[u8] = if std::mem::take(&mut self.0) { b"ready\n" } else { b"" };
        into.iter_mut().zip(output).for_each(|(into, byte)| *into = *byte);
        Ok(output.len())
    }

    fn keyboard(&self) -> Box<dyn Keyboard> {
        Box::new(OneItem(false))
    }
}

impl Keyboard for OneItem {
    fn type_in(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }
}

struct OneItem(bool);

impl ByteSource for OneItem {
    fn next(&mut self, buffer: &mut Vec<u8>, _: Duration) -> NextBytes {
        *buffer = b"frames".to_vec();
        if std::mem::take(&mut self.0) { NextBytes::Bytes } else { NextBytes::Ended }
    }

    fn finish(&mut self) {}
}

impl EventSource for OneItem {
    fn next(&mut self, _: Duration) -> NextEvent {
        if std::mem::take(&mut self.0) { NextEvent::Event(MachineEvent::Exited) } else { NextEvent::Ended }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(input: &str, piece: usize) -> String {
        String::from_utf8(serve_bytes(input.as_bytes(), piece)).unwrap()
    }

    #[test]
    fn requests_in_a_row_are_answered_in_order_however_they_are_cut() {
        let input = "PUT /v1/balloon HTTP/1.1\r\nContent-Length: 12\r\n\r\n{\"mib\": 511}\
                     GET /v1/balloon HTTP/1.1\r\n\r\nPOST /v1/pause HTTP/1.1\r\nConnection: close\r\n\r\n\
                     GET /v1/machine HTTP/1.1\r\n\r\n";
        let whole = output(input, input.len());
        let answers: Vec<_> =
            whole.split("HTTP/1.1 ").map(|answer| answer.get(..3).unwrap_or_default()).collect();
        assert_eq!(answers, ["", "204", "200", "204"], "{whole}");
        for piece in 1..60 {
            assert_eq!(output(input, piece), whole, "{piece}");
        }
    }

    #[test]
    fn a_request_that_is_none_is_answered_once_and_is_the_last() {
        for (input, status) in [
            ("nonsense\r\n\r\nGET / HTTP/1.1\r\n\r\n", 400),
            ("GET /v1/nothing HTTP/1.0\r\n\r\n", 404),
            ("DELETE /v1/balloon HTTP/1.0\r\n\r\n", 405),
            ("PUT /v1/balloon HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}", 400),
            ("PUT /v1/balloon HTTP/1.0\r\nContent-Length: 11\r\n\r\n{\"mib\":512}", 400),
            ("PUT /v1/balloon HTTP/1.0\r\nContent-Length: 10\r\n\r\n{\"mib\":-1}", 400),
            ("POST /v1/pause HTTP/1.0\r\nContent-Length: 15\r\n\r\n{\"timeout\":601}", 400),
            ("POST /v1/pause HTTP/1.0\r\nContent-Length: 9\r\n\r\n{\"nap\":1}", 400),
        ] {
            let output = output(input, 7);
            assert!(output.starts_with(&format!("HTTP/1.1 {status} ")), "{input}: {output}");
            assert_eq!(output.matches("HTTP/1.1 ").count(), 1, "{input}: {output}");
            assert!(output.contains("Connection: close"), "{output}");
        }
        assert!(output("DELETE /v1/balloon HTTP/1.1\r\n\r\n", 99).contains("\r\nAllow: GET, PUT\r\n"));
        let long = format!("GET /{}", "x".repeat(1 << 20));
        assert!(output(&long, 4096).starts_with("HTTP/1.1 431 "));
    }

    #[test]
    fn a_client_that_expects_to_be_asked_for_the_body_is_asked() {
        let input =
            "PUT /v1/balloon HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n{\"mib\":5}";
        assert!(output(input, 1).starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 "));
    }

    #[test]
    fn events_are_lines_until_the_end_of_the_connection() {
        let output = output("GET /v1/events HTTP/1.1\r\n\r\n", 99);
        assert!(output.ends_with("\r\n\r\n{\"event\":\"exited\"}\n"), "{output}");
        assert!(output.contains("Connection: close\r\n"));
    }
}
