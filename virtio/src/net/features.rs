//! Feature bits of a network device (virtio 1.3 §5.1.3), and what they mean in offloads.

use super::Offloads;

/// The device takes frames without a checksum.
pub(super) const CSUM: u64 = 1 << 0;
/// The driver takes frames without a checksum.
pub(super) const GUEST_CSUM: u64 = 1 << 1;
/// The driver's offloads can change while it runs.
pub(super) const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// The device reports the wire's MTU.
pub(super) const MTU: u64 = 1 << 3;
/// The device has an address.
pub(super) const MAC: u64 = 1 << 5;
/// The driver takes TCP over IPv4 uncut.
pub(super) const GUEST_TSO4: u64 = 1 << 7;
/// The driver takes TCP over IPv6 uncut.
pub(super) const GUEST_TSO6: u64 = 1 << 8;
/// The driver takes uncut TCP that carries congestion notification.
pub(super) const GUEST_ECN: u64 = 1 << 9;
/// The driver takes UDP that is not fragmented.
pub(super) const GUEST_UFO: u64 = 1 << 10;
/// The device takes TCP over IPv4 uncut.
pub(super) const HOST_TSO4: u64 = 1 << 11;
/// The device takes TCP over IPv6 uncut.
pub(super) const HOST_TSO6: u64 = 1 << 12;
/// The device takes uncut TCP that carries congestion notification.
pub(super) const HOST_ECN: u64 = 1 << 13;
/// The device takes UDP that is not fragmented.
pub(super) const HOST_UFO: u64 = 1 << 14;
/// A received frame may lie in several buffers.
pub(super) const MRG_RXBUF: u64 = 1 << 15;
/// The device reports whether it has a link.
pub(super) const STATUS: u64 = 1 << 16;
/// There is a control queue.
pub(super) const CTRL_VQ: u64 = 1 << 17;
/// There is more than one pair of queues.
pub(super) const MQ: u64 = 1 << 22;
/// The driver takes UDP datagrams over IPv4 uncut.
pub(super) const GUEST_USO4: u64 = 1 << 54;
/// The driver takes UDP datagrams over IPv6 uncut.
pub(super) const GUEST_USO6: u64 = 1 << 55;
/// The device takes UDP datagrams uncut.
pub(super) const HOST_USO: u64 = 1 << 56;

/// What the driver must take, all of it, for an offload to be used on the way to it; and what the device offers for
/// the way from it.
const TABLE: [(Offloads, u64, u64); 6] = [
    (Offloads::CSUM, GUEST_CSUM, CSUM),
    (Offloads::TSO4, GUEST_TSO4, HOST_TSO4),
    (Offloads::TSO6, GUEST_TSO6, HOST_TSO6),
    (Offloads::ECN, GUEST_ECN, HOST_ECN),
    (Offloads::UFO, GUEST_UFO, HOST_UFO),
    // The host's kernel has one switch for both.
    (Offloads::USO, GUEST_USO4 | GUEST_USO6, HOST_USO),
];

/// All feature bits that say what the driver takes: what CTRL_GUEST_OFFLOADS_SET may name (§5.1.6.5.6).
pub(super) const GUEST_OFFLOADS: u64 =
    GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO | GUEST_USO4 | GUEST_USO6;

/// What a device on a wire with `offloads` can offer.
pub(super) fn offered(offloads: Offloads) -> u64 {
    let used = TABLE.iter().filter(|(offload, ..)| offloads.contains(*offload));
    used.fold(0, |bits, (_, guest, host)| bits | guest | host)
}

/// What the wire may hand to a driver that took `features`.
pub(super) fn to_guest(features: u64) -> Offloads {
    all(features, |(_, guest, _)| guest)
}

/// What a driver that took `features` may hand to the wire.
pub(super) fn from_guest(features: u64) -> Offloads {
    all(features, |(.., host)| host)
}

/// §5.1.3.1: everything else needs checksums, and ECN needs TCP. A driver that took one alone gets none.
fn all(features: u64, bits: impl Fn((Offloads, u64, u64)) -> u64) -> Offloads {
    let has = |row: &&(Offloads, u64, u64)| features & bits(**row) == bits(**row);
    let offloads = TABLE.iter().filter(has).fold(Offloads::empty(), |all, row| all | row.0);
    if !offloads.contains(Offloads::CSUM) {
        return Offloads::empty();
    }
    if offloads.intersects(Offloads::TSO4 | Offloads::TSO6) { offloads } else { offloads - Offloads::ECN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offload_without_what_it_needs_is_none() {
        assert_eq!(to_guest(GUEST_TSO4 | GUEST_TSO6), Offloads::empty());
        assert_eq!(to_guest(GUEST_CSUM | GUEST_ECN), Offloads::CSUM);
        assert_eq!(to_guest(GUEST_CSUM | GUEST_USO4), Offloads::CSUM);
        assert_eq!(from_guest(CSUM | HOST_TSO4 | HOST_ECN), Offloads::CSUM | Offloads::TSO4 | Offloads::ECN);
        assert_eq!(from_guest(GUEST_OFFLOADS), Offloads::empty());
    }

    #[test]
    fn both_directions_are_offered_for_what_the_wire_can() {
        assert_eq!(offered(Offloads::empty()), 0);
        assert_eq!(offered(Offloads::CSUM), CSUM | GUEST_CSUM);
        assert_eq!(to_guest(offered(Offloads::all())), Offloads::all());
        assert_eq!(from_guest(offered(Offloads::all())), Offloads::all());
    }
}
