//! A guest, or several that share a network, that send anything to it: noise, and packets of every protocol with right headers
//! around noise, while the host's sockets give and fail as they like, and time passes.
//!
//! Promises: no panic and no hang; sockets, flows, leases and answers keep their limits; a frame for one guest goes to one that has
//! spoken; after all of it the gateway answers, one who has said nothing so far as well.
//!
//! Input: a byte whose first bit says that there are several guests, then steps of a kind, a length and as many bytes. Each guest
//! has an Ethernet address that the kind chooses.
#![no_main]

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use usernet::testing::MockHost;
use usernet::{
    Accepts, Checksum, Config, Destination, Forward, Guests, LONGEST_FRAME, Limits, Network, Offload, Protocol, Ready,
};

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 0x15];
const LEASES: u16 = 4;
const CONNECTIONS: usize = 16;
const FLOWS: usize = 16;
const PINGS: usize = 4;
const QUEUED: usize = 32;

/// A DHCP message of `guest` with a right header, of which `bytes` choose the kind, the client's address and an option.
fn dhcp(guest: u8, bytes: &[u8]) -> Vec<u8> {
    let [kind, client, option, option_len, rest @ ..] = bytes else { return Vec::new() };
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0, 0, 10, 0, 2, *client];
    message.resize(28, 0);
    message.extend([2, 0, 0, 0, 0, 0x15 + guest]);
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, *kind, 50, 4, 10, 0, 2, *client, *option, *option_len]);
    message.extend(rest);
    let len = u16::try_from(8 + message.len()).unwrap_or(8).to_be_bytes();
    let mut payload = vec![17, 255, 255, 255, 255, 0, 68, 0, 67, len[0], len[1], 0, 0];
    payload.extend(message);
    ipv4(*client, &payload)
}

/// An Ethernet frame of `guest` around `payload`.
fn frame(kind: u8, guest: u8, payload: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = match kind % 3 {
        0 => [0x08, 0x00],
        1 => [0x08, 0x06],
        _ => [0x86, 0xdd],
    };
    let mut frame = Config::default().gateway_mac.to_vec();
    frame.extend(GUEST.map(|byte| if byte == 0x15 { byte + guest } else { byte }));
    frame.extend(ethertype);
    frame.extend(payload);
    frame
}

/// An IPv4 packet from 10.0.2.`host` with a right header.
fn ipv4(host: u8, payload: &[u8]) -> Vec<u8> {
    let [protocol, a, b, c, d, payload @ ..] = payload else { return Vec::new() };
    let [high, low] = u16::try_from(20 + payload.len()).unwrap_or(20).to_be_bytes();
    let mut packet =
        vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, *protocol, 0, 0, 10, 0, 2, host, *a, *b, *c, *d];
    let sum: u32 = packet.chunks(2).map(|word| (u32::from(word[0]) << 8) + u32::from(word[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(payload);
    packet
}

struct Run {
    several: bool,
    network: Network<MockHost>,
    now: Instant,
    room: Vec<u8>,
}

impl Run {
    fn step(&mut self, kind: u8, bytes: &[u8]) {
        let left = Offload { checksum: Checksum::Partial { start: 34, offset: 6 }, gso: None };
        let first = bytes.first().copied().unwrap_or(0);
        // A guest uses its own address, or that of another.
        let guest = if self.several { kind >> 3 & 3 } else { 0 };
        let host = 15 + if self.several { first & 3 } else { 0 };
        match kind % 8 {
            0 if !self.several => self.network.input(bytes, Offload::default(), self.now),
            0 => self.network.input(&frame(0, guest, &dhcp(guest, bytes)), left, self.now),
            1 => self.network.input(&frame(first, guest, bytes), left, self.now),
            2 | 3 => self.network.input(&frame(0, guest, &ipv4(host, bytes)), left, self.now),
            4 => {
                let id = u64::from(first) % 64;
                let from = ([9, 9, 9, 9], 7).into();
                self.network.host().give(id, from, bytes);
                self.network.host().waiting.entry(id).or_default().push_back(from);
            }
            5 => {
                let token = self.network.host().token(u64::from(first) % 64);
                let ready = Ready { read: kind & 8 != 0, write: kind & 16 != 0, closed: kind & 32 != 0 };
                self.network.ready(token, ready, self.now);
            }
            6 => {
                let refuses = [None, Some(ErrorKind::ConnectionRefused), Some(ErrorKind::PermissionDenied)];
                self.network.host().refuses = refuses[usize::from(first) % 3];
            }
            _ => {
                self.now += Duration::from_millis(u64::from(first) * 100);
                self.network.timeout(self.now);
            }
        }
    }

    fn take(&mut self, accepts: Accepts) -> usize {
        let mut frames = 0;
        while let Some((range, _)) = self.network.output(&mut self.room, accepts, self.now) {
            let to = &self.room[range][..6];
            let known = to[..5] == GUEST[..5] && (0x15..0x1a).contains(&to[5]);
            // A guest alone may have any address, and none before its first frame.
            assert!(!self.several || to[0] & 1 == 1 || known, "{to:x?}");
            frames += 1;
            assert!(frames < 10_000, "frames without end");
        }
        frames
    }
}

fuzz_target!(|data: &[u8]| {
    let limits = Limits {
        connections: CONNECTIONS,
        udp_flows: FLOWS,
        pings: PINGS,
        queued: QUEUED,
        ..Limits::default()
    };
    let [first, data @ ..] = data else { return };
    let several = first & 1 == 1;
    let guests = if several { Guests::Many { leases: LEASES } } else { Guests::One };
    let config = Config { limits, guests, host_loopback: true, ..Config::default() };
    let mut network = Network::new(config, MockHost::default());
    network.host().forget = true;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let forward = Forward { protocol, bind: ([127, 0, 0, 1], 5555).into(), guest_port: 22 };
        let to = if first & 2 == 2 { Destination::Name("vm".into()) } else { Destination::First };
        network.forward_to(forward, to).expect("the mock has no ports that are taken");
    }
    let mut run = Run { several, network, now: Instant::now(), room: vec![0; LONGEST_FRAME] };
    let mut rest = data;
    while let [kind, len, bytes @ ..] = rest {
        let (bytes, later) = bytes.split_at(bytes.len().min(usize::from(*len)));
        run.step(*kind, bytes);
        if kind & 64 != 0 {
            let all = kind & 128 != 0;
            run.take(Accepts { checksum: all, tso4: all, tso6: all });
        }
        assert!(run.network.host().open_sockets() <= 2 + CONNECTIONS + FLOWS + PINGS);
        assert!(run.network.counters().flows <= FLOWS + PINGS);
        assert!(run.network.leases(run.now).len() <= usize::from(LEASES));
        rest = later;
    }
    run.take(Accepts::default());
    // An echo request to the gateway. One who claims an address that another has used has to wait until that one is asked.
    let echo = [1, 10, 0, 2, 2, 8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    let mut answered = false;
    for _ in 0..2 {
        let (guest, host) = if several { (4, 5) } else { (0, 15) };
        run.network.input(&frame(0, guest, &ipv4(host, &echo)), Offload::default(), run.now);
        answered |= run.take(Accepts::default()) >= 1;
        run.now += Duration::from_secs(2);
    }
    assert!(answered, "the gateway answers");
});
