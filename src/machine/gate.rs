//! Whether the vCPUs of one boot may run.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Wake;

use devices::console::ByteQueue;

use super::BootNumber;
use super::full_disks::FullDisk;
use super::supervisor::Event;

/// What the vCPUs shall do.
mod wish {
    pub(super) const RUN: u8 = 0;
    pub(super) const REST: u8 = 1;
    pub(super) const END: u8 = 2;
}

/// What every vCPU asks before it enters the guest, and wherever it may have to wait for somebody outside.
#[derive(Debug)]
pub(super) struct VcpuGate {
    boot: BootNumber,
    /// Changed with `inside` locked; read without, as each entry into the guest does.
    wish: AtomicU8,
    inside: Mutex<Inside>,
    changed: Condvar,
    /// The only thing that a vCPU waits for: room for the output of the guest's consoles.
    outputs: Vec<Arc<ByteQueue>>,
    events: Sender<Event>,
}

/// Who may change the guest's state.
#[derive(Debug, Default)]
struct Inside {
    vcpus: usize,
    /// How often they were asked to rest, so that the answer to one is not taken for the next one's.
    round: u64,
    /// How often a resting vCPU was given something to do.
    requests: u64,
}

impl VcpuGate {
    pub(super) fn new(boot: BootNumber, outputs: Vec<Arc<ByteQueue>>, events: Sender<Event>) -> Self {
        let (wish, inside, changed) = (AtomicU8::new(wish::RUN), Mutex::default(), Condvar::new());
        VcpuGate { boot, wish, inside, changed, outputs, events }
    }

    /// One that lets no vCPU in before [`VcpuGate::open`].
    pub(super) fn new_held(boot: BootNumber, outputs: Vec<Arc<ByteQueue>>, events: Sender<Event>) -> Self {
        VcpuGate { wish: AtomicU8::new(wish::REST), ..VcpuGate::new(boot, outputs, events) }
    }

    /// Whether a vCPU may enter the guest: if not, [`VcpuGate::rest`].
    pub(super) fn is_open(&self) -> bool {
        self.wish.load(Ordering::SeqCst) == wish::RUN
    }

    /// Lets no vCPU in any more, nor wait. Those inside the guest have to be called out.
    pub(super) fn shut(&self) {
        self.set(&self.lock(), wish::END);
    }

    /// Lets no vCPU in until [`VcpuGate::open`]. [`Event::AtRest`] comes, with the number given here, once none runs; those
    /// inside the guest have to be called out.
    pub(super) fn hold(&self) -> u64 {
        let mut inside = self.lock();
        inside.round += 1;
        self.set(&inside, wish::REST);
        self.tell(&inside);
        inside.round
    }

    /// Lets them in again.
    pub(super) fn open(&self) {
        self.set(&self.lock(), wish::RUN);
    }

    /// Wakes the vCPUs that rest, for what they have been sent.
    pub(super) fn call_resting(&self) {
        self.lock().requests += 1;
        self.changed.notify_all();
    }

    /// A vCPU's thread comes, and is inside until what it gets is dropped.
    pub(super) fn come(self: &Arc<Self>) -> GateTicket {
        self.lock().vcpus += 1;
        GateTicket(self.clone())
    }

    /// A disk of this boot found no room on the host.
    pub(super) fn disk_full(&self, disk: FullDisk) {
        // The supervisor is gone only when the machine is going down.
        let _ = self.events.send(Event::DiskFull { boot: self.boot, disk });
    }

    /// Whether a console's reader has to come before its writers go on: [`GateTicket::wait_for_room`].
    pub(super) fn is_over(&self) -> bool {
        self.outputs.iter().any(|output| output.is_over())
    }

    fn leave(&self) {
        let mut inside = self.lock();
        inside.vcpus = inside.vcpus.saturating_sub(1);
        self.tell(&inside);
    }

    /// Waits until the gate is open or shut, and says whether it is open. Meanwhile calls `serve` when it comes, and after each
    /// [`VcpuGate::call_resting`].
    fn enter(&self, serve: &mut dyn FnMut()) -> bool {
        let mut inside = self.lock();
        while self.wish.load(Ordering::SeqCst) == wish::REST {
            let requests = inside.requests;
            drop(inside);
            serve();
            inside = self.lock();
            while self.wish.load(Ordering::SeqCst) == wish::REST && inside.requests == requests {
                inside = self.changed.wait(inside).unwrap_or_else(PoisonError::into_inner);
            }
        }
        inside.vcpus += 1;
        self.is_open()
    }

    fn set(&self, _inside: &MutexGuard<'_, Inside>, wish: u8) {
        self.wish.store(wish, Ordering::SeqCst);
        self.changed.notify_all();
        self.outputs.iter().for_each(|output| output.nudge());
    }

