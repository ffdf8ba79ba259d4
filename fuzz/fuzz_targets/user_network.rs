//! Guests that send anything to their user-mode network: noise, packets of every protocol with right headers around noise, and
//! TCP that begins well and goes on otherwise; while the host's sockets give, take and fail as they like, and time passes.
//!
//! Promises: no panic and no hang; sockets, flows, buffers and answers keep their limits; a timer that was served is not due
//! again; each frame to a guest is as the standards say. After all of it the gateway answers.
//!
//! Input: a byte of configuration, then steps of a kind, a choice, a length and as many bytes.
#![no_main]

mod packets;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use packets::{Ends, ICMP, ICMPV6, TCP, UDP, ethernet, read, u16_at, u32_at, wrap};
use usernet::testing::MockHost;
use usernet::{
    Accepts, Checksum, Config, Destination, Forward, Gso, GsoKind, Guests, LONGEST_FRAME, Limits, Network,
    Offload, Protocol, Ready,
};

const LIMITS: Limits = Limits { connections: 16, udp_flows: 16, pings: 4, buffered: 512 << 10, queued: 32 };
const FORWARDS: usize = 3;
/// Segments that are remembered, to go on with their streams.
const KEPT: usize = 8;

const KINDS: [Option<ErrorKind>; 8] = [
    None,
    None,
    Some(ErrorKind::ConnectionRefused),
    Some(ErrorKind::PermissionDenied),
    Some(ErrorKind::WouldBlock),
    Some(ErrorKind::ConnectionReset),
    Some(ErrorKind::HostUnreachable),
    Some(ErrorKind::Other),
];

/// A segment to a guest: whom it came from, and what the guest's next one would say.
struct Kept {
    ends: Ends,
    ports: [u8; 4],
    sequence: u32,
    acknowledged: u32,
}

struct Run {
    network: Network<MockHost>,
    now: Instant,
    room: Vec<u8>,
    kept: VecDeque<Kept>,
    /// The guest that sends.
    guest: u8,
}

fn mac(guest: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, guest]
}

impl Run {
    fn own(&self, v4: bool) -> IpAddr {
        match v4 {
            true => [10, 0, 2, self.guest].into(),
            false => Ipv6Addr::new(0xfd62, 0x6164, 2, 0, 0, 0xff, 0xfe00, self.guest.into()).into(),
        }
    }

    /// Addresses of the guest and a peer, by choice.
    fn ends(&self, choice: u8, spoofed: bool) -> Ends {
        let v4 = choice & 1 == 0;
        let to: &str = match (v4, choice >> 1 & 7) {
            (true, 0 | 1) => "10.0.2.2",
            (true, 2) => "10.0.2.3",
            (true, 3) => "10.0.2.16",
            (true, 4) => "255.255.255.255",
            (true, 5) => "127.0.0.1",
            (true, _) => "198.51.100.7",
            (false, 0 | 1) => "fd62:6164:2::2",
            (false, 2) => "fd62:6164:2::3",
            (false, 3) => "ff02::1:ff00:2",
            (false, 4) => "fe80::5055:aff:fe00:202",
            (false, 5) => "::ffff:127.0.0.1",
            (false, _) => "2001:db8::7",
        };
        let to: IpAddr = to.parse().expect("an address");
        let from = match (spoofed, v4) {
            (false, _) => self.own(v4),
            (true, true) => [[0, 0, 0, 0], [10, 0, 2, 2], [10, 0, 2, 15], [9, 9, 9, 9]]
                [usize::from(choice >> 4 & 3)]
            .into(),
            (true, false) => Ipv6Addr::from_bits(u128::from(choice) << (choice & 0x70)).into(),
        };
        (from, to)
    }

    fn send(&mut self, frame: (Vec<u8>, Offload)) {
        self.network.input(&frame.0, frame.1, self.now);
    }

