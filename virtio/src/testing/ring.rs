//! A split ring as a driver keeps it (virtio 1.3 §2.7).

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use crate::memory::Memory;
use crate::queue::QueueConfig;

/// How long to wait for a device before the test has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// Flags of [`RawDescriptor`].
pub const NEXT: u16 = 1;
/// The device may write.
pub const WRITE: u16 = 2;
/// A table of descriptors.
pub const INDIRECT: u16 = 4;

/// A descriptor as it lies in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawDescriptor {
    /// Guest address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next one.
    pub next: u16,
}

/// An element of the used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain.
    pub head: u16,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// A ring, driven.
#[derive(Debug)]
pub struct DriverRing {
    memory: Memory,
    config: QueueConfig,
    next_descriptor: u16,
    avail: u16,
    seen_used: u16,
}

impl DriverRing {
    /// Bytes of memory that a ring of `size` takes.
    pub fn bytes(size: u16) -> u64 {
        let size = u64::from(size);
        (16 * size).next_multiple_of(16) + (6 + 2 * size).next_multiple_of(16) + (6 + 8 * size)
    }

    /// A ring of `size` descriptors at `base`, a multiple of 16.
    pub fn new(memory: &Memory, base: u64, size: u16, max_size: u16) -> Self {
        let descriptors = base;
        let driver = descriptors + 16 * u64::from(size);
        let device = (driver + 6 + 2 * u64::from(size)).next_multiple_of(16);
        let config = QueueConfig { max_size, size, enabled: true, descriptors, driver, device };
        let ring = DriverRing { memory: memory.clone(), config, next_descriptor: 0, avail: 0, seen_used: 0 };
        ring.memory
            .write_slice(&vec![0; Self::bytes(size) as usize], GuestAddress(base))
            .expect("room for a ring");
        ring
    }

    /// Where it is.
    pub fn config(&self) -> &QueueConfig {
        &self.config
    }

    /// Writes descriptor `index` as it is given.
    pub fn set_descriptor(&self, index: u16, descriptor: RawDescriptor) {
        self.write_descriptor(self.config.descriptors + 16 * u64::from(index), descriptor);
    }

    /// Writes a descriptor anywhere: into an indirect table.
    pub fn write_descriptor(&self, at: u64, descriptor: RawDescriptor) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&descriptor.address.to_le_bytes());
        raw[8..12].copy_from_slice(&descriptor.len.to_le_bytes());
        raw[12..14].copy_from_slice(&descriptor.flags.to_le_bytes());
        raw[14..].copy_from_slice(&descriptor.next.to_le_bytes());
        self.memory.write_slice(&raw, GuestAddress(at)).expect("a place for a descriptor");
    }

    /// Makes a chain of `pieces` (address, length, whether the device may write) and makes it available; its head.
    pub fn add(&mut self, pieces: &[(u64, u32, bool)]) -> u16 {
        assert!(!pieces.is_empty() && pieces.len() <= usize::from(self.config.size), "a chain that fits");
        let size = self.config.size;
        let head = self.next_descriptor;
        for (n, (address, len, writable)) in pieces.iter().enumerate() {
            let index = (head + n as u16) % size;
            let last = n + 1 == pieces.len();
            let flags = if *writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let next = if last { 0 } else { (index + 1) % size };
            self.set_descriptor(index, RawDescriptor { address: *address, len: *len, flags, next });
        }
        self.next_descriptor = (head + pieces.len() as u16) % size;
        self.make_available(head);
        head
    }

    /// Makes the chain at `head` available, whatever is there.
    pub fn make_available(&mut self, head: u16) {
        let at = self.config.driver + 4 + 2 * u64::from(self.avail % self.config.size);
        self.memory.write_obj(head.to_le(), GuestAddress(at)).expect("the available ring");
        self.avail = self.avail.wrapping_add(1);
        self.set_available_index(self.avail);
    }

    /// Sets the available ring's index.
    pub fn set_available_index(&mut self, index: u16) {
        self.avail = index;
        let at = GuestAddress(self.config.driver + 2);
        self.memory.store(index.to_le(), at, Ordering::Release).expect("the available ring");
    }

    /// Sets the available ring's flags.
    pub fn set_available_flags(&self, flags: u16) {
        self.memory.write_obj(flags.to_le(), GuestAddress(self.config.driver)).expect("the available ring");
    }

    /// Asks to be interrupted when the used ring's index passes `index` (EVENT_IDX).
    pub fn set_used_event(&self, index: u16) {
        let at = self.config.driver + 4 + 2 * u64::from(self.config.size);
        self.memory.write_obj(index.to_le(), GuestAddress(at)).expect("the available ring");
    }

    /// At which index of the available ring the device wants to be kicked (EVENT_IDX).
    pub fn avail_event(&self) -> u16 {
        let at = self.config.device + 4 + 8 * u64::from(self.config.size);
        self.memory.read_obj(GuestAddress(at)).map(u16::from_le).expect("the used ring")
    }

    /// Flags of the used ring.
    pub fn used_flags(&self) -> u16 {
        self.memory.read_obj(GuestAddress(self.config.device)).map(u16::from_le).expect("the used ring")
    }

    /// Index of the available ring, as the driver has set it.
    pub fn available_index(&self) -> u16 {
        self.avail
    }

    /// Index of the used ring.
    pub fn used_index(&self) -> u16 {
        let at = GuestAddress(self.config.device + 2);
        self.memory.load(at, Ordering::Acquire).map(u16::from_le).expect("the used ring")
    }

    /// The next used element, if there is one.
    pub fn poll_used(&mut self) -> Option<Used> {
        if self.used_index() == self.seen_used {
            return None;
        }
        let at = self.config.device + 4 + 8 * u64::from(self.seen_used % self.config.size);
        let raw: u64 = self.memory.read_obj(GuestAddress(at)).map(u64::from_le).expect("the used ring");
        self.seen_used = self.seen_used.wrapping_add(1);
        Some(Used { head: raw as u16, len: (raw >> 32) as u32 })
    }

    /// The next used element, which must come within ten seconds.
    pub fn wait_used(&mut self) -> Used {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(used) = self.poll_used() {
                return used;
            }
            assert!(Instant::now() < deadline, "the device used no buffer");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}
