//! Guests that send anything to a switch, with any virtio header, while settings change, ports come and go, and time passes.
//!
//! Promises: no panic; no frame comes out of its own port, of a port of another VLAN, or of an isolated port where it came from
//! one; what waits and what is learned keep their limits; the segments of a large packet have right checksums and are its
//! payload.
//!
//! Input: steps of a kind, a port, a length and as many bytes.
#![no_main]

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use vswitch::{Accepts, Impairment, Limits, PortConfig, PortId, Ports, Switch, VlanId, VlanMode};

const ADDRESSES: usize = 24;
const WAITING: usize = 16;
const WAITING_BYTES: usize = 8192;
const PORTS: usize = 6;

/// What came out, of which port.
#[derive(Default)]
struct Outside {
    accepts: Accepts,
    sent: Vec<(PortId, [u8; 12], Vec<u8>)>,
}

impl Ports for Outside {
    fn accepts(&self, _port: PortId) -> Accepts {
        self.accepts
    }

    fn send(&mut self, port: PortId, header: &[u8; 12], parts: &[&[u8]]) -> bool {
        assert!(parts.len() <= 5 && parts.iter().all(|part| !part.is_empty()) && self.sent.len() < 100_000);
        self.sent.push((port, *header, parts.concat()));
        true
    }
}

/// Settings from a byte. The VLAN is the lower bits: 1 to 3, or a trunk.
fn config(byte: u8, wires: &[u8]) -> PortConfig {
    let id = |id| VlanId::new(id).expect("a VLAN");
    let vlan = match byte % 5 {
        number @ 0..=2 => VlanMode::Access(id(u16::from(number) + 1)),
        3 => VlanMode::trunk([id(2), id(3)]),
        _ => VlanMode::trunk_all(),
    };
    let wire = |at: usize| {
        let byte = |index| u64::from(wires.get(at + index).copied().unwrap_or(0));
        Impairment {
            delay: Duration::from_millis(byte(0)),
            jitter: Duration::from_millis(byte(1)),
            loss_ppm: (byte(2) * 4000) as u32,
            rate: NonZeroU64::new(byte(3) * 100_000),
        }
    };
    let secure = (byte & 0x80 != 0).then_some([2, 0, 0, 0, 0, byte & 3]);
    PortConfig { vlan, isolated: byte & 0x40 != 0, secure, from_port: wire(0), to_port: wire(4) }
}

/// A frame whose payload may be all of the input, with a right TCP packet in it if `kind` says so. Its virtio header too.
fn frame(kind: u8, bytes: &[u8]) -> ([u8; 12], Vec<u8>) {
    let [to, from, tag, header @ .., size] = *bytes.first_chunk::<8>().unwrap_or(&[0; 8]);
    let payload = bytes.get(8..).unwrap_or_default();
    let destination = if to & 0x80 != 0 { [0xff; 6] } else { [2, 0, 0, 0, 0, to & 7] };
    let mut frame = [destination, [2, 0, 0, 0, 0, from & 31]].concat();
    match tag % 4 {
        0 => frame.extend([0x81, 0, tag & 0xe0, (tag >> 2) & 7]),
        1 => frame.extend([0x81, 0, 0, (tag >> 2) & 7, 0x81, 0, 0, 2]),
        _ => {}
    }
    let length = (payload.len() + 20) as u16;
    let mut virtio = [0; 12];
    let at = frame.len() + 2;
    let transport = if kind & 1 == 0 {
        let [high, low] = (length + 20).to_be_bytes();
        frame.extend([8, 0, 0x45, 0, high, low, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        at + 20
    } else {
        let [high, low] = length.to_be_bytes();
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, high, low, 6, 64]);
        frame.extend([0xfd; 32]);
        at + 40
    };
    frame.extend([0, 1, 0, 2, 1, 2, 3, 4, 0, 0, 0, 0, 0x50, 0x99, 0, 9, 0, 0, 0, 0]);
    frame.extend(payload);
    if kind & 2 != 0 {
        virtio[0] = 1;
        virtio[1] = if kind & 4 != 0 { if kind & 1 == 0 { 1 } else { 4 } } else { 0 };
        virtio[4] = size;
        virtio[6..8].copy_from_slice(&(transport as u16).to_le_bytes());
        virtio[8] = 16;
    }
    // Anything at one place.
    let [place, value, ..] = header;
    if kind & 8 != 0 {
        let place = usize::from(place);
        match place.checked_sub(12) {
            Some(place) => frame.get_mut(place).into_iter().for_each(|byte| *byte = value),
            None => virtio[place] = value,
        }
    }
    (virtio, frame)
}

