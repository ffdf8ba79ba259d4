//! A guest that sends whatever a test says.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::guest::MTU;
use super::host::TestHost;
use crate::config::Limits;
use crate::flow::{Flow, Target};
use crate::shares::GuestId;
use crate::tcp::segment::{Header, Segment, SynOptions};
use crate::tcp::seq::Seq;
use crate::tcp::{Outgoing, Tcp};

/// What came from the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) port: u16,
    pub(super) seq: Seq,
    pub(super) ack: Option<Seq>,
    pub(super) window: u16,
    pub(super) syn: bool,
    pub(super) fin: bool,
    pub(super) rst: bool,
    pub(super) mss: Option<u16>,
    pub(super) shift: Option<u8>,
    pub(super) gso: Option<u16>,
    pub(super) payload: Vec<u8>,
}

/// What the guest sends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said<'a> {
    pub(super) seq: Seq,
    pub(super) ack: Option<Seq>,
    pub(super) window: u16,
    pub(super) syn: Option<SynOptions>,
    pub(super) fin: bool,
    pub(super) rst: bool,
    pub(super) payload: &'a [u8],
}

/// The network, with one end of a connection by hand.
pub(super) struct Peer {
    pub(super) tcp: Tcp<TestHost>,
    pub(super) host: TestHost,
    pub(super) now: Instant,
    pub(super) flow: Flow,
    pub(super) account: GuestId,
    /// What the guest sends and expects next.
    pub(super) seq: Seq,
    pub(super) ack: Seq,
    pub(super) most: usize,
}

pub(super) fn flow(port: u16) -> Flow {
    Flow {
        guest: SocketAddr::from(([10, 0, 2, 15], port)),
        remote: SocketAddr::from(([198, 51, 100, 7], 80)),
    }
}

impl Peer {
    pub(super) fn new(limits: Limits) -> Self {
        Peer {
            tcp: Tcp::new(limits, MTU, 1),
            host: TestHost::default(),
            now: Instant::now(),
            flow: flow(4000),
            account: GuestId::FIRST,
            seq: Seq(u32::MAX - 5),
            ack: Seq(0),
            most: 0,
        }
    }

    /// One whose connection is open, with windows scaled by 128.
    pub(super) fn open() -> Self {
        let mut peer = Self::new(Limits::default());
        peer.handshake(SynOptions { mss: 1000, shift: Some(7) });
        peer
    }

    pub(super) fn handshake(&mut self, options: SynOptions) -> Seen {
        self.syn(options);
        self.events();
        let seen = self.one();
        assert!(seen.syn && seen.ack == Some(self.seq), "{seen:?}");
        self.ack = seen.seq + 1;
        self.say(|_| {});
        seen
    }

    /// A SYN, whose number is used up.
    pub(super) fn syn(&mut self, options: SynOptions) {
        self.say(|said| {
            said.syn = Some(options);
            said.ack = None;
        });
        self.seq += 1;
    }

    /// An acknowledgement, as `change` makes it.
    pub(super) fn say<'a>(&mut self, change: impl FnOnce(&mut Said<'a>)) {
        let mut said = Said {
            seq: self.seq,
            ack: Some(self.ack),
            window: 60_000,
            syn: None,
            fin: false,
            rst: false,
            payload: &[],
        };
        change(&mut said);
        let header = Header {
            // Ports are the flow's: nothing here reads them.
            window: said.window,
            syn: said.syn,
            fin: said.fin,
            rst: said.rst,
            ..Header::bare(self.flow, said.seq, said.ack)
        };
        let mut bytes = vec![0; header.len()];
        header.write(&mut bytes).unwrap();
        bytes.extend(said.payload);
        self.tcp.segment(
            (self.flow, self.account),
            &bytes,
            Target::Address(self.flow.remote),
            &mut self.host,
            self.now,
        );
    }

    /// Data in order.
    pub(super) fn send(&mut self, payload: &[u8]) {
        self.say(|said| said.payload = payload);
        self.seq += payload.len();
    }

    pub(super) fn events(&mut self) {
        for (token, ready) in self.host.events() {
            self.tcp.ready(token, ready, &mut self.host, self.now);
        }
    }

    /// The next segment.
    pub(super) fn hear(&mut self) -> Option<Seen> {
        let mut room = vec![0; 66_000];
        let most = self.most;
        let Outgoing { flow, len, gso, .. } =
            self.tcp.output(&mut room, |_| most, &mut self.host, self.now)?;
        let segment = Segment::parse(&room[..len]).unwrap();
        Some(Seen {
            port: flow.guest.port(),
            seq: segment.seq,
            ack: segment.ack,
            window: segment.window,
            syn: segment.syn,
            fin: segment.fin,
            rst: segment.rst,
            mss: segment.mss,
            shift: segment.shift,
            gso,
            payload: segment.payload.to_vec(),
        })
    }

    /// All that it has.
    pub(super) fn hear_all(&mut self) -> Vec<Seen> {
        std::iter::from_fn(|| self.hear()).collect()
    }

    /// The only one that it has.
    pub(super) fn one(&mut self) -> Seen {
        let mut seen = self.hear_all();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.remove(0)
    }

    /// Time passes.
    pub(super) fn wait(&mut self, time: Duration) {
        self.now += time;
        self.tcp.timeout(&mut self.host, self.now);
    }
}
