//! The bus as a guest finds it: everything goes through ECAM and windows, as a vCPU's accesses would.

use std::sync::{Arc, Mutex};

use super::alloc::Windows;
use super::bar::{Bar, BarError, BarIndex, BarKind};
use super::config::{CapabilityTooLong, ConfigSpace, Identity};
use super::host_bridge::HostBridge;
use super::registers as reg;
use super::root::{PciError, PciRoot};
use super::testing::{Scratch, TestMirror, TestMsiAllocator};
use super::*;
use crate::bus::{Bus, SharedDevice};
use crate::component::{Component, State, StateError};
use crate::irq::MsiAllocator;
use proptest::prelude::*;

const ECAM: u64 = 0xe000_0000;
const LOW: u64 = 0xc000_0000;
const HIGH: u64 = 1 << 32;
const SCRATCH_SLOT: u8 = 3;

/// A machine of two functions: host bridge and scratch.
struct Rig {
    bus: Bus,
    root: Arc<PciRoot>,
    mirror: Arc<TestMirror>,
    scratch: Arc<Mutex<Scratch>>,
    host: Arc<TestMsiAllocator>,
}

fn at(device: u8, function: u8) -> FunctionAddress {
    FunctionAddress::new(device, function).unwrap()
}

fn scratch(host: &Arc<TestMsiAllocator>) -> Arc<Mutex<Scratch>> {
    let allocator: Arc<dyn MsiAllocator> = host.clone();
    Arc::new(Mutex::new(Scratch::new(&allocator).unwrap()))
}

fn rig() -> Rig {
    let mirror = Arc::new(TestMirror::default());
    let windows = Windows { low: LOW..ECAM, high: HIGH..HIGH * 2 };
    let root = PciRoot::new(windows, mirror.clone());
    let host = Arc::new(TestMsiAllocator::default());
    let scratch = scratch(&host);
    root.insert(at(0, 0), Arc::new(Mutex::new(HostBridge::new()))).unwrap();
    root.insert(at(SCRATCH_SLOT, 0), scratch.clone()).unwrap();
    let mut bus = Bus::new();
    root.put_on(&mut bus, ECAM).unwrap();
    Rig { bus, root, mirror, scratch, host }
}

impl Rig {
    fn register(&self, register: u16) -> u64 {
        at(SCRATCH_SLOT, 0).ecam_offset() + u64::from(register)
    }
    /// As the guest does: from the mirror; and checked against the device on the bus.
    fn config(&self, register: u16) -> u32 {
        let (mut mirrored, mut read) = ([0; 4], [0; 4]);
        self.mirror.read(self.register(register), &mut mirrored);
        self.bus.read(ECAM + self.register(register), &mut read);
        assert_eq!(mirrored, read);
        u32::from_le_bytes(read)
    }
    fn set_config(&self, register: u16, value: u32) {
        self.bus.write(ECAM + self.register(register), &value.to_le_bytes());
    }
    fn read(&self, address: u64) -> u32 {
        let mut data = [0; 4];
        self.bus.read(address, &mut data);
        u32::from_le_bytes(data)
    }
    fn write(&self, address: u64, value: u32) {
        self.bus.write(address, &value.to_le_bytes());
    }
    fn enable(&self) {
        self.set_config(reg::COMMAND, u32::from(reg::COMMAND_MEMORY | reg::COMMAND_MASTER));
    }
    fn places(&self) -> (Option<u64>, Option<u64>) {
        let scratch = self.scratch.lock().unwrap();
        assert_eq!(scratch.broken_promises, 0);
        (scratch.places[0], scratch.places[2])
    }
    /// The guest's view of all configuration space is the device's.
    fn assert_mirrored(&self) {
        let ecam = self.root.ecam();
        let (mut mirrored, mut read) = ([0; 4096], [0xaa; 4096]);
        for offset in (0..ECAM_SIZE).step_by(4096) {
            self.mirror.read(offset, &mut mirrored);
            ecam.read(offset, &mut read);
            assert!(mirrored == read, "function at {offset:#x}");
        }
    }
}

