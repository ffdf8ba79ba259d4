//! Offloads as flags of the TUN driver (`TUN_F_*` in linux/if_tun.h).

use virtio::net::Offloads;

const NAMES: [(Offloads, libc::c_ulong); 7] = [
    (Offloads::CSUM, 0x01),
    (Offloads::TSO4, 0x02),
    (Offloads::TSO6, 0x04),
    (Offloads::ECN, 0x08),
    (Offloads::UFO, 0x10),
    (Offloads::USO, 0x20 | 0x40),
    (Offloads::empty(), 0),
];

const TCP: Offloads = Offloads::CSUM.union(Offloads::TSO4).union(Offloads::TSO6).union(Offloads::ECN);

/// Sets of offloads, best first: USO came with Linux 6.2; some kernels lack UFO.
pub(super) const CANDIDATES: [Offloads; 5] = [
    TCP.union(Offloads::UFO).union(Offloads::USO),
    TCP.union(Offloads::USO),
    TCP.union(Offloads::UFO),
    TCP,
    Offloads::CSUM,
];

/// The argument of TUNSETOFFLOAD.
pub(super) fn bits(offloads: Offloads) -> libc::c_ulong {
    NAMES.iter().filter(|(name, _)| offloads.contains(*name)).fold(0, |all, (_, bit)| all | bit)
}
