//! The vCPU threads: enter the guest, hand its accesses to the buses, tell the supervisor what they ask for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use devices::bus::{Bus, Effect};
use devices::thread::{self, Role};

use super::ends::Activity;
use super::exit::Crash;
use super::gate::{GateTicket, VcpuGate};
use super::stats::{ExitCounters, VcpuStats};
use super::supervisor::Event;
use super::vcpu_handle::{VcpuHandle, VcpuRequests};
use super::{BootNumber, StartError};
use crate::kvm::vcpu::{Entry, Exit, Unhandled, Vcpu};
use crate::kvm::{Posture, kick};

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
    pub(super) gate: Arc<VcpuGate>,
}

/// The threads `vcpu0`, `vcpu1`, ... of one boot. Dropping them stops them.
#[derive(Debug)]
pub(super) struct VcpuThreads {
    gate: Arc<VcpuGate>,
    threads: Vec<VcpuThread>,
}

#[derive(Debug)]
struct VcpuThread {
    thread: JoinHandle<()>,
    /// It blocks the kick's signal by now.
    kickable: Arc<AtomicBool>,
    exits: Arc<ExitCounters>,
    seen: Arc<Seen>,
}

impl VcpuThreads {
    /// Starts a thread for each vCPU. The handles, in the same order, save them.
    pub(super) fn start(
        vcpus: Vec<Vcpu>,
        context: &VcpuContext,
    ) -> Result<(Self, Vec<VcpuHandle>), StartError> {
        let mut started =
            VcpuThreads { gate: context.gate.clone(), threads: Vec::with_capacity(vcpus.len()) };
        let mut handles = Vec::with_capacity(vcpus.len());
        for vcpu in vcpus {
            let (context, kickable, exits) = (context.clone(), Arc::default(), Arc::default());
            let seen = Arc::<Seen>::default();
            let (ready, counters, shown) = (Arc::clone(&kickable), Arc::clone(&exits), seen.clone());
            // Here, so that a pause right after this waits for all of them.
            let insider = context.gate.come();
            let (handle, requests) = VcpuHandle::new(context.gate.clone());
            let name = format!("vcpu{}", vcpu.id());
            let thread = thread::spawn(Role::Vcpu, &name, move || {
                let (context, exits, seen) = (&context, &*counters, &*shown);
                let running =
                    Running { vcpu, context, exits, seen, requests, look: false, unfinished: false };
                run(running, &insider, &ready)
            })
            .map_err(StartError::Thread)?;
            started.threads.push(VcpuThread { thread, kickable, exits, seen });
            handles.push(handle);
        }
        Ok((started, handles))
    }

    /// Makes all of them leave the guest and end.
    ///
    /// A kick is a signal, which would end the process if it met a thread that has only just begun and does not block
    /// it yet. So only those are kicked that said they are ready; one that says so later sees the gate shut after it. Each
    /// side writes its flag before it reads the other's, in one order for all: one of the two must see.
    fn stop(&mut self) {
        self.shut();
        for vcpu in self.threads.drain(..) {
            // A panic in it was printed when it happened, and the machine is going down.
            let _ = vcpu.thread.join();
        }
    }

    /// Makes all of them leave the guest and end, and does not wait until they have.
    pub(super) fn shut(&self) {
        self.gate.shut();
        self.kick();
    }

    /// Makes all of them leave the guest and wait. [`Event::AtRest`] comes, with the number given here, when they do.
    pub(super) fn pause(&self) -> u64 {
        let round = self.gate.hold();
        self.kick();
        round
    }

    /// Lets them go on.
    pub(super) fn resume(&self) {
        self.gate.open();
    }

    /// Why each of them left the guest so far.
    pub(super) fn exits(&self) -> Vec<VcpuStats> {
        self.threads.iter().map(|vcpu| vcpu.exits.now()).collect()
    }

    /// Asks each of them to show what it does; [`VcpuThreads::activity`] then tells.
    pub(super) fn ask(&self) {
        self.threads.iter().for_each(|vcpu| vcpu.seen.ask());
        self.kick();
    }

    /// What all of them together did when they were asked.
    pub(super) fn activity(&self) -> Activity {
        let together = |all, vcpu: &VcpuThread| match (all, vcpu.seen.posture()) {
            (Activity::Unknown, _) | (_, None) => Activity::Unknown,
            (Activity::Alive, _) | (_, Some(Posture::Program | Posture::Idle)) => Activity::Alive,
            (Activity::Kernel, _) | (_, Some(Posture::Kernel)) => Activity::Kernel,
            (Activity::Halted, Some(Posture::Halted)) => Activity::Halted,
        };
        self.threads.iter().fold(Activity::Halted, together)
    }

