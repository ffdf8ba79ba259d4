//! The machine's board: which devices it has, where they are, and how that is told to the guest.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::task::Waker;

use boot::acpi::{Com, PciHost, Platform, PowerRegisters};
use boot::layout::{self, RamLayout};
use devices::bus::{Bus, BusDevice};
use devices::pci::alloc::Windows;
use devices::ports;
use devices::power::{Power, PowerButton};
use devices::pvpanic::PvPanic;
use devices::reset::{KeyboardReset, PciReset};
use devices::rtc;
use devices::serial::Serial;
use virtio::transport;
use virtio::worker::Ready;

use super::StartError;
use super::boot_once::Memory;
use super::components::Components;
use super::devices::opened_later;
use super::ends::Watch;
use super::events::{MachineEvent, Publisher};
use super::full_disks::FullDisk;
use super::gate::VcpuGate;
use super::generation::{GENERATION_ID, GenerationChange};
use super::pci::{self, Terminals};
use super::resources::Resources;
use super::stats::DeviceCounters;
use super::vcpus::Buses;
use crate::host::clock::HostClock;
use crate::host::open_files;
use crate::kvm::Vm;
use crate::spec::Rtc;

/// The devices on their buses, and their description for the guest.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) buses: Buses,
    pub(super) power_button: PowerButton,
    pub(super) generation: GenerationChange,
    /// PCI and all devices.
    pub(super) components: Components,
    /// In the order of the PCI bus.
    pub(super) counted: Vec<DeviceCounters>,
    /// Those of the devices that are being made already.
    pub(super) workers: Vec<Ready>,
    pub(super) platform: Platform,
}

impl Board {
    pub(super) fn new(
        vm: &Vm,
        resources: &Resources,
        window: Option<Range<u64>>,
        memory: &Memory,
        watch: &Watch,
        gate: &Arc<VcpuGate>,
    ) -> Result<Self, StartError> {
        let (spec, console) = (&resources.spec, &resources.console);
        let hold_up = Waker::from(gate.clone());
        let ends = console.ends(watch, hold_up.clone()).map_err(StartError::Descriptors)?;
        let clock = host_clock(spec.rtc());
        let serial = Serial::new(vm.pin_irq(ports::COM1_GSI), ends.serial_output, ends.serial_input);
        let serial = Arc::new(Mutex::new(serial));
        console.attach(&serial);
        let (bus, legacy) = port_devices(serial, watch, clock)?;
        let virtio = transport::Platform {
            memory: memory.ram.handle(),
            msi: Arc::new(vm.msi(open_files::limit().saturating_sub(opened_later(resources)))),
            doorbells: Arc::new(vm.doorbells()),
            failures: Arc::new(FailureReporter {
                publisher: resources.publisher.clone(),
                gate: gate.clone(),
            }),
        };
        let mut functions =
            (resources.functions)(resources, Terminals { hvc0: ends.virtio, hold_up }, &virtio)?;
        functions.sort_by_key(|placed| placed.address);
        let workers = functions.iter_mut().flat_map(|placed| std::mem::take(&mut placed.workers)).collect();
        let counted = functions.iter().filter_map(|placed| placed.counted.clone()).collect();
        let windows = Windows { low: layout::PCI_MMIO32, high: window.clone().unwrap_or_default() };
        let mut memory_bus = Bus::new();
        let mut components = pci::plug(&mut memory_bus, windows, &memory.ecam, functions)?;
        components.append(legacy);
        let platform = platform(spec.cpus().get(), clock.is_some(), window);
        let power_button = PowerButton::new(vm.pin_irq(ports::POWER_BUTTON_GSI));
        let generation = GenerationChange(vm.pin_irq(GENERATION_ID.gsi));
        Ok(Board {
            buses: Buses { ports: bus, mmio: memory_bus },
            power_button,
            generation,
            components,
            counted,
            workers,
            platform,
        })
    }
}

