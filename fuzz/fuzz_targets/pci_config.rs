//! A guest that does anything to the PCI bus: reads and writes of every width at configuration space, BARs and what
//! lies around them, loads of damaged states in between.
//!
//! Promises: no panic; what the guest reads from the mirror is what the device would answer; functions are told a
//! BAR's place and its end in turn; what no write may change stays (a saved bus is accepted by a fresh one).
//!
//! Input: steps of 12 bytes: what, width, a 16-bit place, a 64-bit value.
#![no_main]

use std::sync::{Arc, Mutex};

use devices::bus::{Bus, SharedDevice};
use devices::component::Component;
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
            _ => self.load_damaged(place, value),
        }
        self.check(at(SLOT).ecam_offset());
    }

    /// A tampered state is refused, or taken where only bits differ that a guest may write.
    fn load_damaged(&self, place: u16, value: [u8; 8]) {
        let before = self.root.save().expect("a state");
        let mut state = before.clone();
        let functions = state.data["functions"].as_array_mut().expect("functions");
        let count = functions.len();
        let config = &mut functions[usize::from(value[0]) % count]["config"];
        let mut text = config.as_str().expect("text").to_owned();
        let digit = usize::from(place) % text.len();
        text.replace_range(digit..=digit, &format!("{:x}", value[1] & 0xf));
        text.truncate(if value[2] == 0xff { 201 } else { 512 });
        *config = text.into();
        if self.root.clone().load(&state).is_err() {
            assert_eq!(self.root.save(), Ok(before));
        }
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

    let mut copy = self::machine();
    let saved = machine.root.save().expect("a state");
    copy.root.load(&saved).expect("only writable bits differ from a fresh bus");
    assert_eq!(copy.root.save().as_ref(), Ok(&saved));
    let (old, mut new) = (machine.scratch.lock().expect("no panic"), copy.scratch.lock().expect("no panic"));
    assert_eq!(old.places, new.places);
    let state = old.save().expect("a state");
    new.load(&state).expect("a state of the same function");
    assert_eq!(new.save(), Ok(state));
    new.go();
});