    fn tell(&self, inside: &Inside) {
        if inside.vcpus == 0 && self.wish.load(Ordering::SeqCst) == wish::REST {
            // The supervisor is gone only when the machine is going down.
            let _ = self.events.send(Event::AtRest { boot: self.boot, round: inside.round });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A vCPU's thread behind the gate.
#[derive(Debug)]
pub(super) struct GateTicket(Arc<VcpuGate>);

impl GateTicket {
    /// Stays outside until the gate is open or shut, and says whether it is open. Calls `serve` for what the vCPU is sent
    /// meanwhile; see [`VcpuGate::call_resting`].
    pub(super) fn rest(&self, serve: &mut dyn FnMut()) -> bool {
        self.0.leave();
        self.0.enter(serve)
    }

    /// Stays outside until the consoles' readers have come, too: a vCPU that waits does not run. It holds no device meanwhile,
    /// so that others can still be paused.
    pub(super) fn wait_for_room(&self, serve: &mut dyn FnMut()) -> bool {
        loop {
            self.0.leave();
            for output in &self.0.outputs {
                output.wait_while_over(|| self.0.is_open());
            }
            if !self.0.enter(serve) {
                return false;
            }
            if !self.0.is_over() {
                return true;
            }
        }
    }
}

impl Drop for GateTicket {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A device has filled the console, which no vCPU sees by itself.
impl Wake for VcpuGate {
    fn wake(self: Arc<Self>) {
        // The supervisor is gone only when the machine is going down.
        let _ = self.events.send(Event::OutputOver { boot: self.boot });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver};
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn gate() -> (Arc<VcpuGate>, Receiver<Event>, Arc<ByteQueue>) {
        let (sender, events) = mpsc::channel();
        let output = Arc::new(ByteQueue::new(1));
        let outputs = vec![Arc::new(ByteQueue::new(1)), output.clone()];
        (Arc::new(VcpuGate::new(BootNumber::default(), outputs, sender)), events, output)
    }

    fn rested(events: &Receiver<Event>, expected: u64) {
        let event = events.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(matches!(event, Event::AtRest { round, .. } if round == expected), "{event:?}");
        assert!(events.try_recv().is_err(), "once only");
    }

    #[test]
    fn all_vcpus_rest_before_it_is_said_and_run_again_when_let() {
        let (gate, events, _) = gate();
        let stay = || {
            let (insider, gate) = (gate.come(), gate.clone());
            thread::spawn(move || {
                while gate.is_open() || insider.rest(&mut || ()) {
                    thread::yield_now();
                }
            })
        };
        let threads = [stay(), stay()];
        for _ in 0..100 {
            let round = gate.hold();
            rested(&events, round);
            gate.open();
        }
        gate.shut();
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_vcpu_that_waits_for_its_reader_rests_already() {
        let (gate, events, output) = gate();
        output.push_over(b"xy");
        let own = gate.clone();
        let thread = thread::spawn(move || own.come().wait_for_room(&mut || ()));
        while output.waiting_producers() == 0 {
            thread::yield_now();
        }
        let round = gate.hold();
        rested(&events, round);
        // Let in again it waits on, and rests as often as it is asked to.
        gate.open();
        let round = gate.hold();
        rested(&events, round);
        // Its reader comes while it rests, and it waits to be let in.
        assert_eq!(output.pop(&mut [0]), 1);
        gate.open();
        assert!(thread.join().unwrap());
    }

    #[test]
    fn a_resting_vcpu_serves_what_it_is_sent_and_none_is_lost() {
        let (gate, events, _) = gate();
        let round = gate.hold();
        rested(&events, round);
        let (sender, sent) = mpsc::channel::<u32>();
        let (answer, answers) = mpsc::channel();
        let (insider, own) = (gate.come(), gate.clone());
        let thread = thread::spawn(move || {
            let mut serve = || sent.try_iter().for_each(|number| answer.send(number).unwrap());
            assert!(!own.is_open() && insider.rest(&mut serve));
        });
        for number in 0..1000 {
            sender.send(number).unwrap();
            gate.call_resting();
            assert_eq!(answers.recv_timeout(Duration::from_secs(60)), Ok(number));
        }
        gate.open();
        thread.join().unwrap();
    }

    #[test]
    fn nobody_waits_behind_a_shut_gate() {
        let (gate, _, output) = gate();
        output.push_over(b"xy");
        gate.hold();
        gate.shut();
        assert!(!gate.come().rest(&mut || ()));
        assert!(!gate.come().wait_for_room(&mut || ()));
    }
}