    fn packet(&mut self, choice: u8, protocol: u8, payload: Vec<u8>) {
        let ends = self.ends(choice, choice & 0xc0 == 0xc0);
        let hops = if choice & 0xe0 == 0x20 { choice & 1 } else { 255 };
        self.send(wrap(mac(self.guest), ends, protocol, hops, payload, choice & 0x80 == 0));
    }

    /// Ports, and a header's rest from `bytes`.
    fn transport(&self, bytes: &[u8], len: usize) -> Vec<u8> {
        let port = |byte: u8| if byte & 1 == 0 { [0x1f, byte] } else { [0, 53 + byte / 2 % 16] };
        let mut payload = vec![0; len.max(bytes.len())];
        payload[..bytes.len()].copy_from_slice(bytes);
        if let [first, second, ..] = *bytes {
            payload[..4].copy_from_slice(&[0x40, first % 32, port(second)[0], port(second)[1]]);
        }
        payload
    }

    fn syn(&mut self, choice: u8, bytes: &[u8]) {
        let options = bytes.len().saturating_sub(2).min(40) / 4 * 4;
        let mut segment = self.transport(&bytes[..bytes.len().min(2)], 20);
        segment[12..16].copy_from_slice(&[(5 + options as u8 / 4) << 4, 2, 0xff, 0xff]);
        segment.extend(bytes.iter().skip(2).take(options));
        self.packet(choice & 0x0f, TCP, segment);
    }

    /// The next segment of a stream that the network has, more or less.
    fn go_on(&mut self, choice: u8, bytes: &[u8]) {
        let Some(kept) = self.kept.get(usize::from(choice) % KEPT) else { return };
        let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
        let odd = |byte: u8| (i32::from(byte as i8) << (byte & 15)) as u32;
        let flags = match byte(0) & 15 {
            0..8 => 0x10,
            8 => 0x11,
            9 => 0x14,
            10 => 0x12,
            11 => 0x04,
            12 => 0x02,
            13 => 0x30,
            _ => byte(1),
        };
        let mut segment = kept.ports.to_vec();
        segment.extend(kept.sequence.wrapping_add(odd(byte(2))).to_be_bytes());
        segment.extend(kept.acknowledged.wrapping_sub(odd(byte(3))).to_be_bytes());
        let window = if byte(4) & 1 == 0 { 0xffff } else { u16::from(byte(4)) * 64 };
        segment.extend([0x50, flags]);
        segment.extend(window.to_be_bytes());
        segment.extend([0; 4]);
        segment.resize(20 + (usize::from(byte(5)) << (byte(5) & 7)), b'x');
        let (frame, mut offload) = wrap(mac(self.guest), kept.ends, TCP, 64, segment, byte(0) & 16 != 0);
        if byte(0) & 32 != 0 {
            let kind = if kept.ends.1.is_ipv4() { GsoKind::Tcp4 } else { GsoKind::Tcp6 };
            offload.gso = Some(Gso { kind, size: byte(6).into(), headers: byte(7).into() });
        }
        self.send((frame, offload));
    }

