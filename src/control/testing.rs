//! A machine for tests.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::target::{
    Balloon, BannerLine, ByteSource, Console, ControlTarget, EventSource, Info, Keyboard, NextEvent,
    ResetError,
};
use crate::host::capture::CaptureLimits;
use crate::machine::{
    Asker, BalloonError, BoundForward, CopyLimits, CopyProgress, CopyReport, DiskChangeError, DiskState,
    MachineEvent, MachineState, NetError, NetHandles, PauseError, ResizeError, RevertError, SaveError,
    SaveOptions, Stats,
};
use crate::migration::Patience;
use crate::spec::{DiskGrowth, DiskLimitsChange, PortForward};

/// Accepts every request and records it.
#[derive(Debug, Default)]
pub(super) struct Fake {
    pub(super) calls: Mutex<Vec<&'static str>>,
    pub(super) state: Mutex<MachineState>,
    pub(super) events: Arc<Mutex<VecDeque<MachineEvent>>>,
    pub(super) typed: Arc<Mutex<VecDeque<u8>>>,
    /// The guest reads no input.
    pub(super) reads_nothing: Arc<AtomicBool>,
    balloon: AtomicU64,
    nets: NetHandles,
}

impl Fake {
    /// A tap `net0` and a user network `net1`; nothing is left of them once the machine has ended.
    fn nets(&self) -> &NetHandles {
        if self.state() == MachineState::Ended {
            self.nets.close();
        }
        &self.nets
    }

    fn drive(&self, id: &str) -> Result<(), DiskChangeError> {
        match (id, self.state()) {
            (_, MachineState::Ended) => Err(DiskChangeError::Ended),
            ("vda", _) => Ok(()),
            _ => Err(DiskChangeError::NoDisk { id: id.into(), ids: vec!["vda".into()] }),
        }
    }

    fn record(&self, record: &'static str) {
        self.calls.lock().unwrap().push(record);
    }
}

impl ControlTarget for Fake {
    fn info(&self) -> Info {
        let spec = Some(serde_json::json!({ "kernel": "k" }));
        let name = Some("vm0".to_owned());
        let banner = vec![BannerLine { name: "Kernel".into(), value: "/boot/vmlinuz".into() }];
        Info {
            name,
            pid: 1,
            version: "0",
            state: self.state(),
            full_disks: Vec::new(),
            uptime: 1.5,
            mem: 512,
            cpus: 1,
            console: "ttyS0",
            banner,
            disks: self.disks(),
            forwards: Vec::new(),
            spec,
        }
    }

    fn state(&self) -> MachineState {
        *self.state.lock().unwrap()
    }

    fn pause(&self, limit: Duration) -> Result<(), PauseError> {
        self.record("pause");
        match (self.state(), limit) {
            (MachineState::Ended, _) => Err(PauseError::Ended),
            (_, Duration::ZERO) => Err(PauseError::TimedOut(limit)),
            _ => Ok(()),
        }
    }

    fn resume(&self) -> Result<(), SaveError> {
        self.record("resume");
        Ok(())
    }

    fn reset(&self, _: Duration) -> Result<(), ResetError> {
        self.record("reset");
        match self.state() {
            MachineState::Ended => Err(ResetError::Ended("it panicked".into())),
            _ => Ok(()),
        }
    }

    fn power_button(&self) {
        self.record("power-button");
    }

    fn kill(&self) {
        self.record("kill");
    }

    fn save_and_end(&self, _: &Asker, _: &Path, _: SaveOptions, _: Duration) -> Result<(), SaveError> {
        if self.state() == MachineState::Ended {
            return Err(SaveError::Ended);
        }
        self.record("save");
        Ok(())
    }

    fn snapshot(&self, _: &Asker, _: &Path, _: Duration) -> Result<(), SaveError> {
        if self.state() == MachineState::Ended {
            return Err(SaveError::Ended);
        }
        self.record("snapshot");
        Ok(())
    }

    fn revert(&self, _: &Asker, _: &Path) -> Result<(), RevertError> {
        if self.state() == MachineState::Ended {
            return Err(RevertError::Ended);
        }
        self.record("revert");
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
        if self.state() == MachineState::Ended {
            return Err(SaveError::Ended);
        }
        self.record("save-running");
        Ok(CopyReport::default())
    }

    fn copy_progress(&self) -> Option<CopyProgress> {
        Some(CopyProgress::default())
    }

