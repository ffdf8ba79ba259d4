//! The same life for every device: negotiated, at work, saved, moved, reset, mistreated; and at work again.
//!
//! A device's tests say once what it is ([`Subject`]) and get a test for each promise by [`crate::testing::conformance!`].

mod access;
mod chains;
mod life;
mod rings;

pub use access::config_accesses_of_every_kind;
pub use chains::{malformed_chains, odd_chains};
pub use life::{
    goes_on_elsewhere_with_work_in_every_queue, rests_while_it_is_no_bus_master, survives_odd_states, works,
    works_after_a_move, works_after_resets, works_after_resets_in_flight,
};
pub use rings::bad_rings;

use super::Guest;
use crate::device::Device;
use crate::poll::{Epoll, Poller};
use crate::worker::MakePoller;

/// Descriptors of a ring in these tests.
pub const RING: u16 = 16;

/// A device under test, with the host's side of it.
pub trait Subject {
    /// What its worker waits in.
    type Poller: Poller + 'static;

    /// A new device on the same host's side: what takes up a saved state.
    fn device(&mut self) -> Box<dyn Device<Poller = Self::Poller>>;

    /// Makes what its worker waits in.
    fn poller(&self) -> MakePoller<Self::Poller>;

    /// What its driver wants; all that it offers, unless a device says otherwise.
    fn wanted(&self) -> u64 {
        u64::MAX
    }

    /// Does all the device is for, once, with a driver that is set up; panics if the device does not do its part. Called
    /// many times, also where earlier requests went wrong and their answers never came.
    fn work(&mut self, guest: &mut Guest<Self::Poller>);

    /// As [`Subject::work`], without queue `broken`: what has to go on. Nothing for a device that cannot do without.
    fn work_without(&mut self, broken: usize, guest: &mut Guest<Self::Poller>) {
        let _ = (broken, guest);
    }

    /// Whether the device looks at the chains of `queue` as soon as it is kicked. Others it takes when it has something
    /// to put in: received frames, typed text.
    fn looks_at_once(&self, queue: usize) -> bool {
        let _ = queue;
        true
    }

    /// Gives the device a reason to look at the chains of `queue`, where it does not do so at once: a frame to receive, typed
    /// text. False if there is none.
    fn provoke(&mut self, queue: usize, guest: &mut Guest<Self::Poller>) -> bool {
        let _ = (queue, guest);
        false
    }

    /// Whether it also gives them back at once, and does not keep them until it has to say something.
    fn answers_at_once(&self, queue: usize) -> bool {
        self.looks_at_once(queue)
    }

    /// Puts into `queue` what a driver would, for a reset to come in between.
    fn burden(&mut self, queue: usize, guest: &mut Guest<Self::Poller>) {
        guest.add(queue, &[&[0; 16]], &[64]);
        guest.kick(queue);
    }
}

/// A guest with the subject's device, at power-on.
pub fn guest<S: Subject>(subject: &mut S) -> Guest<S::Poller> {
    let (device, make) = (subject.device(), subject.poller());
    Guest::new(device, make)
}

/// What most devices wait in.
pub fn epoll() -> MakePoller<Epoll> {
    Box::new(Epoll::new)
}

/// Makes a module of tests, one a promise, of the [`conformance::Subject`](Subject) that the expression gives. The
/// module is called `conformance`, or as is said before the expression.
#[macro_export]
macro_rules! conformance {
    ($subject:expr) => {
        $crate::conformance!(conformance, $subject);
    };
    ($name:ident, $subject:expr) => {
        mod $name {
            #[allow(unused_imports, reason = "what a subject is made of")]
            use super::*;
            use $crate::testing::conformance as promises;

            #[test]
            fn it_works() {
                promises::works(&mut $subject);
            }

            #[test]
            fn it_works_after_resets() {
                promises::works_after_resets(&mut $subject);
            }

            #[test]
            fn it_works_after_resets_in_flight() {
                promises::works_after_resets_in_flight(&mut $subject);
            }

            #[test]
            fn it_goes_on_elsewhere_from_its_state() {
                promises::works_after_a_move(&mut $subject);
            }

            #[test]
            fn it_goes_on_elsewhere_with_work_in_every_queue() {
                promises::goes_on_elsewhere_with_work_in_every_queue(&mut $subject);
            }

            #[test]
            fn it_survives_odd_states() {
                promises::survives_odd_states(&mut $subject);
            }

            #[test]
            fn it_rests_while_it_is_no_bus_master() {
                promises::rests_while_it_is_no_bus_master(&mut $subject);
            }

            #[test]
            fn malformed_chains_latch_their_queue_until_a_reset() {
                promises::malformed_chains(&mut $subject);
            }

            #[test]
            fn odd_chains_get_an_answer() {
                promises::odd_chains(&mut $subject);
            }

            #[test]
            fn rings_outside_of_memory_and_odd_sizes_are_refused() {
                promises::bad_rings(&mut $subject);
            }

            #[test]
            fn config_accesses_of_every_width_and_offset_are_harmless() {
                promises::config_accesses_of_every_kind(&mut $subject);
            }
        }
    };
}
