//! Frames that no guest in its right mind sends.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::packet::TCP;
use crate::{Checksum, Limits, Ready};

/// Something the guest or the host does.
#[derive(Debug, Clone)]
enum Step {
    Noise(Vec<u8>),
    /// A frame with right headers around noise, cut to a length.
    Packet {
        v6: bool,
        protocol: u8,
        to: u8,
        from: u8,
        payload: Vec<u8>,
        fixed: bool,
        cut: u16,
    },
    Ready(u64),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let protocol = prop_oneof![Just(TCP), Just(UDP), Just(ICMP), Just(ICMPV6), any::<u8>()];
    let packet = (
        any::<bool>(),
        protocol,
        any::<u8>(),
        any::<u8>(),
        vec(any::<u8>(), 0..80),
        any::<bool>(),
        0u16..120,
    );
    prop_oneof![
        1 => vec(any::<u8>(), 0..100).prop_map(Step::Noise),
        8 => packet.prop_map(|(v6, protocol, to, from, payload, fixed, cut)| Step::Packet { v6, protocol, to, from, payload, fixed, cut }),
        1 => (1u64..6, 0u64..3, 0u64..40).prop_map(|(kind, generation, slot)| Step::Ready(kind << 56 | generation << 32 | slot)),
        1 => (0u64..100).prop_map(Step::Wait),
    ]
}

fn address(v6: bool, choice: u8) -> IpAddr {
    let text = match (v6, choice % 12) {
        (false, 0) => "10.0.2.2",
        (false, 1) => "10.0.2.3",
        (false, 2..=4) => GUEST,
        (false, 5) => "255.255.255.255",
        (false, 6) => "127.0.0.1",
        (false, 7) => "0.0.0.0",
        (false, _) => return IpAddr::from([9, 9, 9, choice]),
        (true, 0) => "fd62:6164:2::2",
        (true, 1) => "fd62:6164:2::3",
        (true, 2..=4) => GUEST6,
        (true, 5) => "ff02::1:ff00:2",
        (true, 6) => "::",
        (true, 7) => "fe80::15",
        (true, _) => "2001:db8::9",
    };
    text.parse().unwrap()
}

impl Step {
    fn run(&self, guest: &mut Guest) {
        match self {
            Step::Noise(bytes) => guest.send_frame(bytes),
            Step::Packet { v6, protocol, to, from, payload, fixed, cut } => {
                let ends = (address(*v6, *from), address(*v6, *to));
                let mut frame = guest.frame(ends, (*protocol, if fixed & v6 { 255 } else { 64 }), payload);
                let keep = frame.len().saturating_sub(usize::from(cut.saturating_sub(100)));
                frame.truncate(keep);
                let checksum =
                    if *fixed { Checksum::Partial { start: 34, offset: 6 } } else { Checksum::Complete };
                guest.network.input(&frame, Offload { checksum, gso: None }, guest.now);
            }
            Step::Ready(token) => {
                let ready = Ready { read: true, write: true, closed: token % 2 == 0 };
                guest.network.ready(*token, ready, guest.now);
            }
            Step::Wait(seconds) => guest.wait(*seconds),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn no_frame_breaks_the_network_and_every_table_keeps_its_limit(steps in vec(step(), 1..300), taken in any::<bool>()) {
        let limits = Limits { connections: 8, udp_flows: 8, pings: 4, queued: 16, ..Limits::default() };
        let mut guest = Guest::new(Config { limits, host_loopback: true, ..Config::default() });
        guest.network.host().forget = true;
        for step in &steps {
            step.run(&mut guest);
            if taken {
                prop_assert!(guest.frames().len() <= 64);
            }
            prop_assert!(guest.network.host().open_sockets() <= 8 + 8 + 4);
        }
        // A guest that takes nothing has no more waiting than the limits say.
        prop_assert!(guest.frames().len() <= 16 + 8 + 8);
        // It still works.
        guest.ping(GUEST, "10.0.2.2", 64);
        prop_assert_eq!(guest.frames().len(), 1);
    }
}
