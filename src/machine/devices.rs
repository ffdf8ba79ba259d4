//! The virtio devices of a machine: what its spec asks for, each on its worker, each in its slot.

use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};

use devices::pci::{FunctionAddress, slots};
use virtio::balloon::Balloon;
use virtio::block::{AnyEngine, Block};
use virtio::console::Console;
use virtio::device::{Device, DeviceInfo};
use virtio::entropy::Entropy;
use virtio::fs::Fs;
use virtio::net::Net;
use virtio::poll::{Epoll, Poller};
use virtio::transport::{DeviceHandle, DeviceThread, Platform, VirtioFunction, VirtioPci};
use virtio::worker::Worker;

use super::StartError;
use super::disks::disk_id;
use super::nets::NetResource;
use super::pci::{Placed, Terminals, host_bridge, slot};
use super::resources::Resources;
use super::stats::DeviceCounters;
use crate::host::disk::EngineKind;
use crate::host::share::Known;
use crate::spec::{DiskDiscard, DiskQueues, DiskSerial, OnFull};

/// The functions that a spec asks for.
pub(super) fn functions(
    resources: &Resources,
    terminals: Terminals,
    platform: &Platform,
) -> Result<Vec<Placed>, StartError> {
    let spec = &resources.spec;
    let mut placed = vec![host_bridge()?];
    for (net, at) in resources.nets.iter().zip(slots::NETWORK) {
        placed.push(network(net, slot(at)?, spec.cpus().get(), platform)?);
    }
    for (index, at) in (0..spec.disk.len()).zip(slots::DISK) {
        placed.push(disk(index, resources, slot(at)?, platform)?);
    }
    let known = Arc::new(Known::default());
    for (index, ((tag, _), folder)) in (0..).zip(spec.shares().zip(&resources.files.shares)) {
        let address = slots::share(index).ok_or(StartError::Internal("the PCI slot table"))?;
        let id = format!("fs{index}");
        let device = Fs::new(id.clone(), tag.as_str(), folder.file_system(known.clone()));
        let worker = Worker::new(id, Box::new(Epoll::new));
        placed.push(put(Box::new(device), worker, address, platform)?.0);
    }
    // Devices that move little share a thread.
    let shared = Worker::new("virtio", Box::new(Epoll::new));
    placed.push(put(Box::new(Entropy::new("rng0")), shared.clone(), slot(slots::ENTROPY)?, platform)?.0);
    let balloon = Box::new(Balloon::new("balloon0", &resources.balloon));
    let (balloon, handle) = put(balloon, shared.clone(), slot(slots::BALLOON)?, platform)?;
    resources.balloon.attach(handle);
    placed.push(balloon);
    let Terminals { hvc0, hold_up } = terminals;
    let ports = resources.ports.iter();
    let console = ports
        .fold(Console::new("console0", hvc0), |console, port| console.with_port(port.name(), port.backend()));
    let console = resources.run_resources.streams.iter().try_fold(console, |console, stream| {
        stream.backend(&hold_up).map(|backend| match stream.name {
            Some(name) => console.with_port(name, backend),
            None => console.with_console(backend),
        })
    })?;
    let (console, handle) = put(Box::new(console), shared, slot(slots::CONSOLE)?, platform)?;
    resources.console.attach_virtio(handle);
    placed.push(console);
    Ok(placed)
}

/// Descriptors that the threads of devices open when their drivers come: a device without them would be dead in a machine that runs. Interrupts
/// do without, and leave these alone (`src/kvm/irq.rs`); disks have theirs.
pub(super) fn opened_later(resources: &Resources) -> usize {
    // What it waits in, and its bell.
    const EACH: usize = 2;
    // Of the command that starts it: its control socket, and one client.
    const OTHERS: usize = 6;
    EACH * (resources.nets.len() + resources.files.shares.len() + 1) + OTHERS
}