    fn dhcp(&mut self, choice: u8, bytes: &[u8]) {
        let mut message = vec![0; 236];
        message[..4].copy_from_slice(&[1, 1, 6, 0]);
        message[4] = choice;
        if choice & 64 != 0 {
            message[12..16].copy_from_slice(&[10, 0, 2, self.guest]);
        }
        message[28..34].copy_from_slice(&mac(self.guest));
        message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, choice & 15]);
        message.extend(bytes);
        message.push(255);
        let from = if choice & 64 != 0 { self.own(true) } else { Ipv4Addr::UNSPECIFIED.into() };
        let len = (8 + message.len() as u16).to_be_bytes();
        let datagram = [&[0, 68, 0, 67, len[0], len[1], 0, 0], message.as_slice()].concat();
        let ends = (from, Ipv4Addr::BROADCAST.into());
        self.send(wrap(mac(self.guest), ends, UDP, 64, datagram, false));
    }

    fn neighbour(&mut self, choice: u8, bytes: &[u8]) {
        let kind = [133, 135, 135, 136, 134, 137, 143, 130][usize::from(choice & 7)];
        let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        if matches!(kind, 135 | 136) {
            let gateway = "fd62:6164:2::2".parse::<Ipv6Addr>().expect("an address");
            let target = if choice & 8 == 0 { gateway.octets() } else { [choice; 16] };
            message.extend(target);
        }
        message.extend(bytes);
        let from = match choice >> 4 & 3 {
            0 => Ipv6Addr::UNSPECIFIED.into(),
            1 => self.own(false),
            _ => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, self.guest.into()).into(),
        };
        let to = if choice & 64 == 0 { "ff02::2" } else { "fd62:6164:2::2" };
        let ends = (from, to.parse().expect("an address"));
        self.send(wrap(mac(self.guest), ends, ICMPV6, 255, message, false));
    }

    /// The host's side.
    fn host(&mut self, choice: u8, bytes: &[u8]) {
        let first = bytes.first().copied().unwrap_or(0);
        let now = self.now;
        let host = self.network.host();
        let id = u64::from(first) % (host.opened.len() as u64 + 1);
        let token = host.token(id);
        let from = ([198, 51, 100, 7], 0x1f02).into();
        let kind = KINDS[usize::from(first & 7)];
        match choice & 7 {
            0 => drop(host.give(id, from, &bytes.repeat(1 << (choice >> 3 & 15).min(6)))),
            1 => host.incoming.entry(id).or_default().push_back(kind.map_or(Ok((Vec::new(), from)), Err)),
            2 => host
                .waiting
                .entry(1 + id % 2)
                .or_default()
                .push_back(([127, 0, 0, 1], u16::from(first)).into()),
            3 => host.refuses = kind,
            4 => host.connect_fails = kind,
            5 => host.write_fails = kind,
            6 => host.takes = (first & 1 == 0).then_some(usize::from(first) << 6),
            _ => host.resolver = (first & 1 == 0).then_some(([127, 0, 0, 53], 53).into()),
        }
        if choice & 8 == 0 {
            let ready =
                Ready { read: choice & 16 == 0, write: choice & 32 == 0, closed: choice & 0xc0 == 0xc0 };
            self.network.ready(token, ready, now);
        }
    }

    fn step(&mut self, kind: u8, choice: u8, bytes: &[u8]) {
        match kind & 15 {
            0 => self.network.input(bytes, Offload::default(), self.now),
            1 => {
                let ethertype = [0x0806, 0x0800, 0x86dd, 0x8100][usize::from(choice & 3)];
                let partial = Checksum::Partial { start: choice.into(), offset: 6 };
                self.send((
                    ethernet(mac(self.guest), ethertype, bytes),
                    Offload { checksum: partial, gso: None },
                ));
            }
            2 => self.packet(choice, bytes.first().copied().unwrap_or(0), bytes.to_vec()),
            3 | 4 => self.syn(choice, bytes),
            5..8 => self.go_on(choice, bytes),
            8 => {
                let mut datagram = self.transport(bytes, 8);
                let len = (datagram.len() as u16).to_be_bytes();
                datagram[4..6].copy_from_slice(&len);
                self.packet(choice, UDP, datagram);
            }
            9 => {
                let v4 = choice & 1 == 0;
                let echo = [&[if v4 { 8 } else { 128 }, 0, 0, 0, 0, choice >> 6, 0, 1], bytes].concat();
                self.packet(choice & 0x3f, if v4 { ICMP } else { ICMPV6 }, echo);
            }
            10 => self.dhcp(choice, bytes),
            11 => self.neighbour(choice, bytes),
            12 | 13 => self.host(choice, bytes),
            14 => {
                let time = Duration::from_millis(1 << (choice & 31).min(28));
                self.pass(if choice & 128 == 0 { time } else { self.idle() });
            }
            _ => self.guest = 15 + choice % 3,
        }
    }

    fn idle(&self) -> Duration {
        self.network.next_timeout().map_or(Duration::ZERO, |at| at.saturating_duration_since(self.now))
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.network.timeout(self.now);
        assert!(self.network.next_timeout().is_none_or(|at| at > self.now), "a timer is due again");
    }

    /// Takes all frames, which have to be right.
    fn take(&mut self, accepts: Accepts) -> usize {
        let (mut frames, mtu) = (0, self.network.config().mtu);
        while let Some((range, offload)) = self.network.output(&mut self.room, accepts, self.now) {
            frames += 1;
            assert!(frames < 10_000, "frames without end");
            let Some(read) = read(&self.room[range], offload, accepts, mtu) else { continue };
            if read.protocol == TCP {
                let segment = read.payload;
                let payload = segment.len() - usize::from(segment[12] >> 4) * 4;
                let takes = payload as u32 + u32::from(segment[13] & 1) + u32::from(segment[13] >> 1 & 1);
                self.kept.truncate(KEPT - 1);
                self.kept.push_front(Kept {
                    ends: (read.ends.1, read.ends.0),
                    ports: [segment[2], segment[3], segment[0], segment[1]],
                    sequence: u32_at(segment, 8),
                    acknowledged: u32_at(segment, 4).wrapping_add(takes),
                });
            } else if read.protocol == UDP {
                assert!(usize::from(u16_at(read.payload, 4)) == read.payload.len());
            }
        }
        frames
    }

    fn check(&mut self) {
        let most = FORWARDS + LIMITS.connections + LIMITS.udp_flows + LIMITS.pings;
        assert!(self.network.host().open_sockets() <= most);
        let counters = self.network.counters();
        assert!(
            counters.connections <= LIMITS.connections && counters.flows <= LIMITS.udp_flows + LIMITS.pings
        );
        assert!(counters.buffered <= LIMITS.buffered);
    }
}

