//! One boot of a machine: made from the resources, run, thrown away.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use boot::layout::{self, RamLayout};
use boot::plan::{BootPlan, PlanRequest};
use devices::pci::root::PciRoot;
use devices::power::PowerButton;
use devices::thread::{Role, spawn_scoped};
use virtio::DeviceKind;
use virtio::balloon::BalloonControl;
use vm_memory::{Bytes, GuestAddress};

use super::board::{Board, pci_window, reset_code};
use super::ends::{Activity, Watch, panic_timeout};
use super::files::BootFiles;
use super::gate::VcpuGate;
use super::loader::{Loader, Source};
use super::resources::Resources;
use super::stats::{DeviceCounters, MemoryStats, Stats};
use super::supervisor::Event;
use super::vcpus::{VcpuContext, VcpuThreads};
use super::{BootNumber, StartError};
use crate::kvm::memory::{GuestRam, Slot};
use crate::kvm::vcpu::Vcpu;
use crate::kvm::{Vcpus, Vm};
use crate::spec::Spec;

/// One boot, running. Dropping it stops the vCPUs, then frees the rest: the order of the fields.
#[derive(Debug)]
pub(super) struct Boot {
    pub(super) number: BootNumber,
    /// How it will end, as far as that is known.
    pub(super) watch: Watch,
    power_button: PowerButton,
    pci: Arc<PciRoot>,
    counted: Vec<DeviceCounters>,
    vcpus: VcpuThreads,
    _vm: Vm,
    // Behind `_vm`: KVM reaches into this memory for as long as the VM lives.
    memory: Memory,
    balloon: BalloonControl,
}

/// The guest's memory, kept mapped for the VM.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) ram: Arc<GuestRam>,
    pub(super) ecam: Arc<GuestRam>,
}

impl Boot {
    /// Makes the machine and lets it run.
    pub(super) fn start(
        resources: &Resources,
        number: BootNumber,
        events: &Sender<Event>,
    ) -> Result<Boot, StartError> {
        let spec = &resources.spec;
        let layout = RamLayout::new(spec.mem().bytes());
        let (plan, sources, panic_timeout) = plan(resources, &layout)?;
        let memory = Memory::new(spec, &layout)?;
        let watch = Watch::new(number, panic_timeout, events.clone());
        let gate = Arc::new(VcpuGate::new(number, resources.console.output.clone(), events.clone()));
        let loader = Loader::new(&sources);
        let Assembled { vm, board, vcpus } = std::thread::scope(|scope| {
            let helper = spawn_scoped(scope, Role::Loader, "loader", || loader.work(&memory.ram))
                .map_err(StartError::Thread)?;
            let made = assemble(resources, &plan, &layout, &memory, &watch, &gate);
            let loaded = loader.work(&memory.ram);
            // A panic in the helper goes on here: half a kernel must not run.
            helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            loaded?;
            made
        })?;
        let context =
            VcpuContext { buses: Arc::new(board.buses), events: events.clone(), boot: number, gate };
        // Whatever can fail has been done by now, but for the threads.
        resources.run_resources.about_to_run.call().map_err(StartError::Terminal)?;
        let threads = VcpuThreads::start(vcpus, &context)?;
        Ok(Boot {
            number,
            watch,
            power_button: board.power_button,
            pci: board.pci,
            counted: board.counted,
            vcpus: threads,
            _vm: vm,
            memory,
            balloon: resources.balloon.clone(),
        })
    }

    /// What it has done so far.
    pub(super) fn stats(&self) -> Stats {
        let ram = self.memory.ram.as_ref();
        let memory =
            MemoryStats { size: ram.size(), resident: ram.resident(), balloon: self.balloon.actual() };
        let devices = self.counted.iter().map(DeviceCounters::now).collect();
        Stats { vcpus: self.vcpus.exits(), memory, devices }
    }

    /// Looks how the guest does, and asks the vCPUs for the next look.
    pub(super) fn sample(&self) -> (u64, Activity) {
        let work = self.counted.iter().fold(0u64, |sum, counted| {
            sum.wrapping_add(counted.counters.requests.now()).wrapping_add(counted.counters.kicks.now())
        });
        let activity = self.vcpus.activity();
        self.vcpus.ask();
        (work, activity)
    }

    /// Bytes that the guest has given to its ports and networks.
    pub(super) fn sent(&self) -> u64 {
        let outside =
            |counted: &&DeviceCounters| matches!(counted.kind, DeviceKind::Console | DeviceKind::Network);
        self.counted.iter().filter(outside).map(|counted| counted.counters.bytes_out.now()).sum()
    }