    fn cancel_copy(&self, called: Option<&str>) {
        self.record(if called.is_some() { "cancel-own" } else { "cancel-copy" });
    }

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
        Balloon { mib: self.balloon.load(Ordering::Relaxed), actual_mib: 0 }
    }

    fn set_balloon(&self, mib: u64) -> Result<(), BalloonError> {
        let mem = "512".parse().unwrap();
        match (self.state(), mib) {
            (_, 512..) => Err(BalloonError::NothingLeft { mib, mem }),
            (MachineState::Ended, _) => Err(BalloonError::Ended),
            _ => {
                self.balloon.store(mib, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    fn stats(&self) -> Option<Stats> {
        (self.state() != MachineState::Ended).then(Stats::sample)
    }

    fn disks(&self) -> Vec<DiskState> {
        if self.state() == MachineState::Ended { Vec::new() } else { vec![DiskState::sample()] }
    }

    fn grow_disk(&self, id: &str, growth: DiskGrowth) -> Result<u64, ResizeError> {
        self.record("grow");
        match (id, growth) {
            ("vda", DiskGrowth::By(more)) => Ok(more),
            ("vda", DiskGrowth::To(wanted)) => Err(ResizeError::Smaller { id: id.into(), has: 4096, wanted }),
            _ => Err(ResizeError::NoDisk { id: id.into(), ids: vec!["vda".into()] }),
        }
    }

    fn set_disk_limits(&self, id: &str, _: DiskLimitsChange) -> Result<(), DiskChangeError> {
        self.record("limits");
        self.drive(id)
    }

    fn eject_disk(&self, id: &str) -> Result<(), DiskChangeError> {
        self.record("eject");
        self.drive(id)
    }

    fn insert_disk(&self, id: &str, _: &Path) -> Result<DiskState, DiskChangeError> {
        self.record("insert");
        self.drive(id).map(|()| DiskState::sample())
    }

    fn forwards(&self) -> Vec<BoundForward> {
        self.nets().forwards()
    }

    fn forwards_of(&self, net: Option<&str>) -> Result<Vec<BoundForward>, NetError> {
        self.nets().forwards_of(net)
    }

    fn add_forward(&self, net: Option<&str>, forward: PortForward) -> Result<BoundForward, NetError> {
        self.nets().add_forward(net, forward)
    }

    fn remove_forward(&self, net: Option<&str>, forward: PortForward) -> Result<BoundForward, NetError> {
        self.nets().remove_forward(net, forward)
    }

    fn capture(&self, net: Option<&str>, limits: CaptureLimits) -> Result<Box<dyn ByteSource>, NetError> {
        Ok(Box::new(self.nets().capture(net, limits)?))
    }

    fn events(&self) -> Box<dyn EventSource> {
        Box::new(FakeEvents(self.events.clone()))
    }

    fn set_terminal_size(&self, columns: u16, rows: u16) {
        self.record(if (columns, rows) == (132, 50) { "size" } else { "other size" });
    }

    fn console(&self) -> Box<dyn Console> {
        Box::new(FakeConsole { typed: self.typed.clone(), reads_nothing: self.reads_nothing.clone() })
    }
}

/// Echoes its input, and ends with the byte 4.
#[derive(Debug, Clone)]
struct FakeConsole {
    typed: Arc<Mutex<VecDeque<u8>>>,
    reads_nothing: Arc<AtomicBool>,
}

impl Console for FakeConsole {
    fn read(&mut self, into: &mut [u8], _: Duration) -> io::Result<usize> {
        std::thread::sleep(Duration::from_millis(5));
        let mut typed = self.typed.lock().unwrap();
        match typed.pop_front() {
            Some(4) => Ok(0),
            Some(byte) => {
                into[0] = byte;
                Ok(1)
            }
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn keyboard(&self) -> Box<dyn Keyboard> {
        Box::new(self.clone())
    }
}

impl Keyboard for FakeConsole {
    fn type_in(&mut self, bytes: &[u8]) -> usize {
        if self.reads_nothing.load(Ordering::Relaxed) {
            return 0;
        }
        // A partial write.
        let taken = bytes.len() / 2 + bytes.len() % 2;
        self.typed.lock().unwrap().extend(&bytes[..taken]);
        taken
    }
}

struct FakeEvents(Arc<Mutex<VecDeque<MachineEvent>>>);

impl EventSource for FakeEvents {
    fn next(&mut self, _: Duration) -> NextEvent {
        let event = self.0.lock().unwrap().pop_front();
        if event.is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        event.map_or(NextEvent::Nothing, NextEvent::Event)
    }
}
