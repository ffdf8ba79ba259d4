//! The devices behind the ports and the memory that KVM leaves to us.

use std::io::{self, Write};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use kvm_ioctls::VmFd;
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::End;
use super::pci::Function;

pub(super) struct Edge(pub(super) EventFd);

impl Trigger for Edge {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

#[derive(Clone, Default)]
pub(super) struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the vCPUs share.
pub(super) struct Devices {
    pub(super) vm: Arc<VmFd>,
    pub(super) serial: Mutex<Serial<Edge, NoEvents, Output>>,
    pub(super) cmos_index: Mutex<u8>,
    pub(super) clock: bool,
    pub(super) pvpanic_returns: bool,
    pub(super) function: Option<Mutex<Function>>,
    pub(super) ignored_writes: Mutex<usize>,
    pub(super) stop: AtomicBool,
}

impl Devices {
    pub(super) fn port_write(&self, port: u16, data: &[u8]) -> Option<End> {
        match (port, data) {
            (0x3f8..=0x3ff, [byte]) => {
                self.serial.lock().unwrap().write((port - 0x3f8) as u8, *byte).unwrap()
            }
            // SLP_EN and SLP_TYP 5.
            (0x600, [0x34]) => return Some(End::PowerOff),
            (0x602, [1]) => return Some(End::Reset),
            (0x505, [1]) if self.pvpanic_returns => {}
            (0x505, [1]) => return Some(End::Panicked),
            (0x70, [index]) => *self.cmos_index.lock().unwrap() = *index,
            (0x505 | 0x600..=0x602, _) => return Some(End::Failed(format!("{data:x?} to port {port:#x}"))),
            _ => *self.ignored_writes.lock().unwrap() += 1,
        }
        None
    }

    pub(super) fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match (port, data) {
            // `rep insb` is one exit with many bytes. (So are insw and insd, which no guest does here.)
            (0x3f8..=0x3ff, data) => {
                data.fill_with(|| self.serial.lock().unwrap().read((port - 0x3f8) as u8));
            }
            // The last second of the 20th century, in BCD, 24 hours.
            (0x71, [byte]) if self.clock => {
                *byte = match *self.cmos_index.lock().unwrap() {
                    0 | 2 => 0x59,
                    4 => 0x23,
                    7 => 0x31,
                    8 => 0x12,
                    9 => 0x99,
                    0x32 => 0x19,
                    0x0b => 0x02,
                    0x0d => 0x80,
                    _ => 0,
                }
            }
            _ => {}
        }
    }

    pub(super) fn memory_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(function) = &self.function {
            function.lock().unwrap().read(address, data);
        }
    }

    pub(super) fn memory_write(&self, address: u64, data: &[u8]) {
        match &self.function {
            Some(function) => function.lock().unwrap().write(address, data, &self.vm),
            None => *self.ignored_writes.lock().unwrap() += 1,
        }
    }
}
