//! One boot of a machine: made from the resources, run, thrown away.

use std::io;
use std::ops::Range;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use boot::layout::{self, RamLayout};
use boot::plan::BootPlan;
use devices::power::PowerButton;
use virtio::DeviceKind;
use virtio::balloon::BalloonControl;
use virtio::counters::{Count, Counters};
use vm_memory::{Bytes, GuestAddress};

use super::board::{Board, pci_window, reset_code};
use super::components::Components;
use super::deadline::Progress;
use super::devices::opened_later;
use super::ends::{Activity, Watch, panic_timeout};
use super::files::BootFiles;
use super::gate::VcpuGate;
use super::generation;
use super::loader::{Loading, Source};
use super::parts::Parts;
use super::pci;
use super::port_end::PortEnd;
use super::prefetch::Prefetch;
use super::resources::Resources;
use super::saved::{Restore, SaveError, SavedParts, SavedState, Unsaveable, rest, written_files};
use super::stats::{DeviceCounters, MemoryStats, Stats, UnfinishedStats};
use super::supervisor::Event;
use super::vcpus::{VcpuContext, VcpuThreads};
use super::{BootNumber, StartError, smbios};
use crate::host::disk::Drive;
use crate::host::open_files;
use crate::kvm::memory::{GuestRam, Slot};
use crate::kvm::vcpu::Vcpu;
use crate::kvm::{KvmDevice, PAGE, Vcpus, Vm};
use crate::saved::WorkingSet;
use crate::spec::{MemBacking, Spec};

/// One boot, running. Dropping it stops the vCPUs, then frees the rest: the order of the fields.
#[derive(Debug)]
pub(super) struct Boot {
    pub(super) number: BootNumber,
    /// How it will end, as far as that is known.
    pub(super) watch: Watch,
    // Ahead of the devices: no vCPU calls one that is dropped.
    vcpus: VcpuThreads,
    // Behind the vCPUs: by then it is known what the guest has used.
    _prefetch: Option<Prefetch>,
    power_button: PowerButton,
    /// Only one of pausing, saving and going on happens at a time.
    components: Mutex<Components>,
    /// It has come from elsewhere, where it may still run: all of it rests until it is let go.
    pub(super) is_held: bool,
    panic_timeout: i64,
    counted: Vec<DeviceCounters>,
    vm: Vm,
    // Behind `vm`: KVM reaches into this memory for as long as the VM lives.
    memory: Memory,
    balloon: BalloonControl,
}

/// What a boot begins with.
#[derive(Debug)]
pub(super) enum Origin<'a> {
    /// A kernel, which begins at its entry.
    Files(&'a BootFiles),
    /// A saved machine, where it was.
    State(Restore),
}

/// A boot whose memory is being filled, and where its vCPUs begin.
#[derive(Debug)]
pub(crate) struct Beginning {
    layout: RamLayout,
    loading: Loading,
    vm: Vm,
    // Behind `vm`, as in [`Boot`].
    memory: Memory,
    /// `None` for a saved machine, whose memory has all of it.
    plan: Option<BootPlan>,
    panic_timeout: i64,
    saved: Option<Restore>,
    /// Of memory that is read ahead.
    prefetch: Option<Prefetch>,
}

impl Beginning {
    /// Takes the memory, makes the VM and begins to load. Needs nothing of the machine but its files, so that it comes first.
    ///
    /// KVM is told of the memory before the load: it then waits for a kernel thread, which a busy loader may keep from its processor.
    pub(super) fn new(
        kvm: &Arc<KvmDevice>,
        spec: &Spec,
        origin: Origin<'_>,
        progress: &Progress,
    ) -> Result<Self, StartError> {
        let layout = RamLayout::new(spec.mem().bytes());
        let ranges = ranges(&layout);
        let mut prefetch = None;
        let (ram, plan, sources, panic_timeout, saved) = match origin {
            Origin::Files(files) => {
                let (plan, sources, panic_timeout) = plan(files, &layout)?;
                (Arc::new(guest_ram(spec, &ranges)?), Some(plan), sources, panic_timeout, None)
            }
            Origin::State(restore) => {
                let (ram, sources) = match (restore.arrived.clone(), spec.mem_backing()) {
                    (Some(arrived), _) => (arrived, Vec::new()),
                    (None, MemBacking::Anonymous) => {
                        restore.check_size(spec)?;
                        let ram = Arc::new(merge(spec, restore.map(&ranges)?));
                        let begin = |set: &Arc<WorkingSet>| {
                            Prefetch::begin(set.clone(), restore.memory.clone(), ram.clone())
                        };
                        prefetch = restore.prefetch.as_ref().map(begin).transpose()?;
                        (ram, Vec::new())
                    }
                    // Others see this memory, and shall not see the file.
                    (None, MemBacking::Memfd) => {
                        restore.check_size(spec)?;
                        let ram = guest_ram(spec, &ranges)?;
                        let source = restore.source(&ram)?;
                        (Arc::new(ram), vec![source])
                    }
                };
                (ram, None, sources, restore.state.panic_timeout(), Some(restore))
            }
        };
        let ecam = Arc::new(pci::empty_bus().map_err(memory_refused(spec))?);
        let memory = Memory { ram, ecam };
        let vm = Vm::new(kvm, &memory.slots())?;
        let loading = Loading::begin(&memory.ram, sources, progress)?;
        Ok(Beginning { layout, loading, vm, memory, plan, panic_timeout, saved, prefetch })
    }