fn network(
    net: &NetResource,
    address: FunctionAddress,
    cpus: u32,
    platform: &Platform,
) -> Result<Placed, StartError> {
    let queues = u16::try_from(cpus).unwrap_or(u16::MAX);
    let device = Net::<Epoll>::new(net.id(), net.mac(), net.backend()?, queues);
    let worker = Worker::new(net.id().to_owned(), Box::new(Epoll::new));
    Ok(put(Box::new(device), worker, address, platform)?.0)
}

fn disk(
    index: usize,
    resources: &Resources,
    address: FunctionAddress,
    platform: &Platform,
) -> Result<Placed, StartError> {
    let missing = StartError::Internal("the list of disks");
    let (Some(spec), Some(drive)) = (resources.spec.disk.get(index), resources.files.drives.get(index))
    else {
        return Err(missing);
    };
    let open = drive.medium();
    let id = disk_id(index);
    let queues = spec.queues.map_or(resources.spec.cpus().get(), |queues| queues.get().into());
    let queues = u16::try_from(queues).ok().and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MAX);
    let serial = spec.serial.as_ref().map_or("", DiskSerial::as_str);
    let mut described = open.disk(serial, queues);
    if spec.discard == Some(DiskDiscard::Off) {
        described.discard = None;
    }
    let device = Block::new(id.clone(), described).with_limits(resources.disk_handles.limits(index));
    let device = match spec.on_full.unwrap_or_default() {
        OnFull::Pause => device.waiting_when_full(platform.failures.clone()),
        OnFull::Report => device,
    };
    let info = device.info();
    let threads = spec.threads.map_or(1, DiskQueues::get);
    if threads > queues.get() {
        log::warn!(
            "{id}: threads={threads} needs as many queues, and it has {queues}; give queues={threads} or more --cpus"
        );
    }
    if threads > open.most_threads() {
        log::warn!(
            "{id}: threads={threads} has no effect on an image that is not raw, which one thread serves"
        );
    }
    let threads = threads.min(queues.get()).min(open.most_threads());
    let worker = |name| Worker::new(name, drive.make_engine(EngineKind::Best));
    // Each further thread has an engine of its own on the same disk.
    let further = (1..threads).map(|n| {
        let device: Box<dyn Device<Poller = AnyEngine>> = Box::new(device.for_another_thread());
        (device, worker(format!("blk{index}.{n}")))
    });
    let mut threads = further.collect::<Vec<_>>();
    threads.insert(0, (Box::new(device), worker(format!("blk{index}"))));
    // From here on, beside what else is made: a disk's ring costs milliseconds. The threads of other devices begin with their
    // drivers.
    let begun = threads.iter().map(|(_, worker)| worker.begin().map_err(StartError::Descriptors));
    let workers = begun.filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()?;
    let (mut disk, handle) = put_on_threads(info, threads, address, platform)?;
    disk.workers = workers;
    resources.disk_handles.attach(index, handle);
    Ok(disk)
}

/// Puts a device behind a transport, at its place. The handle reaches the device.
fn put<P: Poller + 'static>(
    device: Box<dyn Device<Poller = P>>,
    worker: Arc<Worker<P>>,
    address: FunctionAddress,
    platform: &Platform,
) -> Result<(Placed, DeviceHandle), StartError> {
    put_on_threads(device.info(), vec![(device, worker)], address, platform)
}

/// As [`put`], with a device for each thread.
fn put_on_threads<P: Poller + 'static>(
    info: DeviceInfo,
    threads: Vec<DeviceThread<P>>,
    address: FunctionAddress,
    platform: &Platform,
) -> Result<(Placed, DeviceHandle), StartError> {
    let (id, kind) = (info.name.clone(), info.kind);
    let function = VirtioPci::new(info, threads, platform)?;
    let counted = Some(DeviceCounters { name: id.clone(), kind, threads: function.counters() });
    let function = Arc::new(Mutex::new(function));
    let shared: Arc<Mutex<dyn VirtioFunction>> = function.clone();
    let handle = DeviceHandle::new(&shared);
    Ok((Placed { id, address, function, counted, workers: Vec::new() }, handle))
}