/// The devices on the port bus, and those of them that have a state.
fn port_devices(
    serial: Arc<Mutex<Serial>>,
    watch: &Watch,
    clock: Option<HostClock>,
) -> Result<(Bus, Components), StartError> {
    let (mut bus, mut components) = (Bus::new(), Components::default());
    put(&mut bus, ports::COM1, serial.clone())?;
    components.push("serial0", serial);
    let power = Arc::new(Mutex::new(Power::new()));
    put(&mut bus, ports::POWER, power.clone())?;
    components.push("power", power);
    put(&mut bus, ports::KEYBOARD_COMMAND, Arc::new(Mutex::new(KeyboardReset)))?;
    put(&mut bus, ports::PCI_RESET, Arc::new(Mutex::new(PciReset)))?;
    let pvpanic = Arc::new(Mutex::new(PvPanic::new(watch.crash_kernel())));
    put(&mut bus, ports::PVPANIC, pvpanic.clone())?;
    components.push("pvpanic", pvpanic);
    if let Some(clock) = clock {
        let rtc = Arc::new(Mutex::new(rtc::Rtc::new(Box::new(clock))));
        put(&mut bus, ports::RTC, rtc.clone())?;
        components.push("rtc", rtc);
    }
    Ok((bus, components))
}

fn host_clock(rtc: Rtc) -> Option<HostClock> {
    match rtc {
        Rtc::None => None,
        Rtc::Utc => Some(HostClock::Utc),
        Rtc::Localtime => Some(HostClock::Local),
    }
}

/// What ACPI tells the guest of the board.
fn platform(cpus: u32, has_rtc: bool, window: Option<Range<u64>>) -> Platform {
    Platform {
        cpus,
        com1: Some(Com { port: ports::COM1, gsi: ports::COM1_GSI }),
        rtc: has_rtc.then_some(ports::RTC),
        pvpanic: Some(ports::PVPANIC),
        power: PowerRegisters {
            sleep_control: ports::POWER,
            sleep_status: ports::POWER + 1,
            reset: ports::POWER + 2,
            reset_value: ports::RESET_VALUE,
            s5_type: ports::S5_SLEEP_TYPE,
        },
        power_button_gsi: ports::POWER_BUTTON_GSI,
        generation_id: Some(GENERATION_ID),
        pci: Some(PciHost { ecam: layout::ECAM, mmio32: layout::PCI_MMIO32, mmio64: window }),
    }
}

/// Passes on that a device cannot go on, or a disk not without room.
#[derive(Debug)]
struct FailureReporter {
    publisher: Publisher,
    gate: Arc<VcpuGate>,
}

impl transport::Failures for FailureReporter {
    fn failed(&self, device: &str, reason: &str) {
        let (device, reason) = (device.to_owned(), reason.to_owned());
        self.publisher.publish(MachineEvent::DeviceFailed { device, reason });
    }

    fn full(&self, disk: &str, bytes: u64, error: &io::Error) {
        self.gate.disk_full(FullDisk { id: disk.to_owned(), bytes, error: error.to_string() });
    }
}

/// What the guest finds at [`layout::RESET_VECTOR`]: 16-bit code that writes the reset register.
pub(super) fn reset_code() -> [u8; 9] {
    let [low, high] = (ports::POWER + 2).to_le_bytes();
    #[rustfmt::skip]
    let code = [
        0xba, low, high, // mov dx, the reset register
        0xb0, ports::RESET_VALUE, // mov al, its value
        0xee, // out dx, al
        0xf4, // hlt
        0xeb, 0xfd, // jmp to the hlt
    ];
    code
}

fn put(bus: &mut Bus, port: u16, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), StartError> {
    bus.insert(u64::from(port), device).map_err(StartError::describe)
}

/// The 64-bit PCI window: behind all RAM, as far as the processor's addresses reach.
pub(super) fn pci_window(layout: &RamLayout, address_bits: u32) -> Option<Range<u64>> {
    const SIZE: u64 = 64 << 30;
    let start = layout.end().checked_next_multiple_of(SIZE)?;
    let end = start.checked_add(SIZE)?;
    let reach = 1u64.checked_shl(address_bits)?;
    (end <= reach).then_some(start..end)
}
