//! The virtio devices of a machine: what its spec asks for, each on its worker, each in its slot.

use std::sync::{Arc, Mutex};

use devices::pci::slots;
use virtio::balloon::Balloon;
use virtio::device::Device;
use virtio::entropy::Entropy;
use virtio::net::Net;
use virtio::poll::{Epoll, Poller};
use virtio::transport::{Platform, VirtioPci};
use virtio::worker::Worker;

use super::StartError;
use super::boot_once::Blueprint;
use super::pci::{Placed, host_bridge, slot};
use crate::host::tap::Tap;
use crate::spec::TapSpec;

/// The functions that a spec asks for.
pub(super) fn functions(blueprint: &Blueprint, platform: &Platform) -> Result<Vec<Placed>, StartError> {
    let spec = &blueprint.spec;
    let mut placed = vec![host_bridge()?];
    for (index, (tap, slot)) in spec.tap.iter().zip(slots::NETWORK).enumerate() {
        placed.push(network(index, tap, slot, spec.cpus().get(), platform)?);
    }
    // Devices that move little share a thread.
    let shared = Worker::new("virtio", Box::new(Epoll::new));
    placed.push(put(Box::new(Entropy::new("rng0")), shared.clone(), slots::ENTROPY, platform)?);
    let balloon = Balloon::new("balloon0", &blueprint.backends.balloon);
    placed.push(put(Box::new(balloon), shared, slots::BALLOON, platform)?);
    Ok(placed)
}

fn network(
    index: usize,
    spec: &TapSpec,
    slot: u8,
    cpus: u32,
    platform: &Platform,
) -> Result<Placed, StartError> {
    let name = format!("net{index}");
    let queues = u16::try_from(cpus).unwrap_or(u16::MAX);
    let tap = Tap::open(spec.name.as_str(), queues)?;
    if let Some(warning) = tap.warning() {
        log::warn!("{warning}");
    }
    let mac = spec.known_mac().ok_or(StartError::Internal("the network addresses"))?;
    let device = Net::<Epoll>::new(name.clone(), mac.bytes(), Box::new(tap), queues);
    let worker = Worker::new(name, Box::new(Epoll::new));
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
    Ok((slot(device_slot)?, Arc::new(Mutex::new(function))))
}
