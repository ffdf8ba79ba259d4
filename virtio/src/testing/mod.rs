//! The driver's side of a device, for tests and fuzz targets here and in other crates: rings in a memory of its own, and
//! the registers driven as a guest would.
//!
//! What goes wrong in here panics: it is the test that is wrong then, or the device.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "support of tests: a wrong step shall stop the test where it is"
)]

pub mod conformance;
mod guest;
mod registers;
mod ring;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::GuestAddress;

pub use crate::conformance;
use crate::memory::{Memory, MemoryOwner, Regions};
use crate::shared_registers::Failures;
pub use guest::Guest;
pub use ring::{DriverRing, INDIRECT, NEXT, RawDescriptor, Used, WRITE};

/// Remembers what was given back to the host.
#[derive(Debug, Default)]
pub struct Discards(Mutex<Vec<(u64, u64)>>);

impl Discards {
    /// Start and length of each range, in order.
    pub fn all(&self) -> Vec<(u64, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl MemoryOwner for Discards {
    fn discard(&self, start: GuestAddress, len: u64) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((start.0, len));
        Ok(())
    }
}

/// Remembers which devices failed, and which disks found no room.
#[derive(Debug, Default)]
pub struct FailureLog(Mutex<Vec<(String, String)>>, Mutex<Vec<(String, u64)>>);

impl FailureLog {
    /// How many there were.
    pub fn count(&self) -> usize {
        self.all().len()
    }

    /// Device and reason of each failure, in order.
    pub fn all(&self) -> Vec<(String, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl FailureLog {
    /// The disks that found no room for so many bytes, in order.
    pub fn full(&self) -> Vec<(String, u64)> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Failures for FailureLog {
    fn failed(&self, device: &str, reason: &str) {
        let failure = (device.to_owned(), reason.to_owned());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
    }

    fn full(&self, disk: &str, bytes: u64, _: &io::Error) {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).push((disk.to_owned(), bytes));
    }
}

/// A guest's memory of `len` bytes from address 0 on, and the record of what is given back to the host.
pub fn memory(len: usize) -> (Memory, Arc<Discards>) {
    let regions = Regions::from_ranges(&[(GuestAddress(0), len)]).expect("memory for a test");
    let discards = Arc::new(Discards::default());
    (Memory::new(regions, discards.clone()), discards)
}
