//! TCP: the guest's side of each connection, spliced to a stream of the host.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use crate::config::Limits;
use crate::flow::{Flow, Target, Unreachable};
use crate::host::{Host, Ready};
use crate::token::Token;

/// A segment that was built: header and payload, with the checksum field 0, which the caller fills in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outgoing {
    /// Its ends.
    pub(crate) flow: Flow,
    /// Bytes of header and payload.
    pub(crate) len: usize,
    /// Bytes of header.
    pub(crate) header: usize,
    /// Payload per segment, if it has to be cut.
    pub(crate) gso: Option<u16>,
}

/// A connection of the guest that failed because the peer is unreachable: the caller sends the ICMP error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed {
    /// Its ends.
    pub(crate) flow: Flow,
    /// The sequence number of the guest's SYN, by which the guest recognises its connection.
    pub(crate) sequence: u32,
    /// Why.
    pub(crate) why: Unreachable,
}

/// All TCP connections of a network.
#[derive(Debug)]
pub(crate) struct Tcp<H: Host> {
    flows: HashMap<Flow, (u32, H::Stream)>,
}

impl<H: Host> Tcp<H> {
    /// `mtu` is of the IP packet.
    pub(crate) fn new(_limits: Limits, _mtu: u16) -> Self {
        Tcp { flows: HashMap::new() }
    }

    /// A segment of the guest: TCP header and payload, whose checksum was checked where there is one. It may be as long as 64 KiB.
    /// `to` says where a new connection leads.
    pub(crate) fn segment(
        &mut self,
        _flow: Flow,
        _segment: &[u8],
        _to: Target,
        _host: &mut H,
        _now: Instant,
    ) {
    }

    /// The host's socket of `token` is ready.
    pub(crate) fn ready(&mut self, _token: Token, _ready: Ready, _host: &mut H, _now: Instant) {}

    /// A connection from outside, which was accepted at a forward: `remote` is the peer as the guest sees it. A port that a
    /// connection to the same guest port already has is refused: false, and the stream is reset.
    pub(crate) fn accepted(
        &mut self,
        _stream: H::Stream,
        _remote: SocketAddr,
        _guest: SocketAddr,
        _host: &mut H,
        _now: Instant,
    ) -> bool {
        false
    }

    /// Builds the next segment in `room`. `most`: largest payload where the guest takes large packets of its family (0: it does
    /// not, and a segment holds what the MTU and the guest's MSS allow).
    pub(crate) fn output(
        &mut self,
        _room: &mut [u8],
        _most: impl Fn(&Flow) -> usize,
        _host: &mut H,
        _now: Instant,
    ) -> Option<Outgoing> {
        None
    }

    /// The next connection that failed as unreachable.
    pub(crate) fn take_failed(&mut self) -> Option<Failed> {
        None
    }

    /// When [`Tcp::timeout`] has to be called.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        None
    }

    /// Does what is due.
    pub(crate) fn timeout(&mut self, _host: &mut H, _now: Instant) {}

    /// Whether there is a connection with these ends.
    pub(crate) fn contains(&self, flow: &Flow) -> bool {
        self.flows.contains_key(flow)
    }

    /// Connections now.
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }
}
