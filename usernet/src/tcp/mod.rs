//! TCP: the guest's side of each connection, spliced to a stream of the host.
//!
//! A connection ends here, towards the guest, and begins anew as a stream of the host's kernel. The wire to a guest of its own is
//! a queue in memory that loses nothing unless the guest drops it: there is no congestion control. Memory is bounded by
//! [`Limits`]: by the number of connections, of which a quarter may be half-open, and by the bytes in all buffers. The guest and
//! the peers of forwards each have their own share of connections and of half-open ones.

mod congestion;
mod connection;
mod output;
mod receiver;
mod relay;
mod ring;
mod segment;
mod sender;
mod seq;
mod table;
#[cfg(test)]
mod tests;
mod timer;
mod upkeep;

use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, VecDeque};
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use connection::{Connection, Fate};
use ring::Pool;
use segment::{Header, Segment};
use seq::Seq;
use table::Table;

use crate::config::Limits;
use crate::flow::{Flow, Target, Unreachable};
use crate::host::{Host, Ready};
use crate::shares::{GuestId, Shares, Side};
use crate::token::Token;

/// Segments of no connection, and failures, that may wait: a guest that floods does without some.
const MOST_REPLIES: usize = 256;
/// IP and TCP headers, of both families.
const IPV4_HEADERS: u16 = 40;
const IPV6_HEADERS: u16 = 60;

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
    limits: Limits,
    mtu: u16,
    /// Several guests are behind a switch.
    shared: bool,
    table: Table<H>,
    pool: Pool,
    /// Half-open ones.
    embryonic: Shares,
    /// Those with something to send, each once.
    outputs: VecDeque<u32>,
    timers: BTreeSet<(Instant, u32)>,
    /// Those that wait for memory, and the one that was fed last.
    starved: BTreeSet<(GuestId, u32)>,
    fed: (GuestId, u32),
    /// Segments of no connection.
    replies: VecDeque<Header>,
    failed: VecDeque<Failed>,
    /// Secret of the first sequence numbers, and when their clock began (RFC 6528).
    secret: RandomState,
    epoch: Option<Instant>,
    refused: u64,
}

impl<H: Host> Tcp<H> {
    /// `mtu` is of the IP packet; so many guests share the limits.
    pub(crate) fn new(limits: Limits, mtu: u16, guests: u16) -> Self {
        Tcp {
            limits,
            mtu,
            shared: guests > 1,
            table: Table::new(limits.connections, guests),
            pool: Pool::new(limits.buffered, guests),
            embryonic: Shares::new(guests),
            outputs: VecDeque::new(),
            timers: BTreeSet::new(),
            starved: BTreeSet::new(),
            fed: (GuestId::FIRST, 0),
            replies: VecDeque::new(),
            failed: VecDeque::new(),
            secret: RandomState::new(),
            epoch: None,
            refused: 0,
        }
    }

    /// A segment of `guest`: TCP header and payload, whose checksum was checked where there is one. It may be as long as 64 KiB.
    /// `to` says where a new connection leads.
    pub(crate) fn segment(
        &mut self,
        (flow, guest): (Flow, GuestId),
        segment: &[u8],
        to: Target,
        host: &mut H,
        now: Instant,
    ) {
        let Some(segment) = Segment::parse(segment) else { return };
        match self.table.find(&flow) {
            Some(slot) => {
                self.act(slot, host, now, |connection, context| connection.segment(&segment, context))
            }
            None if segment.syn && segment.ack.is_none() && !segment.rst => {
                self.connect((flow, guest), &segment, to, host, now);
            }
            None => self.refuse(flow, &segment),
        }
        self.feed(host, now);
    }

    /// The host's socket of `token` is ready.
    pub(crate) fn ready(&mut self, token: Token, ready: Ready, host: &mut H, now: Instant) {
        let Some(slot) = self.table.slot(token) else { return };
        self.act(slot, host, now, |connection, context| connection.ready(ready, context));
        self.feed(host, now);
    }

    /// A connection from outside, which was accepted at a forward: `remote` is the peer as the guest sees it. A port that a
    /// connection to the same guest port already has is refused: false, and the stream is reset.
    pub(crate) fn accepted(
        &mut self,
        stream: H::Stream,
        remote: SocketAddr,
        (guest, account): (SocketAddr, GuestId),
        host: &mut H,
        now: Instant,
    ) -> bool {
        let flow = Flow { guest, remote };
        let account = (account, Side::Outside);
        let token = match self.table.find(&flow) {
            None => self.place(account),
            Some(_) => None,
        };
        let Some(token) = token else {
            host.reset(stream);
            return false;
        };
        let numbers = (self.first_number(flow, now), self.mss(flow), self.shared);
        self.add(Connection::inbound((flow, token, stream), numbers, now), account, host, now);
        true
    }

