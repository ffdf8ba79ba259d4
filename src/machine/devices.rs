//! The virtio devices of a machine: what its spec asks for, each on its worker, each in its slot.

use std::num::NonZeroU16;
use std::sync::Arc;

use devices::pci::slots;
use virtio::balloon::Balloon;
use virtio::block::Block;
use virtio::console::{Backend, Console};
use virtio::device::Device;
use virtio::entropy::Entropy;
use virtio::net::Net;
use virtio::poll::{Epoll, Poller};
use virtio::transport::{Platform, VirtioPci};
use virtio::worker::Worker;

use super::StartError;
use super::pci::{Placed, host_bridge, slot};
use super::resources::Resources;
use super::stats::DeviceCounters;
use crate::host::disk::{EngineKind, make_engine};
use crate::host::tap::{Tap, TapBackend};
use crate::spec::{DiskSerial, TapSpec};

/// The functions that a spec asks for.
pub(super) fn functions(
    resources: &Resources,
    hvc0: Box<dyn Backend>,
    platform: &Platform,
) -> Result<Vec<Placed>, StartError> {
    let spec = &resources.spec;
    let mut placed = vec![host_bridge()?];
    let taps = spec.tap.iter().zip(&resources.taps);
    for (index, ((tap, opened), slot)) in taps.zip(slots::NETWORK).enumerate() {
        placed.push(network(index, tap, opened, slot, spec.cpus().get(), platform)?);
    }
    for (index, slot) in (0..spec.disk.len()).zip(slots::DISK) {
        placed.push(disk(index, resources, slot, platform)?);
    }
    // Devices that move little share a thread.
    let shared = Worker::new("virtio", Box::new(Epoll::new));
    placed.push(put(Box::new(Entropy::new("rng0")), shared.clone(), slots::ENTROPY, platform)?);
    let balloon = Balloon::new("balloon0", &resources.balloon).map_err(StartError::Descriptors)?;
    placed.push(put(Box::new(balloon), shared.clone(), slots::BALLOON, platform)?);
    let ports = resources.ports.iter();
    let console = ports
        .fold(Console::new("console0", hvc0), |console, port| console.with_port(port.name(), port.backend()));
    let console = resources.run_resources.streams.iter().try_fold(console, |console, stream| {
        stream.backend().map(|backend| console.with_port(stream.name, backend))
    })?;
    placed.push(put(Box::new(console), shared, slots::CONSOLE, platform)?);
    Ok(placed)
}

fn network(
    index: usize,
    spec: &TapSpec,
    tap: &Arc<Tap>,
    slot: u8,
    cpus: u32,
    platform: &Platform,
) -> Result<Placed, StartError> {
    let name = format!("net{index}");
    let queues = u16::try_from(cpus).unwrap_or(u16::MAX);
    let tap = TapBackend::new(tap.clone())?;
    if let Some(warning) = tap.warning() {
        log::warn!("{warning}");
    }
    let mac = spec.known_mac().ok_or(StartError::Internal("the network addresses"))?;
    let device = Net::<Epoll>::new(name.clone(), mac.bytes(), Box::new(tap), queues);
    let worker = Worker::new(name, Box::new(Epoll::new));
    put(Box::new(device), worker, slot, platform)
}

fn disk(index: usize, resources: &Resources, slot: u8, platform: &Platform) -> Result<Placed, StartError> {
    let missing = StartError::Internal("the list of disks");
    let (Some(spec), Some(file)) = (resources.spec.disk.get(index), resources.disks.get(index)) else {
        return Err(missing);
    };
    let name = format!("blk{index}");
    let queues = spec.queues.map_or(resources.spec.cpus().get(), |queues| queues.get().into());
    let queues = u16::try_from(queues).ok().and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MAX);
    let serial = spec.serial.as_ref().map_or("", DiskSerial::as_str);
    let device = Block::new(name.clone(), file.disk(serial, queues));
    let worker = Worker::new(name, make_engine(file.clone(), EngineKind::Best));
    put(Box::new(device), worker, slot, platform)
}

/// Puts a device behind a transport, in a slot.
fn put<P: Poller + 'static>(
    device: Box<dyn Device<Poller = P>>,
    worker: Arc<Worker<P>>,
    device_slot: u8,
    platform: &Platform,
) -> Result<Placed, StartError> {
    let function = VirtioPci::new(device, worker, platform)?;
    let counted = DeviceCounters {
        name: function.name().to_owned(),
        kind: function.kind(),
        counters: function.counters().clone(),
    };
    Ok(Placed { counted: Some(counted), ..Placed::new(slot(device_slot)?, function) })
}
