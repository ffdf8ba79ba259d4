//! A guest that sends anything to its user-mode network: noise, and packets of every protocol with right headers around
//! noise, while the host's sockets give and fail as they like, and time passes.
//!
//! Promises: no panic and no hang; sockets, flows and answers keep their limits; after all of it the gateway answers.
//!
//! Input: steps of a kind, a length and as many bytes.
#![no_main]

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use usernet::testing::MockHost;
use usernet::{Accepts, Checksum, Config, Forward, LONGEST_FRAME, Limits, Network, Offload, Protocol, Ready};

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 0x15];
const CONNECTIONS: usize = 16;
const FLOWS: usize = 16;
const PINGS: usize = 4;
const QUEUED: usize = 32;

/// An Ethernet frame around `payload`.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = match kind % 3 {
        0 => [0x08, 0x00],
        1 => [0x08, 0x06],
        _ => [0x86, 0xdd],
    };
    let mut frame = Config::default().gateway_mac.to_vec();
    frame.extend(GUEST);
    frame.extend(ethertype);
    frame.extend(payload);
    frame
}

/// An IPv4 packet of the guest with a right header.
fn ipv4(payload: &[u8]) -> Vec<u8> {
    let [protocol, a, b, c, d, payload @ ..] = payload else { return Vec::new() };
    let [high, low] = u16::try_from(20 + payload.len()).unwrap_or(20).to_be_bytes();
    let mut packet =
        vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, *protocol, 0, 0, 10, 0, 2, 15, *a, *b, *c, *d];
    let sum: u32 = packet.chunks(2).map(|word| (u32::from(word[0]) << 8) + u32::from(word[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(payload);
    packet
}

struct Run {
    network: Network<MockHost>,
    now: Instant,
    room: Vec<u8>,
}

impl Run {
    fn step(&mut self, kind: u8, bytes: &[u8]) {
        let left = Offload { checksum: Checksum::Partial { start: 34, offset: 6 }, gso: None };
        let first = bytes.first().copied().unwrap_or(0);
        match kind % 8 {
            0 => self.network.input(bytes, Offload::default(), self.now),
            1 => self.network.input(&frame(first, bytes), left, self.now),
            2 | 3 => self.network.input(&frame(0, &ipv4(bytes)), left, self.now),
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
        while self.network.output(&mut self.room, accepts, self.now).is_some() {
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
    let config = Config { limits, host_loopback: true, ..Config::default() };
    let mut network = Network::new(config, MockHost::default());
    network.host().forget = true;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let forward = Forward { protocol, bind: ([127, 0, 0, 1], 5555).into(), guest_port: 22 };
        network.forward(forward).expect("the mock has no ports that are taken");
    }
    let mut run = Run { network, now: Instant::now(), room: vec![0; LONGEST_FRAME] };
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
        rest = later;
    }
    run.take(Accepts::default());
    // An echo request to the gateway.
    let echo = [1, 10, 0, 2, 2, 8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    run.network.input(&frame(0, &ipv4(&echo)), Offload::default(), run.now);
    assert!(run.take(Accepts::default()) >= 1, "the gateway answers");
});
