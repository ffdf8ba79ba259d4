//! A guest's driver at the registers of a PCI function.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use devices::component::{Component, State, StateError};
use devices::pci::config::CONFIG_SIZE;
use devices::pci::function::PciFunction;
use devices::pci::registers as reg;
use devices::pci::testing::TestMsiAllocator;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::registers::{COMMON, NOTIFY, TABLE};
use super::ring::{DriverRing, Used};
use super::{Discards, FailureLog, memory};
use crate::counters::Counters;
use crate::device::Device;
use crate::memory::Memory;
use crate::poll::Poller;
use crate::queue::QueueConfig;
use crate::transport::{DeviceHandle, Doorbells, FEATURE_VERSION_1, Platform, VirtioFunction, VirtioPci};
use crate::worker::{MakePoller, Worker};

/// Where rings begin in the guest's memory; buffers are behind them.
const RINGS: u64 = 0x1000;
const BUFFERS: u64 = 4 << 20;
/// Bytes of memory of a guest.
const MEMORY: usize = 16 << 20;

/// A host without ioeventfd: kicks come through the BAR.
#[derive(Debug)]
struct NoDoorbells;

impl Doorbells for NoDoorbells {
    fn attach(&self, _: u64, _: &EventFd) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn detach(&self, _: u64, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

/// A guest with one device.
#[derive(Debug)]
pub struct Guest<P: Poller + 'static> {
    /// The function, as a machine has it.
    pub function: Arc<Mutex<VirtioPci<P>>>,
    /// The guest's memory.
    pub memory: Memory,
    /// What was given back to the host.
    pub discards: Arc<Discards>,
    /// A ring a queue, once [`Guest::activate`] has made them.
    pub rings: Vec<DriverRing>,
    /// Those of before the last reset.
    pub last_rings: Vec<DriverRing>,
    /// The device's failures.
    pub failures: Arc<FailureLog>,
    msi: Arc<TestMsiAllocator>,
    next_buffer: u64,
}

impl<P: Poller + 'static> Guest<P> {
    /// Puts `device` behind a transport, with a worker that waits in what `make` makes.
    pub fn new(device: Box<dyn Device<Poller = P>>, make: MakePoller<P>) -> Self {
        let (memory, discards) = memory(MEMORY);
        Self::with_memory(device, make, memory, discards)
    }

    /// As [`Guest::new`], with a memory that is there already: what a restored machine has.
    pub fn with_memory(
        device: Box<dyn Device<Poller = P>>,
        make: MakePoller<P>,
        memory: Memory,
        discards: Arc<Discards>,
    ) -> Self {
        Self::build(vec![(device, make)], memory, discards)
    }

    /// As [`Guest::new`], with a thread for each of `devices`, which serve an equal share of the queues.
    pub fn with_threads(devices: Vec<(Box<dyn Device<Poller = P>>, MakePoller<P>)>) -> Self {
        let (memory, discards) = memory(MEMORY);
        Self::build(devices, memory, discards)
    }

    fn build(
        devices: Vec<(Box<dyn Device<Poller = P>>, MakePoller<P>)>,
        memory: Memory,
        discards: Arc<Discards>,
    ) -> Self {
        let msi = Arc::new(TestMsiAllocator::default());
        let failures = Arc::new(FailureLog::default());
        let platform = Platform {
            memory: memory.clone(),
            msi: msi.clone(),
            doorbells: Arc::new(NoDoorbells),
            failures: failures.clone(),
        };
        let info = devices.first().expect("a device").0.info();
        let on_worker = |(device, make)| (device, Worker::new("test", make));
        let threads = devices.into_iter().map(on_worker).collect();
        let function = VirtioPci::new(info, threads, &platform).expect("a function");
        let function = Arc::new(Mutex::new(function));
        let mut guest = Guest {
            function,
            memory,
            discards,
            rings: Vec::new(),
            last_rings: Vec::new(),
            failures,
            msi,
            next_buffer: BUFFERS,
        };
        guest.set_bus_master(true);
        guest
    }

    /// Writes the function's command register: its memory answers, and it may reach the guest's or not.
    pub fn set_bus_master(&mut self, master: bool) {
        let command = reg::COMMAND_MEMORY | if master { reg::COMMAND_MASTER } else { 0 };
        self.function().config_mut().guest_write(reg::COMMAND, &command.to_le_bytes());
        self.function().config_written(reg::COMMAND..reg::COMMAND + 2);
    }