    /// Whether the machine has come from elsewhere, and rests until it is let go.
    pub(super) fn is_held(&self) -> bool {
        self.saved.as_ref().is_some_and(|saved| saved.arrived.is_some())
    }
}

/// The guest's memory, kept mapped for the VM.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) ram: Arc<GuestRam>,
    pub(super) ecam: Arc<GuestRam>,
}

impl Boot {
    /// Makes the machine and lets it run. Opens nothing and searches nothing. Ends early, with any error, once `progress` is stopped.
    pub(super) fn start(
        resources: &Resources,
        beginning: Beginning,
        number: BootNumber,
        events: &Sender<Event>,
        progress: &Progress,
    ) -> Result<Boot, StartError> {
        let is_held = beginning.is_held();
        // The order in which they are named: the VM goes before its memory.
        let Beginning { layout, memory, vm, loading, plan, panic_timeout, saved, prefetch } = beginning;
        let address_bits = saved.as_ref().and_then(Restore::address_bits);
        let watch = Watch::new(number, panic_timeout, events.clone());
        let make_gate = if saved.is_some() { VcpuGate::new_held } else { VcpuGate::new };
        let streams = resources.run_resources.streams.iter();
        let outputs = streams.filter(|stream| stream.name.is_none()).map(|terminal| terminal.output.clone());
        let outputs = outputs.chain([resources.console.output.clone()]).collect();
        let gate = Arc::new(make_gate(number, outputs, events.clone()));
        let (board, vcpus) =
            assemble(resources, &vm, plan.as_ref(), (&layout, address_bits), &memory, &watch, &gate)?;
        loading.finish()?;
        // Over the saved one, if there is one; a machine that only moves is the same one.
        if !is_held {
            let id = generation::renew(&memory.ram)?;
            for end in resources.ports.iter().filter_map(PortEnd::generation) {
                match &saved {
                    Some(restore) => end.tell(id, restore.clock),
                    None => end.forget(),
                }
            }
        }
        for worker in board.workers {
            worker.wait().map_err(StartError::Descriptors)?;
        }
        open_files::have_room_for(opened_later(resources)).map_err(StartError::Descriptors)?;
        let mut parts = Parts::new(&memory, &vm, vcpus, board.components);
        if let Some(Restore { state, clock, .. }) = &saved {
            parts.load(state.components()?, *clock, &vm)?;
        }
        // Whatever can fail has been done by now, but for the threads.
        if progress.is_stopped() {
            // The host answered too late: nobody would hold the machine.
            return Err(StartError::Interrupted);
        }
        progress.wait_for_caller();
        let called = resources.run_resources.about_to_run.call(&resources.forwards());
        called.map_err(StartError::Terminal)?;
        let context =
            VcpuContext { buses: Arc::new(board.buses), events: events.clone(), boot: number, gate };
        let (threads, mut components) = parts.start(&context)?;
        if saved.is_some() && !is_held {
            components.go();
            // Before its vCPUs run: no guest makes random numbers from what another one has. Behind the devices, which lead the
            // interrupts where the guest wants them.
            board.generation.announce().map_err(StartError::describe)?;
            threads.resume();
            prefetch.iter().for_each(Prefetch::guest_runs);
        }
        Ok(Boot {
            number,
            watch,
            power_button: board.power_button,
            components: Mutex::new(components),
            is_held,
            panic_timeout,
            counted: board.counted,
            vcpus: threads,
            _prefetch: prefetch,
            vm,
            memory,
            balloon: resources.balloon.clone(),
        })
    }