#[test]
fn every_configuration_byte_reads_the_same_from_mirror_and_device() {
    let rig = rig();
    rig.enable();
    rig.assert_mirrored();
    assert_eq!(rig.config(0), 0x10ff_1af4);
    for device in [1, 2, 31] {
        assert_eq!(rig.read(ECAM + at(device, 0).ecam_offset()), u32::MAX, "device {device} is absent");
        assert_eq!(rig.read(ECAM + at(device, 0).ecam_offset() + 4), 0);
    }
}

#[test]
fn a_scan_finds_header_class_and_every_capability() {
    let rig = rig();
    assert_eq!(rig.config(reg::REVISION), 0xff00_0001);
    assert_eq!(rig.config(reg::SUBSYSTEM), 0x0001_1af4);
    assert_eq!(rig.config(reg::COMMAND) >> 16, 1 << 4, "a capability list");
    let mut at = rig.config(reg::CAPABILITIES) as u16 & 0xff;
    let mut found = Vec::new();
    while at != 0 {
        assert_eq!(at % 4, 0);
        found.push(rig.config(at) as u8);
        at = (rig.config(at) >> 8) as u16 & 0xff;
    }
    assert_eq!(found, [0x11, 0x09]);
    assert_eq!(rig.read(ECAM), 0x0008_1b36, "the host bridge");
}

#[test]
fn bars_size_by_all_ones_through_the_mirror() {
    let rig = rig();
    let original = [0, 4, 8, 12, 16, 20].map(|n| rig.config(reg::BAR0 + n));
    assert_eq!(original, [LOW as u32, 0, 4, 1, 0, 0], "preset, with their flags");
    for n in (0..24).step_by(4) {
        rig.set_config(reg::BAR0 + n, u32::MAX);
    }
    assert_eq!(
        [0, 4, 8, 12, 16, 20].map(|n| rig.config(reg::BAR0 + n)),
        [!0xfff, 0, !0x3fff | 4, u32::MAX, 0, 0]
    );
    rig.set_config(0x30, u32::MAX);
    assert_eq!(rig.config(0x30), 0, "no ROM");
}

#[test]
fn a_bar_answers_only_while_memory_is_enabled() {
    let rig = rig();
    assert_eq!((rig.read(LOW), rig.places()), (u32::MAX, (None, None)));
    rig.enable();
    assert_eq!((rig.read(LOW), rig.places()), (0, (Some(LOW), Some(HIGH))));
    rig.write(LOW + 4, 0x1234_5678);
    assert_eq!(rig.read(LOW + 4), 0x1234_5678);
    rig.set_config(reg::COMMAND, 0);
    assert_eq!((rig.read(LOW + 4), rig.places()), (u32::MAX, (None, None)));
}

#[test]
fn a_bar_moves_and_its_function_is_told() {
    let rig = rig();
    rig.enable();
    rig.write(LOW + 4, 7);
    rig.set_config(reg::BAR0, 0xd000_0000);
    assert_eq!((rig.read(LOW + 4), rig.read(0xd000_0004)), (u32::MAX, 7));
    rig.set_config(reg::BAR0 + 8, 0x8000_0000);
    assert_eq!(rig.places(), (Some(0xd000_0000), Some(HIGH + 0x8000_0000)));
    assert_eq!(rig.read(HIGH + 0x8000_000c), 1, "MSI-X vector control moved along");
}