fn network(choice: u8) -> Network<MockHost> {
    let guests = if choice & 1 == 0 { Guests::One } else { Guests::Many { leases: 4 } };
    let config = Config {
        guests,
        limits: LIMITS,
        host_loopback: choice & 2 == 0,
        restrict: choice & 0x0c == 0x0c,
        mtu: [1500, 1500, 1500, 1280, 9000, 65535, 1281, 2000][usize::from(choice >> 4 & 7)],
        hostname: Some("vm0".into()),
        ..Config::default()
    };
    let mut network = Network::new(config, MockHost::default());
    network.host().forget = true;
    let forward = |protocol, port| Forward { protocol, bind: ([127, 0, 0, 1], port).into(), guest_port: 22 };
    for (forward, to) in [
        (forward(Protocol::Tcp, 5555), Destination::First),
        (forward(Protocol::Tcp, 5556), Destination::Name("vm1".into())),
        (forward(Protocol::Udp, 5555), Destination::Address([10, 0, 2, 16].into())),
    ] {
        network.forward_to(forward, to).expect("the mock has no ports that are taken");
    }
    network
}

fuzz_target!(|data: &[u8]| {
    let Some((first, mut rest)) = data.split_first() else { return };
    let room = vec![0; LONGEST_FRAME];
    let mut run =
        Run { network: network(*first), now: Instant::now(), room, kept: VecDeque::new(), guest: 15 };
    while let [kind, choice, len, bytes @ ..] = rest {
        let (bytes, later) = bytes.split_at(bytes.len().min(usize::from(*len)));
        run.step(*kind, *choice, bytes);
        run.check();
        if kind & 16 == 0 {
            let (checksum, all) = (kind & 32 == 0, kind & 96 == 0);
            run.take(Accepts { checksum, tso4: all, tso6: all });
        }
        rest = later;
    }
    run.take(Accepts::default());
    if first & 1 == 0 {
        // An echo request to the gateway.
        run.packet(0, ICMP, vec![8, 0, 0, 0, 0, 0, 0, 0]);
        assert!(run.take(Accepts::default()) >= 1, "the gateway answers");
    }
});