    /// Makes all of them leave the guest for a moment, and look whether they may enter it again.
    pub(super) fn kick(&self) {
        let ready = self.threads.iter().filter(|vcpu| vcpu.kickable.load(Ordering::SeqCst));
        ready.for_each(|vcpu| kick::kick(&vcpu.thread));
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a vCPU does, as its own thread shows it when it is asked.
#[derive(Debug, Default)]
struct Seen(AtomicU8);

impl Seen {
    const NEVER_ASKED: u8 = 0;
    const ASKED: u8 = 1;
    /// Behind these, postures by their number.
    const POSTURES: [Posture; 4] = [Posture::Program, Posture::Kernel, Posture::Idle, Posture::Halted];

    fn ask(&self) {
        self.0.store(Self::ASKED, Ordering::Release);
    }

    fn answer(&self, vcpu: &Vcpu) {
        if self.0.load(Ordering::Acquire) != Self::ASKED {
            return;
        }
        let posture = vcpu.posture().and_then(|posture| Self::POSTURES.iter().position(|p| *p == posture));
        let number = posture.and_then(|at| u8::try_from(at + 2).ok()).unwrap_or(Self::NEVER_ASKED);
        self.0.store(number, Ordering::Release);
    }

    fn posture(&self) -> Option<Posture> {
        let at = usize::from(self.0.load(Ordering::Acquire)).checked_sub(2)?;
        Self::POSTURES.get(at).copied()
    }
}

fn run(mut running: Running<'_>, insider: &GateTicket, kickable: &AtomicBool) {
    // Said if nothing better is: a vCPU that ends without a word would leave the machine standing.
    let context = running.context;
    let mut last_word = LastWord { context, what: Some(VcpuEvent::Failed(StartError::Internal("a vCPU"))) };
    last_word.what = match kick::accept_kicks(&running.vcpu) {
        Ok(()) => {
            kickable.store(true, Ordering::SeqCst);
            running.until_the_end(insider).unwrap_or_else(Some)
        }
        Err(error) => Some(VcpuEvent::Failed(StartError::Kvm(error))),
    };
}

/// An instruction may need so many accesses before a vCPU rests. Only a string instruction needs more than a few: KVM
/// leaves it after 1024 elements at the latest, at a place where the vCPU can be saved.
const MOST_ACCESSES: usize = 2048;

/// A vCPU on its thread.
struct Running<'a> {
    vcpu: Vcpu,
    context: &'a VcpuContext,
    exits: &'a ExitCounters,
    seen: &'a Seen,
    requests: VcpuRequests,
    /// The last access may have been to the console, or somebody called: to be looked at before the next entry.
    look: bool,
    /// It rests in the midst of an instruction, after [`MOST_ACCESSES`].
    unfinished: bool,
}

/// Why the guest was left.
enum Step {
    /// For an access, which is done. Every effect ends this boot: run no instruction behind it.
    Served(Option<Effect>),
    /// Somebody called this thread, or nothing was left to complete.
    Called,
}

impl Running<'_> {
    /// Runs the guest until it has something to say to the supervisor, or `None` once the gate is shut.
    fn until_the_end(&mut self, insider: &GateTicket) -> Result<Option<VcpuEvent>, VcpuEvent> {
        // One that comes to a closed gate has not run: there is nothing to complete.
        if !self.context.gate.is_open() && !insider.rest(&mut || self.requests.serve(&self.vcpu, false)) {
            return Ok(None);
        }
        loop {
            while self.context.gate.is_open() {
                if let Step::Served(Some(effect)) = self.step(Entry::Run)? {
                    return Ok(Some(VcpuEvent::Effect(effect)));
                }
                if std::mem::take(&mut self.look) && self.context.gate.is_over() {
                    break;
                }
            }
            if let Some(effect) = self.complete()? {
                return Ok(Some(VcpuEvent::Effect(effect)));
            }
            // A reader that does not come holds up who writes, between two instructions.
            let mut serve = || self.requests.serve(&self.vcpu, self.unfinished);
            let gate = &self.context.gate;
            let open =
                if gate.is_open() { insider.wait_for_room(&mut serve) } else { insider.rest(&mut serve) };
            if !open {
                return Ok(None);
            }
            self.vcpu.was_stopped();
        }
    }

    /// Completes the access that the guest was left for, so that the vCPU stands between two instructions.
    fn complete(&mut self) -> Result<Option<Effect>, VcpuEvent> {
        self.unfinished = false;
        for _ in 0..MOST_ACCESSES {
            match self.step(Entry::Complete)? {
                Step::Called => return Ok(None),
                Step::Served(None) => {}
                Step::Served(effect) => return Ok(effect),
            }
        }
        self.unfinished = true;
        Ok(None)
    }

    /// Enters the guest once and serves what it left it for.
    fn step(&mut self, entry: Entry) -> Result<Step, VcpuEvent> {
        let (buses, exits) = (&self.context.buses, self.exits);
        let effect = match self.vcpu.enter(entry) {
            Exit::PortIn { port, width, data } => {
                exits.port_in.add_one();
                elements(data, width, |data| buses.ports.read(u64::from(port), data))
            }
            Exit::PortOut { port, width, data } => {
                exits.port_out.add_one();
                self.look = true;
                data.chunks_exact(width.max(1))
                    .fold(None, |effect, data| effect.or(buses.ports.write(u64::from(port), data)))
            }
            Exit::MmioRead { address, data } => {
                exits.mmio_read.add_one();
                buses.mmio.read(address, data)
            }
            Exit::MmioWrite { address, data } => {
                exits.mmio_write.add_one();
                buses.mmio.write(address, data)
            }
            Exit::Interrupted => {
                exits.interrupted.add_one();
                kick::take_kicks();
                self.seen.answer(&self.vcpu);
                self.look = true;
                return Ok(Step::Called);
            }
            Exit::Unhandled(reason) => {
                let crash = Crash { vcpu: self.vcpu.id(), rip: self.vcpu.rip(), reason: reason.to_string() };
                return Err(match reason {
                    Unhandled::TripleFault => VcpuEvent::TripleFault(crash),
                    _ => VcpuEvent::Crashed(crash),
                });
            }
        };
        Ok(Step::Served(effect))
    }
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
    /// A crash, or a kernel's way to restart.
    TripleFault(Crash),
    Crashed(Crash),
    Failed(StartError),
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