#[test]
fn a_bar_outside_the_windows_or_over_another_is_nowhere() {
    let rig = rig();
    rig.enable();
    for base in [0, 0x10_0000, 0xbfff_f000, ECAM, 0xfee0_0000, 0xffff_f000] {
        rig.set_config(reg::BAR0, base as u32);
        assert_eq!(rig.places().0, None, "{base:#x}");
    }
    rig.assert_mirrored();
    rig.set_config(reg::BAR0 + 12, 0);
    rig.set_config(reg::BAR0 + 8, LOW as u32);
    rig.set_config(reg::BAR0, LOW as u32 + 0x1000);
    assert_eq!(rig.places(), (Some(LOW + 0x1000), None), "the first BAR wins");
    assert_eq!(rig.read(LOW), u32::MAX);
    rig.set_config(reg::BAR0, LOW as u32 + 0x4000);
    assert_eq!(rig.places(), (Some(LOW + 0x4000), Some(LOW)), "out of the way");
    rig.set_config(reg::BAR0 + 12, u32::MAX);
    rig.set_config(reg::BAR0 + 8, u32::MAX);
    assert_eq!(rig.places().1, None, "the end of the address space does not wrap");
}

#[test]
fn an_access_across_the_end_of_a_bar_is_nobodys() {
    let rig = rig();
    rig.enable();
    rig.write(LOW + 0xffe, 0x0101_0101);
    assert_eq!(rig.read(LOW + 0xffe), u32::MAX);
    assert_eq!(rig.read(LOW + 0xffc), 0);
}

#[test]
fn an_access_across_two_functions_reaches_both() {
    let rig = rig();
    let end = ECAM + at(SCRATCH_SLOT, 0).ecam_offset();
    let mut data = [0; 8];
    rig.bus.read(end - 4, &mut data);
    assert_eq!(data, [0, 0, 0, 0, 0xf4, 0x1a, 0xff, 0x10]);
    rig.bus.write(end - 4, &[0xff; 8]);
    rig.assert_mirrored();
}

#[test]
fn two_functions_that_swap_their_bars_never_meet() {
    let rig = rig();
    let other = scratch(&rig.host);
    rig.root.insert(at(4, 0), other.clone()).unwrap();
    rig.enable();
    let command = ECAM + at(4, 0).ecam_offset() + u64::from(reg::COMMAND);
    rig.write(command, 2);
    assert_eq!(other.lock().unwrap().places[0], Some(LOW + 0x1000));
    rig.set_config(reg::BAR0, LOW as u32 + 0x1000);
    assert_eq!((rig.places().0, other.lock().unwrap().places[0]), (Some(LOW + 0x1000), None));
    rig.write(ECAM + at(4, 0).ecam_offset() + u64::from(reg::BAR0), LOW as u32);
    assert_eq!(other.lock().unwrap().places[0], Some(LOW));
    assert_eq!(other.lock().unwrap().broken_promises, 0);
}

#[test]
fn functions_of_one_device_are_announced_on_the_first() {
    let rig = rig();
    assert_eq!(rig.config(reg::CACHE_LINE) >> 16 & 0x80, 0);
    rig.root.insert(at(SCRATCH_SLOT, 2), scratch(&rig.host)).unwrap();
    assert_eq!(rig.config(reg::CACHE_LINE) >> 16 & 0x80, 0x80);
    let taken = rig.root.insert(at(SCRATCH_SLOT, 2), scratch(&rig.host));
    assert_eq!(taken, Err(PciError::Taken(at(SCRATCH_SLOT, 2))));
    rig.assert_mirrored();
}

#[test]
fn a_bus_with_full_windows_says_so() {
    let root = PciRoot::new(Windows { low: 0..0x1000, high: 0..0 }, Arc::new(TestMirror::default()));
    let host = Arc::new(TestMsiAllocator::default());
    assert!(matches!(root.insert(at(1, 0), scratch(&host)), Err(PciError::WindowFull(_))));
    root.put_on(&mut Bus::new(), 0x1000).unwrap();
    assert!(root.put_on(&mut Bus::new(), 0xfff).is_err(), "configuration space over a window");
}

