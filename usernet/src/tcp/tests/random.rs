//! Random segments, events and times: whatever happens, no panic and no limit passed.

use std::io::ErrorKind;
use std::time::Duration;

use proptest::prelude::*;

use super::peer::{Peer, flow};
use crate::config::Limits;
use crate::flow::Target;
use crate::shares::GuestId;
use crate::tcp::segment::SynOptions;

#[derive(Debug, Clone)]
enum Step {
    /// A segment near what is expected on one of a few ports.
    Segment {
        port: u16,
        flags: u8,
        seq: i8,
        ack: i8,
        window: u16,
        len: usize,
    },
    /// Bytes that are hardly a segment.
    Junk(Vec<u8>),
    Incoming(u16),
    Events,
    Hear(usize),
    Wait(u32),
    /// What the host's peer of a stream does.
    Remote {
        index: usize,
        send: usize,
        room: usize,
        finish: bool,
        fail: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let segment = (0u16..4, any::<u8>(), -3i8..4, -3i8..4, any::<u16>(), 0usize..3000).prop_map(
        |(port, flags, seq, ack, window, len)| Step::Segment { port, flags, seq, ack, window, len },
    );
    let remote =
        (0usize..8, 0usize..100_000, 0usize..5000, prop::bool::weighted(0.1), prop::bool::weighted(0.05))
            .prop_map(|(index, send, room, finish, fail)| Step::Remote { index, send, room, finish, fail });
    prop_oneof![
        8 => segment,
        1 => prop::collection::vec(any::<u8>(), 0..70).prop_map(Step::Junk),
        1 => (0u16..4).prop_map(Step::Incoming),
        3 => Just(Step::Events),
        3 => (0usize..20).prop_map(Step::Hear),
        1 => (0u32..100_000).prop_map(Step::Wait),
        3 => remote,
    ]
}

/// What the guest knows of each port.
#[derive(Clone, Copy)]
struct Ends {
    seq: crate::tcp::seq::Seq,
    ack: crate::tcp::seq::Seq,
}

fn act(peer: &mut Peer, ends: &mut [Ends; 4], step: Step) {
    match step {
        Step::Segment { port, flags, seq, ack, window, len } => {
            peer.flow = flow(port);
            let at = ends[usize::from(port)];
            let near = |number: crate::tcp::seq::Seq, by: i8| {
                if by < 0 { number.back(u32::from(by.unsigned_abs())) } else { number + by as usize }
            };
            let payload = vec![flags; len * usize::from(flags & 0x40 != 0)];
            peer.say(|said| {
                said.seq = near(at.seq, seq);
                said.ack = (flags & 7 != 0).then_some(near(at.ack, ack));
                said.window = window;
                said.syn = (flags & 0x38 == 0).then_some(SynOptions { mss: window, shift: Some(flags & 15) });
                said.fin = flags & 0x38 == 0x38;
                said.rst = flags == 0x99;
                said.payload = &payload;
            });
        }
        Step::Junk(bytes) => {
            let target = Target::Address(peer.flow.remote);
            peer.tcp.segment((peer.flow, GuestId::FIRST), &bytes, target, &mut peer.host, peer.now);
        }
        Step::Incoming(port) => {
            let stream = peer.host.incoming();
            let flow = flow(port);
            peer.tcp.accepted(stream, flow.remote, (flow.guest, GuestId::FIRST), &mut peer.host, peer.now);
        }
        Step::Events => peer.events(),
        Step::Hear(count) => {
            for _ in 0..count {
                let Some(seen) = peer.hear() else { break };
                let len = seen.payload.len() + usize::from(seen.syn) + usize::from(seen.fin);
                let at = &mut ends[usize::from(seen.port)];
                at.ack = seen.seq + len;
                at.seq = seen.ack.unwrap_or(at.seq);
            }
        }
        Step::Wait(millis) => peer.wait(Duration::from_millis(millis.into())),
        Step::Remote { index, send, room, finish, fail } => {
            if index < peer.host.remotes.len() {
                let mut remote = peer.host.remote(index);
                remote.to_guest.extend(std::iter::repeat_n(7, send));
                remote.room = room;
                remote.finished |= finish;
                remote.error = remote.error.or(fail.then_some(ErrorKind::ConnectionReset));
            }
        }
    }
}

fn check(peer: &Peer) -> Result<(), TestCaseError> {
    let tcp = &peer.tcp;
    prop_assert!(tcp.len() <= 16 && tcp.outputs.len() <= 16 && tcp.starved.len() <= 16);
    prop_assert_eq!(tcp.timers.len(), tcp.len());
    prop_assert!(tcp.embryonic.total() <= 4 && tcp.buffered() <= 256 << 10);
    let open = peer.host.remotes.iter().filter(|remote| !remote.lock().unwrap().closed).count();
    prop_assert_eq!(open, tcp.len(), "each stream belongs to a connection");
    if tcp.len() == 0 {
        prop_assert_eq!((tcp.buffered(), tcp.embryonic.total()), (0, 0));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_steps_keep_the_limits(steps in prop::collection::vec(step(), 1..150)) {
        let limits = Limits { connections: 16, buffered: 256 << 10, ..Limits::default() };
        let mut peer = Peer::new(limits);
        peer.most = 40_000;
        peer.flow = flow(0);
        let mut ends = [Ends { seq: peer.seq, ack: peer.ack }; 4];
        for step in steps {
            act(&mut peer, &mut ends, step);
            check(&peer)?;
        }
        // A guest that says nothing more is forgotten, and with it all that it had.
        for _ in 0..2000 {
            let Some(at) = peer.tcp.next_timeout() else { break };
            peer.now = peer.now.max(at);
            peer.tcp.timeout(&mut peer.host, peer.now);
            peer.hear_all();
        }
        prop_assert_eq!(peer.tcp.len(), 0);
        check(&peer)?;
    }
}