    /// Builds the next segment in `room`. `most`: largest payload where the guest takes large packets of its family (0: it does
    /// not, and a segment holds what the MTU and the guest's MSS allow).
    pub(crate) fn output(
        &mut self,
        room: &mut [u8],
        most: impl Fn(&Flow) -> usize,
        host: &mut H,
        now: Instant,
    ) -> Option<Outgoing> {
        if let Some(header) = self.replies.pop_front() {
            let len = header.write(room)?;
            return Some(Outgoing { flow: header.flow, len, header: len, gso: None });
        }
        while let Some(slot) = self.outputs.pop_front() {
            self.table.unlisted(slot);
            self.pool.guest = self.table.account(slot).0;
            let Some(connection) = self.table.get(slot) else { continue };
            let most = most(&connection.flow);
            if let Some(outgoing) = connection.output(room, most, &self.pool) {
                self.settle(slot, Fate::Lives, host, now);
                return Some(outgoing);
            }
        }
        None
    }

    /// The next connection that failed as unreachable.
    pub(crate) fn take_failed(&mut self) -> Option<Failed> {
        self.failed.pop_front()
    }

    /// When [`Tcp::timeout`] has to be called.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Nothing happened for `pause`, which does not count.
    pub(crate) fn stood_still(&mut self, pause: Duration, now: Instant) {
        for connection in self.table.iter_mut() {
            connection.timer.stood_still(pause, now);
        }
        self.timers =
            std::mem::take(&mut self.timers).into_iter().map(|(at, slot)| (at + pause, slot)).collect();
    }

    /// Does what is due.
    pub(crate) fn timeout(&mut self, host: &mut H, now: Instant) {
        while let Some((at, slot)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            let Some(connection) = self.table.get(slot) else { continue };
            connection.timer.queued = None;
            if connection.deadline(now) <= now {
                self.act(slot, host, now, Connection::expire);
            } else {
                self.settle(slot, Fate::Lives, host, now);
            }
        }
        self.feed(host, now);
    }

    /// Whether there is a connection with these ends.
    pub(crate) fn contains(&self, flow: &Flow) -> bool {
        self.table.find(flow).is_some()
    }

    /// Connections now.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Connections of the guest that a limit refused so far; the caller counts those from outside.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// Bytes in buffers now.
    pub(crate) fn buffered(&self) -> usize {
        self.pool.used()
    }

    /// A new connection of the guest.
    fn connect(
        &mut self,
        (flow, guest): (Flow, GuestId),
        syn: &Segment<'_>,
        to: Target,
        host: &mut H,
        now: Instant,
    ) {
        let address = match to {
            Target::Address(address) => address,
            Target::Refused => return self.refuse(flow, syn),
        };
        let account = (guest, Side::Guest);
        let Some(token) = self.place(account) else {
            self.refused += 1;
            return self.refuse(flow, syn);
        };
        match host.connect(address, token.to_bits()) {
            Ok(stream) => {
                let numbers = (self.first_number(flow, now), self.mss(flow), self.shared);
                let connection = Connection::outbound((flow, token, stream), numbers, syn, now);
                self.add(connection, account, host, now);
            }
            Err(error) => match relay::failure(&error) {
                Fate::Failed(why) => self.fail(flow, syn.seq, why),
                Fate::Over => {}
                _ => self.refuse(flow, syn),
            },
        }
    }

    /// The name of a new connection, if one side of the guest may have one more that is half-open.
    fn place(&mut self, account: (GuestId, Side)) -> Option<Token> {
        let most = (self.limits.connections / 8).max(1);
        let (guest, side) = account;
        self.embryonic.side_has_room(guest, side, most).then(|| self.table.next(account))?
    }

    fn add(&mut self, connection: Connection<H>, account: (GuestId, Side), host: &mut H, now: Instant) {
        let slot = connection.token.slot;
        self.table.insert(connection, account);
        self.embryonic.add(account.0, account.1);
        self.settle(slot, Fate::Lives, host, now);
    }

    fn mss(&self, flow: Flow) -> u16 {
        let headers = if flow.guest.is_ipv4() { IPV4_HEADERS } else { IPV6_HEADERS };
        // A frame has room for the largest IPv4 packet.
        self.mtu.min(u16::MAX - IPV6_HEADERS).saturating_sub(headers)
    }

    /// RFC 6528: a clock of 4 us and a secret function of the flow.
    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers wrap")]
    fn first_number(&mut self, flow: Flow, now: Instant) -> Seq {
        let epoch = *self.epoch.get_or_insert(now);
        let ticks = now.saturating_duration_since(epoch).as_micros() / 4;
        Seq((self.secret.hash_one(flow) as u32).wrapping_add(ticks as u32))
    }

    fn refuse(&mut self, flow: Flow, segment: &Segment<'_>) {
        if let Some(reset) = Header::reset(flow, segment) {
            self.reply(reset);
        }
    }

    fn reply(&mut self, header: Header) {
        if self.replies.len() < MOST_REPLIES {
            self.replies.push_back(header);
        }
    }

    fn fail(&mut self, flow: Flow, syn: Seq, why: Unreachable) {
        if self.failed.len() < MOST_REPLIES {
            self.failed.push_back(Failed { flow, sequence: syn.0, why });
        }
    }
}