#[test]
fn an_interrupt_goes_from_a_bar_write_to_the_host() {
    let rig = rig();
    rig.enable();
    let msix = rig.config(reg::CAPABILITIES) as u16 & 0xff;
    rig.set_config(msix, 1 << 31);
    for (word, value) in [0xfee0_0000, 0, 0x30, 0].into_iter().enumerate() {
        rig.write(HIGH + 4 * word as u64, value);
    }
    rig.bus.write(LOW + 0xfff, &[1]);
    assert_eq!(rig.host.all()[0].delivered(), [(0xfee0_0000, 0x30)]);
}

#[test]
fn a_saved_bus_comes_back_with_its_places() {
    let old = rig();
    old.enable();
    old.set_config(reg::BAR0, 0xd000_0000);
    let saved = old.root.save().unwrap();
    let mut new = rig();
    new.root.load(&saved).unwrap();
    assert_eq!(new.root.save().unwrap(), saved);
    assert_eq!(new.places(), (Some(0xd000_0000), Some(HIGH)));
    new.assert_mirrored();
}

#[test]
fn a_function_raises_what_is_pending_when_it_goes() {
    let old = rig();
    old.enable();
    old.set_config(old.config(reg::CAPABILITIES) as u16 & 0xff, 3 << 30);
    for (word, value) in [0xfee0_0000, 0, 0x30, 0].into_iter().enumerate() {
        old.write(HIGH + 4 * word as u64, value);
    }
    old.bus.write(LOW + 0xfff, &[1]);
    let (bus, scratch) = (old.root.save().unwrap(), old.scratch.save().unwrap());
    for masked in [true, false] {
        let mut new = rig();
        let mut bus = bus.clone();
        if !masked {
            let config = bus.data["functions"][1]["config"].as_str().unwrap();
            bus.data["functions"][1]["config"] = config.replacen("02c0", "0280", 1).into();
        }
        new.root.load(&bus).unwrap();
        new.scratch.load(&scratch).unwrap();
        assert_eq!(new.scratch.save().unwrap(), scratch);
        let delivered = |rig: &Rig| rig.host.all().iter().map(|irq| irq.delivered_count()).sum::<usize>();
        assert_eq!(delivered(&new), 0, "a machine is at rest while it is loaded");
        new.scratch.go();
        assert_eq!(delivered(&new), usize::from(!masked));
    }
}

#[test]
fn a_damaged_or_foreign_bus_is_refused_and_changes_nothing() {
    let mut rig = rig();
    rig.enable();
    let good = rig.root.save().unwrap();
    let fresh = self::rig().root.save().unwrap();
    let change = |to: &dyn Fn(&mut serde_json::Value)| {
        let mut state = fresh.clone();
        to(&mut state.data["functions"]);
        state
    };
    let hex = |functions: &serde_json::Value| functions[1]["config"].as_str().unwrap().to_owned();
    for (state, reason) in [
        (State { version: 7, ..fresh.clone() }, "version 7"),
        (change(&|functions| drop(functions.as_array_mut().unwrap().pop())), "other slots"),
        (change(&|functions| functions[1]["device"] = 200.into()), "other slots"),
        (
            change(&|functions| functions[1]["config"] = format!("00{}", &hex(functions)[2..]).into()),
            "00:03.0",
        ),
        (change(&|functions| functions[0]["config"] = "00".repeat(255).into()), "255 bytes"),
        (change(&|functions| functions[0]["config"] = "xx".into()), "hexadecimal"),
    ] {
        let error = rig.root.load(&state).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(rig.root.save().unwrap(), good);
        assert_eq!(rig.places(), (Some(LOW), Some(HIGH)));
    }
    assert!(matches!(rig.scratch.load(&good), Err(StateError::Kind { .. })));
}

fn identity() -> Identity {
    Identity { vendor: 1, device: 2, revision: 0, class: 0, subsystem_vendor: 0, subsystem: 0 }
}

/// Remembers every publication.
#[derive(Debug, Default)]
struct Journal(Mutex<Vec<(u64, Vec<u8>)>>);

impl EcamMirror for Journal {
    fn publish(&self, offset: u64, bytes: &[u8]) {
        self.0.lock().unwrap().push((offset, bytes.to_vec()));
    }
}

