//! Start, stop, save, move, reset.

use devices::pci::function::PciFunction;

use super::{RING, Subject, guest};
use crate::poll::Poller;
use crate::testing::Guest;
use crate::transport::FEATURE_VERSION_1;

/// Bits that would be wrong for any driver to take: reserved ones.
const NOBODYS: u64 = 1 << 63;

/// Negotiation refuses what was not offered, takes what was, and the device works with all and with the least.
pub fn works<S: Subject>(subject: &mut S) {
    let mut guest = guest(subject);
    assert_eq!(guest.status(), 0, "at power-on");
    let offered = guest.offered();
    assert_ne!(offered & FEATURE_VERSION_1, 0);
    for wrong in [offered | NOBODYS, offered & !FEATURE_VERSION_1] {
        guest.reset();
        guest.set_status(3);
        guest.accept(wrong);
        guest.set_status(0xb);
        assert_eq!(guest.status(), 3, "features {wrong:#x} of {offered:#x} are not taken");
    }
    for wanted in [subject.wanted(), 0] {
        let features = guest.negotiate(wanted);
        guest.accept(offered ^ features);
        guest.activate(RING);
        assert_eq!(guest.status(), 0xf, "it runs");
        assert_eq!(guest.accepted(), features, "settled features stay");
        for _ in 0..2 * RING {
            subject.work(&mut guest);
        }
        well(&mut guest);
    }
}

/// Reset, and again at work, with rings of every size.
pub fn works_after_resets<S: Subject>(subject: &mut S) {
    let mut guest = guest(subject);
    for size in [RING, 2 * RING, 1024, RING] {
        guest.start(subject.wanted(), size);
        subject.work(&mut guest);
        guest.reset();
        assert_eq!((guest.status(), guest.accepted(), guest.isr()), (0, 0, 0), "power-on again");
        // What rings while it does not run is not for it.
        let queues = usize::from(guest.queues());
        (0..queues).for_each(|queue| guest.kick(queue));
        guest.set_config(0, &[0xff; 8]);
    }
    guest.start(subject.wanted(), RING);
    subject.work(&mut guest);
}

/// Resets while the device is at work, at moments that differ.
pub fn works_after_resets_in_flight<S: Subject>(subject: &mut S) {
    let mut guest = guest(subject);
    for round in 0..40u32 {
        guest.start(subject.wanted(), RING);
        for queue in 0..usize::from(guest.queues()) {
            for _ in 0..RING / 4 {
                subject.burden(queue, &mut guest);
            }
        }
        (0..round * 500).for_each(|_| std::hint::spin_loop());
        guest.reset();
        let rings = std::mem::take(&mut guest.last_rings);
        let used: Vec<u16> = rings.iter().map(|ring| ring.used_index()).collect();
        // The worker has done all that it had in hand once it has taken the device again, without a queue, and given it back.
        guest.negotiate(subject.wanted());
        guest.set_status(0xf);
        guest.reset();
        let after: Vec<u16> = rings.iter().map(|ring| ring.used_index()).collect();
        assert_eq!(used, after, "rings that are the driver's again are not written");
    }
    guest.start(subject.wanted(), RING);
    subject.work(&mut guest);
    well(&mut guest);
}

/// Saved while at work, restored into another function with the same memory, at work there; also when idle and when
/// only half negotiated.
pub fn works_after_a_move<S: Subject>(subject: &mut S) {
    let mut moved = guest(subject);
    let next = |moved: Guest<S::Poller>, subject: &mut S| {
        let (device, make) = (subject.device(), subject.poller());
        moved.moved(device, make)
    };
    moved = next(moved, subject);
    assert_eq!(moved.status(), 0);
    let features = moved.negotiate(subject.wanted());
    moved = next(moved, subject);
    assert_eq!((moved.status(), moved.accepted()), (0xb, features));
    moved.activate(RING);
    for _ in 0..3 {
        subject.work(&mut moved);
        let config = moved.config(0, 64);
        moved = next(moved, subject);
        assert_eq!((moved.status(), moved.accepted()), (0xf, features));
        assert_eq!(moved.config(0, 64), config, "the same configuration");
        subject.work(&mut moved);
    }
    // Saved here, without moving.
    assert!(moved.function.save().is_some());
    moved.function.resume();
    subject.work(&mut moved);
    // Paused as a machine is, saved twice during the pause, resumed here, then resumed elsewhere.
    moved.function.pause();
    let paused = moved.function.save();
    assert!(paused.is_some(), "a paused function has a state");
    assert_eq!(moved.function.save(), paused, "a save changes nothing");
    moved.function.resume();
    subject.work(&mut moved);
    moved.function.pause();
    moved = next(moved, subject);
    subject.work(&mut moved);
    // A reset drops the positions that the pause kept.
    moved.start(subject.wanted(), RING);
    subject.work(&mut moved);
    moved.start(subject.wanted(), RING);
    subject.work(&mut moved);
    well(&mut moved);
}

/// No bus master, no write to the guest's memory and no interrupt (PCI 3.0 §6.2.2): where a driver starts the device before
/// it sets the bit, and from the clearing of the bit on; also for a machine that is paused, saved and moved meanwhile.
pub fn rests_while_it_is_no_bus_master<S: Subject>(subject: &mut S) {
    let mut guest = guest(subject);
    guest.negotiate(subject.wanted());
    guest.set_bus_master(false);
    guest.activate(RING);
    guest.function.shared_registers().config();
    for moved in [false, true] {
        (0..usize::from(guest.queues())).for_each(|queue| subject.burden(queue, &mut guest));
        if moved {
            let (device, make) = (subject.device(), subject.poller());
            guest = guest.moved(device, make);
        }
        assert_eq!(at_rest(&mut guest), (vec![0; guest.rings.len()], 0), "moved: {moved}");
        assert_eq!(guest.status(), 0xf, "its driver has started it");
    }
    guest.set_bus_master(true);
    guest.wait_until("what the device owed is delivered", |guest| guest.config_interrupts() > 0);
    for round in 0..40u32 {
        guest.start(subject.wanted(), RING);
        subject.work(&mut guest);
        guest.set_bus_master(false);
        let idle = at_rest(&mut guest);
        guest.function.shared_registers().config();
        assert_eq!(at_rest(&mut guest), idle, "round {round}: a change of the configuration waits");
        guest.set_bus_master(true);
        subject.work(&mut guest);
        (0..usize::from(guest.queues())).for_each(|queue| subject.burden(queue, &mut guest));
        (0..round * 500).for_each(|_| std::hint::spin_loop());
        guest.set_bus_master(false);
        let used: Vec<u16> = guest.rings.iter().map(|ring| ring.used_index()).collect();
        let interrupts = guest.interrupts_of_all();
        assert_eq!(at_rest(&mut guest), (used, interrupts), "round {round}: in the middle of its work");
        guest.set_bus_master(true);
    }
    guest.start(subject.wanted(), RING);
    subject.work(&mut guest);
    well(&mut guest);
}

/// Kicks every queue of a device that is no bus master, and pauses it, which ends whatever its worker is at: how far its
/// rings are used then, and how many interrupts came.
fn at_rest<P: Poller + 'static>(guest: &mut Guest<P>) -> (Vec<u16>, usize) {
    (0..usize::from(guest.queues())).for_each(|queue| guest.kick(queue));
    guest.function.pause();
    guest.function.resume();
    (guest.rings.iter().map(|ring| ring.used_index()).collect(), guest.interrupts_of_all())
}

fn well<P: Poller>(guest: &mut Guest<P>) {
    assert_eq!(guest.status(), 0xf, "nothing went wrong");
}
