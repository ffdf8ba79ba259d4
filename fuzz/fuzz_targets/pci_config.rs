//! A guest that does anything to the PCI bus: reads and writes of every width at configuration space, BARs and what
//! lies around them, resets and restores of damaged state in between.
//!
//! Promises: no panic; what the guest reads from the mirror is what the device would answer; functions are told a
//! BAR's place and its end in turn; what no write may change stays (a saved bus is accepted by a fresh one).
//!
//! Input: steps of 12 bytes: what, width, a 16-bit place, a 64-bit value.
#![no_main]

use std::sync::{Arc, Mutex};

use devices::bus::{Bus, SharedDevice};
use devices::irq::MsiAllocator;
use devices::pci::alloc::Windows;
use devices::pci::host_bridge::HostBridge;
use devices::pci::root::PciRoot;
use devices::pci::testing::{Scratch, TestMirror, TestMsiAllocator};
use devices::pci::{ECAM_SIZE, FUNCTION_ECAM, FunctionAddress};
use libfuzzer_sys::fuzz_target;

const ECAM: u64 = 0xe000_0000;
const LOW: u64 = 0xc000_0000;
const HIGH: u64 = 1 << 32;
const SLOT: u8 = 3;

struct Machine {
    bus: Bus,
    root: Arc<PciRoot>,
    mirror: Arc<TestMirror>,
    scratch: Arc<Mutex<Scratch>>,
}

fn at(device: u8) -> FunctionAddress {
    FunctionAddress::new(device, 0).expect("a device number")
}

fn machine() -> Machine {
    let mirror = Arc::new(TestMirror::default());
    let root = PciRoot::new(Windows { low: LOW..ECAM, high: HIGH..HIGH * 2 }, mirror.clone());
    let allocator: Arc<dyn MsiAllocator> = Arc::new(TestMsiAllocator::default());
    let scratch = Arc::new(Mutex::new(Scratch::new(&allocator).expect("a scratch function")));
    root.insert(at(0), Arc::new(Mutex::new(HostBridge::new()))).expect("a free slot");
    root.insert(at(SLOT), scratch.clone()).expect("a free slot");
    let mut bus = Bus::new();
    root.put_on(&mut bus, ECAM).expect("free addresses");
    Machine { bus, root, mirror, scratch }
}

impl Machine {
    fn address(&self, what: u8, place: u16) -> u64 {
        let place = u64::from(place);
        let function = ECAM + at(SLOT).ecam_offset();
        let bar = |n: usize, window| self.scratch.lock().expect("no panic").places[n].unwrap_or(window);
        match what % 8 {
            0 => function + place % 0x108,
            1 => function + 0x10 + place % 24,
            2 => ECAM + place % 0x108,
            3 => ECAM + place * 16,
            4 => bar(0, LOW) + place % 0x1010,
            5 => bar(2, HIGH) + place % 0x40,
            6 => bar(2, HIGH) + 0xff8 + place % 0x20,
            _ => {
                [LOW, HIGH, ECAM - 0x8000, HIGH * 2 - 0x8000][usize::from(what) >> 3 & 3].wrapping_add(place)
            }
        }
    }

    fn step(&self, step: &[u8; 12]) {
        let [what, width, low, high, value @ ..] = *step;
        let place = u16::from_le_bytes([low, high]);
        let len = 1usize << (width & 3);
        match what >> 5 {
            0..=4 => {
                self.bus.write(self.address(what, place), &value[..len]);
            }
            5 | 6 => {
                let mut data = [0; 8];
                self.bus.read(self.address(what, place), &mut data[..len]);
            }
            _ if what & 1 == 0 => self.root.reset(),
            _ => self.restore_damaged(place, value),
        }
        self.check(at(SLOT).ecam_offset());
    }

    /// A stranger's state may be refused, or taken where only guest-writable bits differ.
    fn restore_damaged(&self, place: u16, value: [u8; 8]) {
        let mut state = self.root.state();
        let count = state.slots.len();
        let bytes = &mut state.slots[usize::from(value[0]) % count].config.bytes;
        bytes[usize::from(place) % 256] ^= value[1];
        bytes.truncate(if value[2] == 0xff { 100 } else { 256 });
        let _ = self.root.restore(&state);
    }

    /// One function's 4 KiB: the mirror says what the device says.
    fn check(&self, offset: u64) {
        let (mut mirrored, mut read) = ([0; FUNCTION_ECAM as usize], [0xaa; FUNCTION_ECAM as usize]);
        self.mirror.read(offset, &mut mirrored);
        self.root.ecam().read(offset, &mut read);
        assert!(mirrored == read, "mirror and device differ at {offset:#x}");
        assert_eq!(self.scratch.lock().expect("no panic").broken_promises, 0);
    }
}

fuzz_target!(|input: &[u8]| {
    let machine = machine();
    for step in input.chunks_exact(12).take(512) {
        machine.step(step.try_into().expect("12 bytes"));
    }
    for function in 0..ECAM_SIZE / FUNCTION_ECAM {
        machine.check(function * FUNCTION_ECAM);
    }

    let copy = self::machine();
    let saved = machine.root.state();
    copy.root.restore(&saved).expect("only writable bits differ from a fresh bus");
    assert_eq!(copy.root.state(), saved);
    let (old, mut new) = (machine.scratch.lock().expect("no panic"), copy.scratch.lock().expect("no panic"));
    assert_eq!(old.places, new.places);
    let table = old.msix.state();
    new.restore_msix(&table).expect("a table of the same size");
    assert_eq!(new.msix.state().vectors.len(), table.vectors.len());
});
