//! The PCI slots of bus 0: which device is in which slot, in one table, with the reasons.
//!
//! A guest derives names from the slot: the network interface in slot 1 is `enp0s1`, disks are `vda`, `vdb`, ... in
//! the order of their slots. So each kind has a range of its own: adding a disk renames no network interface, and
//! adding a console moves no disk.

use std::ops::RangeInclusive;

use super::{FUNCTIONS, FunctionAddress};

/// The host bridge, where a PC has it; only in machines that ask for one ([`super::host_bridge`]).
pub const HOST_BRIDGE: u8 = 0;
/// Network interfaces, in the order of the command line; first, so that the common machine has `enp0s1`.
pub const NETWORK: RangeInclusive<u8> = 1..=8;
/// Disks, in the order of the command line.
pub const DISK: RangeInclusive<u8> = 9..=24;
/// Console and ports.
pub const CONSOLE: u8 = 25;
/// Entropy.
pub const ENTROPY: u8 = 26;
/// Balloon.
pub const BALLOON: u8 = 27;
/// Shared folders, in the order of the command line; behind the third they are further functions of these slots ([`share`]).
pub const SHARE: RangeInclusive<u8> = 28..=30;
/// Free, for kinds to come.
pub const SPARE: RangeInclusive<u8> = 31..=31;

/// Maximum number of shared folders.
pub const MOST_SHARES: u8 = (*SHARE.end() - *SHARE.start() + 1) * FUNCTIONS;

/// Where the shared folder `index` is: one in each slot first, so that each slot in use has a function 0, as it must.
pub fn share(index: u8) -> Option<FunctionAddress> {
    let slots = MOST_SHARES / FUNCTIONS;
    FunctionAddress::new(SHARE.start() + index % slots, index / slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_exactly_one_use() {
        let mut slots: Vec<u8> = [HOST_BRIDGE, CONSOLE, ENTROPY, BALLOON].to_vec();
        slots.extend(NETWORK.chain(DISK).chain(SHARE).chain(SPARE));
        slots.sort_unstable();
        assert_eq!(slots, (0..super::super::DEVICES).collect::<Vec<_>>());
    }

    #[test]
    fn shares_fill_the_first_functions_of_their_slots_and_then_the_next() {
        let places: Vec<_> = (0..MOST_SHARES).map(|index| share(index).unwrap()).collect();
        let of = |index: usize| (places[index].device(), places[index].function());
        assert_eq!([0, 1, 2, 3, 23].map(of), [(28, 0), (29, 0), (30, 0), (28, 1), (30, 7)]);
        assert!((0..places.len()).all(|at| SHARE.contains(&of(at).0) && !places[..at].contains(&places[at])));
        assert_eq!(share(MOST_SHARES), None);
    }
}
