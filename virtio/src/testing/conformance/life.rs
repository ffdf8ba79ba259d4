//! Start, stop, save, move, reset.

use devices::component::Component;
use devices::pci::function::PciFunction;
use serde_json::{Value, json};

use super::{RING, Subject, guest};
use crate::poll::Poller;
use crate::testing::{DriverRing, Guest};
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
    // Quiesced and saved, but not moved.
    moved.function.quiesce();
    moved.function.save().expect("a state");
    moved.function.go();
    subject.work(&mut moved);
    // A reset drops the positions that were kept.
    moved.start(subject.wanted(), RING);
    subject.work(&mut moved);
    moved.start(subject.wanted(), RING);
    subject.work(&mut moved);
    well(&mut moved);
}

/// A machine's order, with work in every queue: quiesce, save; load into a fresh function; go. Between the first and the last
/// of them nothing of the guest changes; the state is whole; and what was in the queues is done afterwards.
pub fn goes_on_elsewhere_with_work_in_every_queue<S: Subject>(subject: &mut S) {
    let mut guest = guest(subject);
    for round in 0..20u32 {
        guest.start(subject.wanted(), RING);
        subject.work(&mut guest);
        for queue in 0..usize::from(guest.queues()) {
            (0..RING / 4).for_each(|_| subject.burden(queue, &mut guest));
        }
        (0..round * 500).for_each(|_| std::hint::spin_loop());
        assert!(guest.function.save().is_err(), "it is at work");
        guest.function.quiesce();
        let seen = |guest: &Guest<S::Poller>| {
            let used: Vec<u16> = guest.rings.iter().map(DriverRing::used_index).collect();
            (used, guest.interrupts_of_all(), guest.bytes(0, 4 << 20))
        };
        let quiet = seen(&guest);
        guest.function.quiesce();
        let state = guest.function.save().expect("a state");
        assert_eq!(guest.function.save().as_ref(), Ok(&state), "saving changes nothing");
        (0..guest.rings.len()).for_each(|queue| guest.kick(queue));
        assert!(seen(&guest) == quiet, "it is quiesced");
        let (device, make) = (subject.device(), subject.poller());
        let mut moved = guest.fresh(device, make);
        assert_eq!(moved.function.save().as_ref(), Ok(&state), "all of its state comes over");
        assert!(seen(&moved) == (quiet.0, 0, quiet.2), "it is quiesced");
        moved.function.go();
        for queue in (0..moved.rings.len()).filter(|queue| subject.answers_at_once(*queue)) {
            moved.wait_until("its work is done", |guest| {
                guest.rings[queue].used_index() == guest.rings[queue].available_index()
            });
        }
        well(&mut moved);
        guest = moved;
    }
    guest.start(subject.wanted(), RING);
    subject.work(&mut guest);
    well(&mut guest);
}

/// A state in which any one value is another: refused with nothing changed, or survived; and the device works after a reset.
pub fn survives_odd_states<S: Subject>(subject: &mut S) {
    let mut guest = guest(subject);
    guest.start(subject.wanted(), RING);
    subject.work(&mut guest);
    guest.function.quiesce();
    let config = *guest.function().config().bytes();
    let good = guest.function.save().expect("a state");
    let mut places = Vec::new();
    collect(&good.data, String::new(), &mut places);
    for place in places {
        for odd in [
            json!(null),
            json!(-1),
            json!(1),
            json!(0xffff),
            json!(u64::MAX),
            json!("00"),
            json!([]),
            json!(true),
        ] {
            let mut state = good.clone();
            let Some(value) = state.data.pointer_mut(&place) else { continue };
            *value = odd;
            let before = guest.function.save().expect("a state");
            match guest.load(&config, &state) {
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    assert_eq!(guest.function.save(), Ok(before), "{place}: refused, and nothing is changed");
                }
                Ok(()) => {
                    guest.function.go();
                    (0..guest.rings.len()).for_each(|queue| guest.kick(queue));
                    guest.function.quiesce();
                    guest.function.save().expect("its thread lives");
                }
            }
        }
    }
    guest.function.go();
    guest.start(subject.wanted(), RING);
    subject.work(&mut guest);
}

/// The places of all values in `state`.
fn collect(state: &Value, at: String, all: &mut Vec<String>) {
    match state {
        Value::Array(values) => {
            (0..).zip(values).for_each(|(n, value): (u32, _)| collect(value, format!("{at}/{n}"), all));
        }
        Value::Object(values) => {
            values.iter().for_each(|(key, value)| collect(value, format!("{at}/{key}"), all));
        }
        _ => {}
    }
    all.push(at);
}

/// No bus master, no write to the guest's memory and no interrupt (PCI 3.0 §6.2.2): where a driver starts the device before
/// it sets the bit, and from the clearing of the bit on; also for a machine that is paused, saved and moved meanwhile.
pub fn rests_while_it_is_no_bus_master<S: Subject>(subject: &mut S) {
    let mut guest = guest(subject);
    guest.negotiate(subject.wanted());
    guest.set_bus_master(false);
    guest.activate(RING);
    guest.function().shared_registers().config();
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
        guest.function().shared_registers().config();
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
    guest.function.quiesce();
    guest.function.go();
    (guest.rings.iter().map(|ring| ring.used_index()).collect(), guest.interrupts_of_all())
}

fn well<P: Poller>(guest: &mut Guest<P>) {
    assert_eq!(guest.status(), 0xf, "nothing went wrong");
}