/// The sum of RFC 1071, folded.
fn sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum: u64 = 0;
    for word in bytes.chunks(2) {
        sum += u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The number of VLAN tags that a frame begins with, of these types.
fn tags(frame: &[u8], types: &[[u8; 2]]) -> usize {
    let is_tag = |chunk: &&[u8]| types.iter().any(|tpid| chunk.starts_with(tpid));
    frame[12..].chunks(4).take_while(is_tag).count()
}

/// A large packet, and what came out of one port that takes none, over perfect wires.
fn check_segments(virtio: &[u8; 12], sent: &[u8], frames: &[&(PortId, [u8; 12], Vec<u8>)]) {
    const TPID: [u8; 2] = [0x81, 0];
    let (start, v6) = (usize::from(u16::from_le_bytes([virtio[6], virtio[7]])), virtio[1] & 0x7f == 4);
    let header = usize::from(sent[start + 12] >> 4) * 4;
    let mut payload: Vec<u8> = Vec::new();
    for (_, virtio, frame) in frames {
        assert_eq!(*virtio, [0; 12]);
        let tcp = start + 4 * tags(frame, &[TPID]) - 4 * tags(sent, &[TPID]);
        let ip = 14 + 4 * tags(frame, &[TPID, [0x88, 0xa8]]);
        let addresses = if v6 { &frame[ip + 8..ip + 40] } else { &frame[ip + 12..ip + 20] };
        let len = ((frame.len() - tcp) as u32).to_be_bytes();
        assert_eq!(sum(&[addresses, &len, &[0, 6], &frame[tcp..]]), 0xffff, "TCP's checksum");
        if !v6 {
            assert_eq!(sum(&[&frame[ip..tcp]]), 0xffff, "IPv4's checksum");
        }
        payload.extend(&frame[tcp + header..]);
    }
    assert!(payload == sent[start + header..], "the payload of the segments is the packet's");
}

struct Run {
    switch: Switch,
    ports: Vec<(PortId, PortConfig)>,
    out: Outside,
    now: Instant,
}

impl Run {
    /// Whether a frame of `from` may come out of `to` as it did.
    fn may_reach(from: &PortConfig, to: &PortConfig, frame: &[u8]) -> bool {
        let has = |config: &PortConfig, id: VlanId| match &config.vlan {
            VlanMode::Access(vlan) => *vlan == id,
            VlanMode::Trunk { vlans, native } => vlans.contains(id) || *native == Some(id),
        };
        let tagged = frame[12..14] == [0x81, 0];
        let vlan = match &to.vlan {
            VlanMode::Access(vlan) => Some(*vlan),
            VlanMode::Trunk { .. } if tagged => {
                VlanId::new(u16::from_be_bytes([frame[14], frame[15]]) & 0xfff).filter(|id| has(to, *id))
            }
            VlanMode::Trunk { native, .. } => *native,
        };
        vlan.is_some_and(|vlan| has(from, vlan)) && !(from.isolated && to.isolated)
    }

    fn input(&mut self, port: u8, virtio: &[u8; 12], frame: &[u8]) {
        let Some((from, config)) = self.ports.get(usize::from(port) % PORTS).cloned() else { return };
        // What waited comes out first, and then only what this frame brings.
        self.timeout();
        self.switch.input(from, virtio, frame, self.now, &mut self.out);
        let perfect = self.ports.iter().all(|(_, config)| {
            (config.from_port, config.to_port) == (Impairment::default(), Impairment::default())
        });
        let waited = self.switch.ports().any(|port| port.waiting > 0);
        let sent = std::mem::take(&mut self.out.sent);
        if perfect && !waited {
            for (port, _, out) in &sent {
                assert_ne!(*port, from, "a frame comes back");
                let (_, to) = self.ports.iter().find(|(id, _)| id == port).expect("a port that is there");
                assert!(Run::may_reach(&config, to, out), "a frame in another VLAN");
            }
            let first = sent.first().map(|(port, ..)| *port);
            let one: Vec<_> = sent.iter().filter(|(port, ..)| Some(*port) == first).collect();
            if virtio[1] != 0 && !one.is_empty() && self.out.accepts == Accepts::default() {
                check_segments(virtio, frame, &one);
            }
        }
    }

    fn timeout(&mut self) {
        self.switch.timeout(self.now, &mut self.out);
        assert!(self.switch.next_timeout().is_none_or(|next| next > self.now));
        self.out.sent.clear();
    }

    fn step(&mut self, kind: u8, port: u8, bytes: &[u8]) {
        let index = usize::from(port) % PORTS;
        let wires = bytes.get(1..).unwrap_or_default();
        match kind % 8 {
            0 => {
                let (virtio, frame) = bytes.split_first_chunk().unwrap_or((&[0; 12], bytes));
                self.input(port, virtio, frame);
            }
            1..=4 => {
                let (virtio, frame) = frame(kind >> 4, bytes);
                self.input(port, &virtio, &frame);
            }
            5 => {
                let config = config(bytes.first().copied().unwrap_or(0), wires);
                if let Some((id, known)) = self.ports.get_mut(index) {
                    assert!(self.switch.set(*id, config.clone()));
                    *known = config;
                }
            }
            6 => {
                let config = config(bytes.first().copied().unwrap_or(0), wires);
                if let Some((id, known)) = self.ports.get_mut(index) {
                    self.switch.remove(*id);
                    let next = self.switch.add(config.clone()).expect("a port was removed");
                    assert!(*id != next && self.switch.counters(*id).is_none());
                    (*id, *known) = (next, config);
                }
            }
            _ => {
                let [seconds, millis] = *bytes.first_chunk().unwrap_or(&[0; 2]);
                self.now += Duration::from_secs(seconds.into()) + Duration::from_millis(millis.into());
                let all = port & 1 != 0;
                self.out.accepts = Accepts { checksum: all || port & 2 != 0, tso4: all, tso6: all, ecn: all };
                self.timeout();
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let limits = Limits {
        ports: PORTS,
        addresses: ADDRESSES,
        waiting_frames: WAITING,
        waiting_bytes: WAITING_BYTES,
        ..Limits::default()
    };
    let mut switch = Switch::with_seed(limits, 1);
    let ports = (0..PORTS as u8)
        .map(|byte| {
            let config = config(byte, &[]);
            (switch.add(config.clone()).expect("room for a port"), config)
        })
        .collect();
    let mut run = Run { switch, ports, out: Outside::default(), now: Instant::now() };
    let mut rest = data;
    while let [kind, port, len, bytes @ ..] = rest {
        let (bytes, later) = bytes.split_at(bytes.len().min(usize::from(*len) * 4));
        run.step(*kind, *port, bytes);
        assert!(run.switch.table(run.now).count() <= ADDRESSES);
        assert!(run.switch.ports().all(|port| port.waiting <= 2 * WAITING));
        rest = later;
    }
    // It still works: a frame of one port of VLAN 1 reaches the other.
    let plain = config(0, &[]);
    for (id, _) in run.ports.iter().take(2) {
        run.switch.set(*id, plain.clone());
    }
    run.out.sent.clear();
    let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 1, 1, 0x88, 0xb5]].concat();
    run.switch.input(run.ports[0].0, &[0; 12], &frame, run.now, &mut run.out);
    assert!(run.out.sent.iter().any(|(port, ..)| *port == run.ports[1].0), "a broadcast arrives");
});