    /// What it has done so far.
    pub(super) fn stats(&self) -> UnfinishedStats {
        let ram = &self.memory.ram;
        let memory =
            MemoryStats { size: ram.size(), balloon: self.balloon.actual(), ..MemoryStats::default() };
        let devices = self.counted.iter().map(DeviceCounters::now).collect();
        UnfinishedStats::new(Stats { vcpus: self.vcpus.exits(), memory, devices }, ram)
    }

    /// Looks how the guest does, and asks the vCPUs for the next look.
    pub(super) fn sample(&self) -> (u64, Activity) {
        let work = self.counted.iter().fold(0u64, |sum, counted| {
            let work = |count: fn(&Counters) -> &Count| counted.sum(count);
            sum.wrapping_add(work(|of| &of.requests)).wrapping_add(work(|of| &of.kicks))
        });
        let activity = self.vcpus.activity();
        self.vcpus.ask();
        (work, activity)
    }

    /// Bytes that the guest has given to its ports and networks.
    pub(super) fn sent(&self) -> u64 {
        let outside =
            |counted: &&DeviceCounters| matches!(counted.kind, DeviceKind::Console | DeviceKind::Network);
        self.counted.iter().filter(outside).map(|counted| counted.sum(|of| &of.bytes_out)).sum()
    }

    /// Makes the vCPUs rest; [`Event::AtRest`] comes, with the number given here, when they do.
    pub(super) fn hold_vcpus(&self) -> u64 {
        self.vcpus.pause()
    }

    /// Has the vCPUs look whether the console's reader has to come before they go on.
    pub(super) fn call_vcpus(&self) {
        self.vcpus.kick();
    }

    /// Has the vCPUs leave the guest for good. Does not wait for them: dropping the boot does.
    pub(super) fn stop_vcpus(&self) {
        self.vcpus.shut();
    }

    /// Makes the devices rest, when the vCPUs do. Waits for what the host has in flight.
    pub(super) fn pause_devices(&self) {
        self.components().quiesce();
    }

    /// Everything goes on.
    pub(super) fn resume(&self) {
        self.components().go();
        self.vcpus.resume();
    }

    /// The vCPUs go on. The devices were not paused.
    pub(super) fn resume_vcpus(&self) {
        self.vcpus.resume();
    }

    /// The state of everything but the contents of memory, and the memory. The disks are brought to rest but for those that were `copied`, whose
    /// files nobody else is to have. The machine is paused for as long as there is `paused`.
    pub(super) fn save(
        &self,
        paused: Weak<()>,
        spec: Result<Spec, Unsaveable>,
        drives: &[Arc<Drive>],
        copied: &[usize],
    ) -> Result<SavedParts, SaveError> {
        let state = SavedState::new(self.panic_timeout, self.components().save()?);
        let (marks, written) = (rest(drives, copied)?, written_files(drives)?);
        Ok(SavedParts { state, ram: self.memory.ram.clone(), paused, spec, marks, written })
    }

    /// Its memory.
    pub(super) fn ram(&self) -> &Arc<GuestRam> {
        &self.memory.ram
    }

    /// Logs what is written to guest memory from now on, or no longer: by the guest and by devices.
    pub(super) fn log_writes(&self, on: bool) -> Result<(), SaveError> {
        self.memory.ram.log_dirty(on);
        self.vm.log_dirty(on).map_err(SaveError::Log)
    }

    /// What was written since it was asked last, in whole pages.
    pub(super) fn take_written(&self) -> Result<Vec<Range<u64>>, SaveError> {
        let mut pages = Vec::new();
        self.vm.take_dirty(|page| pages.push(page)).map_err(SaveError::Log)?;
        self.memory.ram.take_dirty(|page| pages.push(page));
        pages.sort_unstable();
        Ok(join_pages(&pages))
    }

    fn components(&self) -> MutexGuard<'_, Components> {
        self.components.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Presses the power button.
    pub(super) fn press_power_button(&self) {
        if let Err(error) = self.power_button.press() {
            log::warn!("the power button's interrupt could not be raised: {error}");
        }
    }
}