    /// The function, locked.
    pub fn function(&self) -> MutexGuard<'_, VirtioPci<P>> {
        self.function.lock().expect("a function that did not panic")
    }

    /// What the device has done on its first thread.
    pub fn counters(&self) -> Arc<Counters> {
        self.function().counters().swap_remove(0)
    }

    /// Reaches the function as a machine's other threads do.
    pub fn handle(&self) -> DeviceHandle {
        let function: Arc<Mutex<dyn VirtioFunction>> = self.function.clone();
        DeviceHandle::new(&function)
    }

    /// What a machine does that is saved and goes on elsewhere: [`Guest::fresh`], and go.
    pub fn moved(mut self, device: Box<dyn Device<Poller = P>>, make: MakePoller<P>) -> Self {
        self.function.quiesce();
        let mut new = self.fresh(device, make);
        new.function.go();
        new
    }

    /// A guest with the same memory and rings, whose function was made of `device` and has taken the state of `self`'s, out of
    /// text. Both are quiesced.
    pub fn fresh(self, device: Box<dyn Device<Poller = P>>, make: MakePoller<P>) -> Self {
        let state = self.function.save().expect("a device that can be saved");
        let text = serde_json::to_string(&state).expect("a state becomes text");
        let config = *self.function().config().bytes();
        let Guest { function, memory, discards, rings, next_buffer, .. } = self;
        drop(function);
        let mut new = Guest::with_memory(device, make, memory, discards);
        (new.rings, new.next_buffer) = (rings, next_buffer);
        new.load(&config, &serde_json::from_str(&text).expect("text becomes a state"))
            .expect("its own state");
        new
    }

    /// Quiesces the function and loads it, with its configuration space, in a machine's order.
    ///
    /// # Errors
    /// The function does not take `state`.
    pub fn load(&mut self, config: &[u8; CONFIG_SIZE], state: &State) -> Result<(), StateError> {
        self.function.quiesce();
        {
            let mut function = self.function();
            let config = *function.config().check(config).expect("the same configuration space");
            function.config_mut().load(&config);
            function.config_written(0..256);
        }
        self.function.load(state)
    }

    /// Resets the device and waits until it says that it is.
    pub fn reset(&mut self) {
        self.set_status(0);
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.status() != 0 {
            assert!(Instant::now() < deadline, "the device does not come back from its reset");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.last_rings = std::mem::take(&mut self.rings);
        self.next_buffer = BUFFERS;
    }

    /// Resets the device and negotiates what it offers of `wanted`, and version 1; what came of it.
    pub fn negotiate(&mut self, wanted: u64) -> u64 {
        self.reset();
        self.set_status(1);
        self.set_status(3);
        let features = self.offered() & (wanted | FEATURE_VERSION_1);
        self.accept(features);
        self.set_status(0xb);
        assert_eq!(self.status(), 0xb, "the device takes features that it offered");
        features
    }

    /// Makes a ring of at most `size` descriptors for every queue, a vector for each if there are so many, and starts the device.
    pub fn activate(&mut self, size: u16) {
        self.activate_with(size, |_, _| {});
    }

    /// As [`Guest::activate`], but the device is told of each queue what `alter` makes of it.
    pub fn activate_with(&mut self, size: u16, mut alter: impl FnMut(u16, &mut QueueConfig)) {
        let queues = self.common_u16(0x12);
        self.enable_vectors();
        self.write(COMMON + 0x10, &0u16.to_le_bytes());
        let mut base = RINGS;
        for queue in 0..queues {
            self.write(COMMON + 0x16, &queue.to_le_bytes());
            let max = self.common_u16(0x18);
            let size = size.min(max);
            let ring = DriverRing::new(&self.memory, base, size, max);
            base = (base + DriverRing::bytes(size)).next_multiple_of(0x1000);
            let mut told = *ring.config();
            alter(queue, &mut told);
            self.write(COMMON + 0x18, &told.size.to_le_bytes());
            let vector = self.vector(queue.into()) as u16;
            self.write(COMMON + 0x1a, &vector.to_le_bytes());
            for (register, address) in [(0x20, told.descriptors), (0x28, told.driver), (0x30, told.device)] {
                self.write(COMMON + register, &(address as u32).to_le_bytes());
                self.write(COMMON + register + 4, &((address >> 32) as u32).to_le_bytes());
            }
            self.write(COMMON + 0x1c, &1u16.to_le_bytes());
            self.rings.push(ring);
        }
        assert!(base <= BUFFERS, "rings fit");
        self.set_status(0xf);
    }

    /// [`Guest::negotiate`], then [`Guest::activate`].
    pub fn start(&mut self, wanted: u64, size: u16) -> u64 {
        let features = self.negotiate(wanted);
        self.activate(size);
        features
    }

    /// Memory for a buffer, filled with `fill`; its address.
    pub fn buffer(&mut self, len: usize, fill: u8) -> u64 {
        if self.next_buffer + len as u64 > MEMORY as u64 {
            self.next_buffer = BUFFERS;
        }
        let address = self.next_buffer;
        self.next_buffer = (address + len as u64).next_multiple_of(16);
        self.memory.write_slice(&vec![fill; len], GuestAddress(address)).expect("room for a buffer");
        address
    }

    /// Puts a chain of buffers into `queue`: those of `readable` with their contents, then writable ones of these lengths.
    /// Head, and addresses of the writable ones.
    pub fn add(&mut self, queue: usize, readable: &[&[u8]], writable: &[usize]) -> (u16, Vec<u64>) {
        let mut pieces = Vec::new();
        for bytes in readable {
            let address = self.buffer(bytes.len(), 0);
            self.memory.write_slice(bytes, GuestAddress(address)).expect("a buffer");
            pieces.push((address, bytes.len() as u32, false));
        }
        let outs: Vec<u64> = writable.iter().map(|len| self.buffer(*len, 0xee)).collect();
        pieces.extend(outs.iter().zip(writable).map(|(address, len)| (*address, *len as u32, true)));
        (self.rings[queue].add(&pieces), outs)
    }

    /// Rings the doorbell of `queue`.
    pub fn kick(&mut self, queue: usize) {
        self.write(NOTIFY + 4 * queue as u64, &(queue as u16).to_le_bytes());
    }

    /// [`Guest::add`], kick, and wait for it to be used: what the device says it wrote, and the writable bytes.
    pub fn request(&mut self, queue: usize, readable: &[&[u8]], writable: &[usize]) -> (Used, Vec<Vec<u8>>) {
        let (_, outs) = self.add(queue, readable, writable);
        self.kick(queue);
        let used = self.rings[queue].wait_used();
        let bytes = outs.iter().zip(writable).map(|(address, len)| self.bytes(*address, *len)).collect();
        (used, bytes)
    }

    /// Bytes of the guest's memory.
    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).expect("the guest's memory");
        bytes
    }

    /// Interrupts that came for `queue`, or for those that share its vector, since the function was made.
    pub fn interrupts(&self, queue: usize) -> usize {
        self.messages(self.vector(queue))
    }

    /// The vector of `queue`: the last one is for all that are left.
    fn vector(&self, queue: usize) -> usize {
        (queue + 1).min(self.vectors() - 1)
    }

    fn vectors(&self) -> usize {
        let control = self.capability(0x11).expect("an MSI-X capability") + 2;
        usize::from(self.function().config_mut().read_u16(control) & 0x7ff) + 1
    }

    /// Interrupts that came for the configuration.
    pub fn config_interrupts(&self) -> usize {
        self.messages(0)
    }

    /// Interrupts that came, whatever for.
    pub fn interrupts_of_all(&self) -> usize {
        self.msi.all().iter().map(|msi| msi.delivered_count()).sum()
    }

    /// Whether the host has no interrupt left for a vector that has none yet.
    pub fn refuse_interrupts(&self, refuse: bool) {
        self.msi.refuse(refuse);
    }

    /// Waits until `what` is so, for ten seconds at most.
    pub fn wait_until(&mut self, what: &str, mut so: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !so(self) {
            assert!(Instant::now() < deadline, "it is not so in time: {what}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn messages(&self, vector: usize) -> usize {
        let of = |(_, data): &(u64, u32)| *data == 0x4000 + vector as u32;
        self.msi.all().iter().flat_map(|msi| msi.delivered()).filter(of).count()
    }

    /// Gives every vector a message of its own and switches MSI-X on.
    fn enable_vectors(&mut self) {
        for vector in 0..self.vectors() as u64 {
            let entry = TABLE + 16 * vector;
            self.write(entry, &0xfee0_0000u32.to_le_bytes());
            self.write(entry + 8, &(0x4000 + vector as u32).to_le_bytes());
            self.write(entry + 12, &0u32.to_le_bytes());
        }
        let control = self.capability(0x11).expect("an MSI-X capability") + 2;
        self.function().config_mut().guest_write(control, &0x8000u16.to_le_bytes());
        self.function().config_written(control..control + 2);
    }
}
