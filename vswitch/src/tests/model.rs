//! A naive switch beside the real one, for thousands of random steps: every frame has to come out of the same ports with the
//! same bytes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::VlanSet;

const PORTS: usize = 5;

/// Settings of a port, as small numbers.
#[derive(Debug, Clone, Copy)]
struct Settings {
    kind: u8,
    isolated: bool,
    secure: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Frame { from: usize, to: u8, source: u8, tags: Vec<u16> },
    Set { port: usize, settings: Settings },
    Replace { port: usize, settings: Settings },
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let tag = prop_oneof![4 => 0u16..5, 1 => any::<u16>()];
    let settings = (0u8..7, prop::bool::weighted(0.3), prop::bool::weighted(0.2));
    let settings = settings.prop_map(|(kind, isolated, secure)| Settings { kind, isolated, secure });
    prop_oneof![
        30 => (0..PORTS, 0u8..10, 0u8..8, vec(tag, 0..3))
            .prop_map(|(from, to, source, tags)| Step::Frame { from, to, source, tags }),
        2 => (0..PORTS, settings.clone()).prop_map(|(port, settings)| Step::Set { port, settings }),
        1 => (0..PORTS, settings).prop_map(|(port, settings)| Step::Replace { port, settings }),
        1 => (0u64..400).prop_map(Step::Wait),
    ]
}

impl Settings {
    /// The VLANs of the port: the one without a tag, and those with one.
    fn vlans(self) -> (Option<u16>, Vec<u16>) {
        match self.kind {
            0..=3 => (Some(u16::from(self.kind) + 1), vec![]),
            4 => (None, vec![2, 3]),
            5 => (Some(1), (1..=4094).collect()),
            _ => (Some(2), vec![3]),
        }
    }

    fn mac(self) -> Option<[u8; 6]> {
        self.secure.then(|| mac(self.kind))
    }

    fn config(self) -> PortConfig {
        let (native, tagged) = self.vlans();
        let mode = match tagged.len() {
            0 => VlanMode::Access(vlan(native.unwrap())),
            4094 => VlanMode::trunk_all(),
            _ => VlanMode::Trunk {
                vlans: tagged.into_iter().map(vlan).collect::<VlanSet>(),
                native: native.map(vlan),
            },
        };
        PortConfig { vlan: mode, isolated: self.isolated, secure: self.mac(), ..PortConfig::default() }
    }
}

/// The naive switch.
struct Model {
    ports: Vec<Settings>,
    /// VLAN, address, port, secure, time of the last frame in seconds.
    table: Vec<(u16, [u8; 6], usize, bool, u64)>,
    now: u64,
}

impl Model {
    fn set(&mut self, port: usize, settings: Settings, replaced: bool) {
        let old = std::mem::replace(&mut self.ports[port], settings);
        if replaced || old.vlans() != settings.vlans() || old.mac() != settings.mac() {
            self.table.retain(|entry| entry.2 != port);
        }
    }

    /// The ports that a frame comes out of, and its tags there.
    fn frame(&mut self, from: usize, to: [u8; 6], source: [u8; 6], tags: &[u16]) -> Vec<(usize, Vec<u16>)> {
        let settings = self.ports[from];
        let (native, tagged) = settings.vlans();
        let (first, inner) = match tags {
            [] => (0, &[][..]),
            [first, inner @ ..] => (*first, inner),
        };
        let priority_then_tag = first & 0xfff == 0 && !inner.is_empty();
        let vlan = match first & 0xfff {
            0 => native,
            // An access port takes no tag, not even its own VLAN's.
            id => (tagged.contains(&id) || !tagged.is_empty() && native == Some(id)).then_some(id),
        };
        let refused = source[0] & 1 == 1 || settings.mac().is_some_and(|mac| mac != source);
        let Some(vlan) = vlan.filter(|_| !priority_then_tag && !refused) else { return vec![] };
        self.learn(vlan, source, from);
        let group = to[0] & 1 == 1;
        let known = self.table.iter().find(|entry| !group && (entry.0, entry.1) == (vlan, to));
        let candidates = known.map_or((0..PORTS).collect(), |entry| vec![entry.2]);
        let there = candidates.into_iter().filter(|port| *port != from);
        there.filter_map(|port| Some((port, self.leave(from, port, vlan, first, inner)?))).collect()
    }

    fn learn(&mut self, vlan: u16, source: [u8; 6], from: usize) {
        self.table.retain(|entry| self.now - entry.4 < 300);
        let secure = self.ports[from].secure;
        match self.table.iter_mut().find(|entry| (entry.0, entry.1) == (vlan, source)) {
            Some(entry) if entry.2 != from && entry.3 => {}
            Some(entry) => (entry.2, entry.3, entry.4) = (from, secure, self.now),
            None => self.table.push((vlan, source, from, secure, self.now)),
        }
    }

    fn leave(&self, from: usize, port: usize, vlan: u16, first: u16, inner: &[u16]) -> Option<Vec<u16>> {
        if self.ports[from].isolated && self.ports[port].isolated {
            return None;
        }
        let (native, tagged) = self.ports[port].vlans();
        let is_trunk = !tagged.is_empty();
        if native == Some(vlan) {
            (!is_trunk || inner.is_empty()).then(|| inner.to_vec())
        } else {
            tagged.contains(&vlan).then(|| [&[first & 0xf000 | vlan], inner].concat())
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn frames_come_out_where_a_naive_switch_would_send_them(
        kinds in vec(0u8..7, PORTS),
        steps in vec(step(), 1..1000),
    ) {
        let ports: Vec<_> =
            kinds.iter().map(|kind| Settings { kind: *kind, isolated: false, secure: false }).collect();
        let mut lab = Lab::new();
        let mut ids: Vec<_> = ports.iter().map(|settings| lab.port(settings.config())).collect();
        let mut model = Model { ports, table: Vec::new(), now: 0 };
        for step in steps {
            match step {
                Step::Frame { from, to, source, tags } => {
                    let to = match to { 8 => BROADCAST, 9 => [0x33, 0x33, 0, 0, 0, 1], to => mac(to) };
                    let source = if source == 7 { [3, 0, 0, 0, 0, 0] } else { mac(source) };
                    let sent = lab.send(ids[from], &frame(to, source, &tags, b"payload"));
                    let expected = model.frame(from, to, source, &tags);
                    let expected: Vec<_> = expected
                        .into_iter()
                        .map(|(port, tags)| (ids[port], frame(to, source, &tags, b"payload")))
                        .collect();
                    let mut sent = sent;
                    sent.sort();
                    let mut expected = expected;
                    expected.sort();
                    prop_assert_eq!(sent, expected);
                }
                Step::Set { port, settings } => {
                    lab.switch.set(ids[port], settings.config());
                    model.set(port, settings, false);
                }
                Step::Replace { port, settings } => {
                    lab.switch.remove(ids[port]);
                    ids[port] = lab.port(settings.config());
                    model.set(port, settings, true);
                }
                Step::Wait(seconds) => {
                    lab.now += Duration::from_secs(seconds);
                    model.now += seconds;
                }
            }
        }
        model.table.retain(|entry| model.now - entry.4 < 300);
        prop_assert_eq!(lab.switch.table(lab.now).count(), model.table.len());
    }
}
