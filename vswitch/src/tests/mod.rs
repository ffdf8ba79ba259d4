//! Tests of the whole switch, and what they share.

#![allow(clippy::cast_possible_truncation, reason = "numbers of tests are small")]

mod forwarding;
mod impairments;
mod large;
mod model;
mod speed;

use std::time::{Duration, Instant};

use crate::{Accepts, HEADER_LEN, Limits, PortConfig, PortId, Ports, Switch, VlanId, VlanMode};

const PLAIN: [u8; HEADER_LEN] = [0; HEADER_LEN];
const BROADCAST: [u8; 6] = [0xff; 6];

/// The outer ends of the ports: what was sent.
#[derive(Debug, Default)]
struct Outside {
    sent: Vec<(PortId, [u8; HEADER_LEN], Vec<u8>)>,
    accepts: Accepts,
    full: bool,
}

impl Ports for Outside {
    fn accepts(&self, _port: PortId) -> Accepts {
        self.accepts
    }

    fn send(&mut self, port: PortId, header: &[u8; HEADER_LEN], parts: &[&[u8]]) -> bool {
        assert!(parts.len() <= 5 && parts.iter().all(|part| !part.is_empty()), "{parts:?}");
        if !self.full {
            self.sent.push((port, *header, parts.concat()));
        }
        !self.full
    }
}

/// A switch with its outside and a clock.
struct Lab {
    switch: Switch,
    outside: Outside,
    now: Instant,
}

impl Lab {
    fn new() -> Self {
        let switch = Switch::with_seed(Limits::default(), 1);
        Lab { switch, outside: Outside::default(), now: Instant::now() }
    }

    fn port(&mut self, config: PortConfig) -> PortId {
        self.switch.add(config).unwrap()
    }

    fn send(&mut self, from: PortId, frame: &[u8]) -> Vec<(PortId, Vec<u8>)> {
        self.send_large(from, &PLAIN, frame).into_iter().map(|(port, _, frame)| (port, frame)).collect()
    }

    fn send_large(
        &mut self,
        from: PortId,
        header: &[u8; HEADER_LEN],
        frame: &[u8],
    ) -> Vec<(PortId, [u8; HEADER_LEN], Vec<u8>)> {
        self.switch.input(from, header, frame, self.now, &mut self.outside);
        std::mem::take(&mut self.outside.sent)
    }

    /// The ports that a frame goes to.
    fn reached(&mut self, from: PortId, frame: &[u8]) -> Vec<PortId> {
        self.send(from, frame).into_iter().map(|(port, _)| port).collect()
    }

    /// What comes out in some time, and after how much of it.
    fn wait(&mut self, time: Duration) -> Vec<(Duration, PortId, Vec<u8>)> {
        let (began, end) = (self.now, self.now + time);
        let mut all = Vec::new();
        while let Some(due) = self.switch.next_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.switch.timeout(self.now, &mut self.outside);
            let after = self.now - began;
            all.extend(self.outside.sent.drain(..).map(|(port, _, frame)| (after, port, frame)));
        }
        self.now = end;
        all
    }
}

fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, number]
}

fn vlan(id: u16) -> VlanId {
    VlanId::new(id).unwrap()
}

fn access(id: u16) -> PortConfig {
    PortConfig { vlan: VlanMode::Access(vlan(id)), ..PortConfig::default() }
}

/// A frame with tags in front of its payload.
fn frame(to: [u8; 6], from: [u8; 6], tags: &[u16], payload: &[u8]) -> Vec<u8> {
    let mut bytes = [to, from].concat();
    for tag in tags {
        bytes.extend([0x81, 0]);
        bytes.extend(tag.to_be_bytes());
    }
    bytes.extend([0x88, 0xb5]);
    bytes.extend(payload);
    bytes
}