/// Guest address and bytes of each range of RAM.
pub(super) fn ranges(layout: &RamLayout) -> Vec<(u64, u64)> {
    let mut ranges = vec![(layout.low.start, layout.low.end)];
    ranges.extend(layout.high.as_ref().map(|high| (high.start, high.end - high.start)));
    ranges
}

/// The RAM that a spec asks for.
pub(super) fn guest_ram(spec: &Spec, ranges: &[(u64, u64)]) -> Result<GuestRam, StartError> {
    let make = match spec.mem_backing() {
        MemBacking::Anonymous => GuestRam::new,
        MemBacking::Memfd => GuestRam::in_memfd,
    };
    let ram = make(ranges).map_err(memory_refused(spec))?;
    Ok(merge(spec, ram))
}

/// Marks it to be merged, if the spec says so. Not merged it is right, too, and a saved machine may go on where it cannot be.
fn merge(spec: &Spec, mut ram: GuestRam) -> GuestRam {
    if spec.merge()
        && let Err(error) = ram.merge()
    {
        log::warn!(
            "`--merge` does nothing, because this host's kernel cannot share pages ({error}); `minivmm doctor` says more of KSM"
        );
    }
    ram
}

fn memory_refused(spec: &Spec) -> impl Fn(io::Error) -> StartError {
    let mib = spec.mem().mib();
    move |source| StartError::Memory { mib, source }
}

impl Memory {
    fn slots(&self) -> Vec<Slot> {
        self.ram.slots().chain(self.ecam.slots()).collect()
    }
}

/// Ranges of pages that lie side by side in `pages`, which are sorted.
fn join_pages(pages: &[u64]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for page in pages {
        match ranges.last_mut() {
            Some(last) if *page <= last.end => last.end = last.end.max(page + PAGE),
            _ => ranges.push(*page..page + PAGE),
        }
    }
    ranges
}

/// Makes everything about a boot that needs no loaded kernel: devices, tables, vCPUs at their entry.
fn assemble(
    resources: &Resources,
    vm: &Vm,
    plan: Option<&BootPlan>,
    (ram_layout, address_bits): (&RamLayout, Option<u32>),
    memory: &Memory,
    watch: &Watch,
    gate: &Arc<VcpuGate>,
) -> Result<(Board, Vec<Vcpu>), StartError> {
    let spec = &resources.spec;
    let Vcpus { vcpus, physical_address_bits } = vm.add_vcpus(spec.cpus().get())?;
    // A guest that goes on has its PCI windows where it had them.
    let physical_address_bits = address_bits.unwrap_or(physical_address_bits);
    if ram_layout.end().checked_shr(physical_address_bits).is_none_or(|beyond| beyond > 0) {
        return Err(StartError::AddressBits { mib: spec.mem().mib(), bits: physical_address_bits });
    }
    let window = pci_window(ram_layout, physical_address_bits);
    let board = Board::new(vm, resources, window, memory, watch, gate)?;
    if let Some(plan) = plan {
        let tables = boot::acpi::build(&board.platform).map_err(StartError::describe)?;
        let smbios = smbios::tables(spec).map_err(StartError::describe)?;
        let ram = memory.ram.memory();
        ram.write_slice(&smbios, GuestAddress(layout::SMBIOS)).map_err(StartError::describe)?;
        ram.write_slice(&tables.bytes, GuestAddress(tables.base)).map_err(StartError::describe)?;
        ram.write_slice(&reset_code(), GuestAddress(layout::RESET_VECTOR)).map_err(StartError::describe)?;
        plan.write_tables(ram, tables.rsdp).map_err(StartError::describe)?;
        vcpus.iter().try_for_each(Vcpu::set_firmware_msrs)?;
        if let Some(boot_processor) = vcpus.first() {
            boot_processor.set_entry(&plan.cpu_state())?;
        }
    }
    Ok((board, vcpus))
}

/// Decides where everything goes, from the files' headers; and `panic=` of the command line.
fn plan(files: &BootFiles, layout: &RamLayout) -> Result<(BootPlan, Vec<Source>, i64), StartError> {
    let BootFiles { kernel, initrd, cmdline, .. } = files;
    let plan = files.plan(layout).map_err(|source| StartError::Plan { path: kernel.name(), source })?;
    let mut sources = Vec::with_capacity(2);
    sources.extend(initrd.iter().map(|(file, _)| Source::new(file, plan.initrd.as_slice())));
    sources.push(Source::new(kernel, &plan.kernel));
    Ok((plan, sources, panic_timeout(cmdline)))
}