    /// Makes the vCPUs rest; [`Event::AtRest`] comes, with the number given here, when they do.
    pub(super) fn hold_vcpus(&self) -> u64 {
        self.vcpus.pause()
    }

    /// Has the vCPUs look whether the console's reader has to come before they go on.
    pub(super) fn call_vcpus(&self) {
        self.vcpus.kick();
    }

    /// Makes the devices rest, when the vCPUs do.
    pub(super) fn pause_devices(&self) {
        self.pci.pause();
    }

    /// Everything goes on.
    pub(super) fn resume(&self) {
        self.pci.resume();
        self.vcpus.resume();
    }

    /// Presses the power button.
    pub(super) fn press_power_button(&self) {
        if let Err(error) = self.power_button.press() {
            log::warn!("the power button's interrupt could not be raised: {error}");
        }
    }
}

impl Memory {
    fn new(spec: &Spec, layout: &RamLayout) -> Result<Self, StartError> {
        let failed = |source| StartError::Memory { mib: spec.mem().mib(), source };
        let mut ranges = vec![(layout.low.start, layout.low.end)];
        ranges.extend(layout.high.as_ref().map(|high| (high.start, high.end - high.start)));
        let ram = GuestRam::new(&ranges).map_err(failed)?;
        let ecam = layout::ECAM;
        let ecam = GuestRam::read_only(ecam.start, ecam.end - ecam.start).map_err(failed)?;
        Ok(Memory { ram: Arc::new(ram), ecam: Arc::new(ecam) })
    }

    fn slots(&self) -> Vec<Slot> {
        self.ram.slots().chain(self.ecam.slots()).collect()
    }
}

/// A machine that lacks nothing but its kernel in memory.
struct Assembled {
    vm: Vm,
    board: Board,
    vcpus: Vec<Vcpu>,
}

/// Makes everything about a boot that needs no loaded kernel: VM, devices, tables, vCPUs at their entry.
fn assemble(
    resources: &Resources,
    plan: &BootPlan,
    ram_layout: &RamLayout,
    memory: &Memory,
    watch: &Watch,
    gate: &Arc<VcpuGate>,
) -> Result<Assembled, StartError> {
    let spec = &resources.spec;
    let vm = Vm::new(&resources.kvm, &memory.slots())?;
    let Vcpus { vcpus, physical_address_bits } = vm.add_vcpus(spec.cpus().get())?;
    if ram_layout.end().checked_shr(physical_address_bits).is_none_or(|beyond| beyond > 0) {
        return Err(StartError::AddressBits { mib: spec.mem().mib(), bits: physical_address_bits });
    }
    let window = pci_window(ram_layout, physical_address_bits);
    let board = Board::new(&vm, resources, window, memory, watch, gate)?;
    let tables = boot::acpi::build(&board.platform).map_err(StartError::describe)?;
    let ram = memory.ram.memory();
    ram.write_slice(&tables.bytes, GuestAddress(tables.base)).map_err(StartError::describe)?;
    ram.write_slice(&reset_code(), GuestAddress(layout::RESET_VECTOR)).map_err(StartError::describe)?;
    plan.write_tables(ram, tables.rsdp).map_err(StartError::describe)?;
    if let Some(boot_processor) = vcpus.first() {
        boot_processor.set_entry(&plan.cpu_state())?;
    }
    Ok(Assembled { vm, board, vcpus })
}

/// Decides where everything goes, from the files' headers; and `panic=` of the command line.
fn plan(resources: &Resources, layout: &RamLayout) -> Result<(BootPlan, Vec<Source>, i64), StartError> {
    let spec = &resources.spec;
    let BootFiles { kernel, headers, initrd, cmdline, .. } =
        BootFiles::find_with(spec, &resources.files, resources.readers()?)?;
    let request = PlanRequest {
        cmdline: &cmdline,
        initrd: initrd.as_ref().map(|(_, initrd)| *initrd),
        ram: layout,
        preferred_entry: None,
    };
    let plan = boot::plan::plan(&headers, &request)
        .map_err(|source| StartError::Plan { path: kernel.name(), source })?;
    let mut sources = Vec::with_capacity(2);
    sources.extend(initrd.iter().map(|(file, _)| Source::new(file, plan.initrd.as_slice())));
    sources.push(Source::new(&kernel, &plan.kernel));
    Ok((plan, sources, panic_timeout(&cmdline)))
}
