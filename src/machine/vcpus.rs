//! The vCPU threads: enter the guest, hand its accesses to the buses, tell the supervisor what they ask for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use devices::bus::{Bus, Effect};

use super::exit::Crash;
use super::gate::Gate;
use super::supervisor::Event;
use super::{BootNumber, StartError};
use crate::kvm::kick;
use crate::kvm::vcpu::{Entry, Exit, Vcpu};

/// What a guest's accesses go to.
#[derive(Debug)]
pub(super) struct Buses {
    pub(super) ports: Bus,
    pub(super) mmio: Bus,
}

/// What every vCPU thread of one boot shares.
#[derive(Debug, Clone)]
pub(super) struct VcpuContext {
    pub(super) buses: Arc<Buses>,
    pub(super) events: Sender<Event>,
    pub(super) boot: BootNumber,
    pub(super) gate: Arc<Gate>,
}

/// The threads `vcpu0`, `vcpu1`, ... of one boot. Dropping them stops them.
#[derive(Debug)]
pub(super) struct VcpuThreads {
    gate: Arc<Gate>,
    threads: Vec<(JoinHandle<()>, Arc<AtomicBool>)>,
}

impl VcpuThreads {
    /// Starts a thread for each vCPU.
    pub(super) fn start(vcpus: Vec<Vcpu>, context: &VcpuContext) -> Result<Self, StartError> {
        let mut started =
            VcpuThreads { gate: context.gate.clone(), threads: Vec::with_capacity(vcpus.len()) };
        for vcpu in vcpus {
            let (context, kickable) = (context.clone(), Arc::default());
            let ready = Arc::clone(&kickable);
            let thread = thread::Builder::new()
                .name(format!("vcpu{}", vcpu.id()))
                .stack_size(STACK)
                .spawn(move || run(vcpu, &context, &ready))
                .map_err(StartError::Thread)?;
            started.threads.push((thread, kickable));
        }
        Ok(started)
    }

    /// Makes all of them leave the guest and end.
    ///
    /// A kick is a signal, which would end the process if it met a thread that has only just begun and does not block
    /// it yet. So only those are kicked that said they are ready; one that says so later sees the gate shut after it. Each
    /// side writes its flag before it reads the other's, in one order for all: one of the two must see.
    pub(super) fn stop(&mut self) {
        self.gate.shut();
        let ready = self.threads.iter().filter(|(_, kickable)| kickable.load(Ordering::SeqCst));
        ready.for_each(|(thread, _)| kick::kick(thread));
        for (thread, _) in self.threads.drain(..) {
            // A panic in it was printed when it happened, and the machine is going down.
            let _ = thread.join();
        }
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Address space for a vCPU thread's stack; only what is used is ever backed by memory.
const STACK: usize = 256 << 10;

fn run(mut vcpu: Vcpu, context: &VcpuContext, kickable: &AtomicBool) {
    // Said if nothing better is: a vCPU that ends without a word would leave the machine standing.
    let mut last_word = LastWord { context, what: Some(VcpuEvent::Failed(StartError::Internal("a vCPU"))) };
    last_word.what = match kick::accept_kicks(&vcpu) {
        Ok(()) => {
            kickable.store(true, Ordering::SeqCst);
            run_until(&mut vcpu, &context.buses, &context.gate)
        }
        Err(error) => Some(VcpuEvent::Failed(StartError::Kvm(error))),
    };
}

/// Runs the guest until it has something to say to the supervisor, or `None` once the gate is shut.
fn run_until(vcpu: &mut Vcpu, buses: &Buses, gate: &Gate) -> Option<VcpuEvent> {
    while gate.is_open() {
        match step(vcpu, buses) {
            Ok(None) => {}
            // Every effect ends this boot: run no instruction behind it.
            Ok(Some(effect)) => return Some(VcpuEvent::Effect(effect)),
            Err(crash) => return Some(VcpuEvent::Crashed(crash)),
        }
    }
    // The last access may still wait for its completion; the vCPU is thrown away, so nobody reads its state.
    None
}

/// Tells the supervisor how a vCPU thread ended, also when it panics.
struct LastWord<'a> {
    context: &'a VcpuContext,
    what: Option<VcpuEvent>,
}

impl Drop for LastWord<'_> {
    fn drop(&mut self) {
        if let Some(what) = self.what.take() {
            // The supervisor is gone only when the machine is going down.
            let _ = self.context.events.send(Event::Vcpu { boot: self.context.boot, what });
        }
    }
}

/// What a vCPU tells the supervisor.
#[derive(Debug)]
pub(super) enum VcpuEvent {
    Effect(Effect),
    Crashed(Crash),
    Failed(StartError),
}

/// Enters the guest once and serves what it left it for.
fn step(vcpu: &mut Vcpu, buses: &Buses) -> Result<Option<Effect>, Crash> {
    let reason = match vcpu.enter(Entry::Run) {
        Exit::PortIn { port, width, data } => {
            return Ok(elements(data, width, |data| buses.ports.read(u64::from(port), data)));
        }
        Exit::PortOut { port, width, data } => {
            return Ok(data
                .chunks_exact(width.max(1))
                .fold(None, |effect, data| effect.or(buses.ports.write(u64::from(port), data))));
        }
        Exit::MmioRead { address, data } => return Ok(buses.mmio.read(address, data)),
        Exit::MmioWrite { address, data } => return Ok(buses.mmio.write(address, data)),
        Exit::Interrupted => {
            kick::take_kicks();
            return Ok(None);
        }
        Exit::Unhandled(reason) => reason.to_string(),
    };
    Err(Crash { vcpu: vcpu.id(), rip: vcpu.rip(), reason })
}

/// A string instruction moves several elements through one port.
fn elements(
    data: &mut [u8],
    width: usize,
    mut access: impl FnMut(&mut [u8]) -> Option<Effect>,
) -> Option<Effect> {
    let mut effect = None;
    for element in data.chunks_exact_mut(width.max(1)) {
        effect = effect.or(access(element));
    }
    effect
}