#[test]
fn exactly_the_changed_bytes_are_published() {
    let journal = Arc::new(Journal::default());
    let mut config = ConfigSpace::new(identity());
    config.set(0x44, &[1, 2, 3, 4, 5, 6]);
    config.attach(journal.clone(), 0x1000);
    assert_eq!(journal.0.lock().unwrap().pop().unwrap().1.len(), 256);
    config.set(0x44, &[1, 9, 9, 4, 5, 9]);
    config.set(0x44, &[1, 9, 9, 4, 5, 9]);
    config.guest_write(reg::VENDOR, &[0xff; 4]);
    config.guest_write(reg::INTERRUPT_LINE, &[11, 12]);
    let published = std::mem::take(&mut *journal.0.lock().unwrap());
    assert_eq!(published, [(0x1045, vec![9, 9]), (0x1049, vec![9]), (0x103c, vec![11])]);
}

#[test]
fn capabilities_stop_at_the_end_of_the_space() {
    let mut config = ConfigSpace::new(identity());
    for n in 0..12u16 {
        assert_eq!(config.add_capability(9, &[0xaa; 14], &[]), Ok(0x40 + 16 * n));
    }
    assert_eq!(config.add_capability(9, &[], &[]), Err(CapabilityTooLong(0)));
    let mut fresh = ConfigSpace::new(identity());
    assert_eq!(fresh.add_capability(9, &[0; 191], &[]), Err(CapabilityTooLong(191)));
    assert_eq!(fresh.add_capability(9, &[0; 190], &[]), Ok(0x40));
}

#[test]
fn a_bars_registers_belong_to_one_bar() {
    let bar = |index, kind| Bar::new(BarIndex::new(index).unwrap(), kind, 4096).unwrap();
    let mut config = ConfigSpace::new(identity());
    config.add_bar(bar(1, BarKind::Memory64)).unwrap();
    for (index, kind) in [(1, BarKind::Memory32), (2, BarKind::Memory32), (0, BarKind::Memory64)] {
        assert_eq!(config.add_bar(bar(index, kind)), Err(BarError::Taken(index)));
    }
    config.add_bar(bar(0, BarKind::Memory32)).unwrap();
    config.add_bar(bar(3, BarKind::Memory32)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Junk of every width everywhere: no panic, mirror and device agree, promises to functions are kept, and what
    /// no write can change has not changed.
    #[test]
    fn junk_everywhere_leaves_the_bus_sound(
        ops in prop::collection::vec((any::<u8>(), any::<u16>(), any::<u64>(), 0u32..4), 0..150)
    ) {
        let mut rig = rig();
        let identity = rig.config(0);
        for (kind, place, value, width) in ops {
            let len = 1usize << width;
            let bytes = value.to_le_bytes();
            let (low, high) = rig.places();
            let inside = u64::from(place);
            let address = match kind % 8 {
                0 | 1 => ECAM + rig.register(0) + inside % 264,
                2 => ECAM + rig.register(reg::BAR0) + inside % 24,
                3 => ECAM + inside * 16,
                4 => low.unwrap_or(LOW) + inside % 0x1010,
                5 => high.unwrap_or(HIGH) + inside % 0x40,
                6 => high.unwrap_or(HIGH) + 0x1000 + inside % 16,
                _ => [LOW, HIGH, 0xd000_0000][usize::from(kind) / 8 % 3] + inside,
            };
            let mut data = [0; 8];
            if kind & 0x80 != 0 { rig.bus.read(address, &mut data[..len]); } else { rig.bus.write(address, &bytes[..len]); }
        }
        prop_assert_eq!(rig.config(0), identity);
        rig.places();
        rig.assert_mirrored();
        let saved = rig.root.save().unwrap();
        rig.root.load(&saved).unwrap();
        prop_assert_eq!(rig.root.save().unwrap(), saved);
        rig.assert_mirrored();
    }
}
