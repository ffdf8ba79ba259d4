//! The NAT of UDP and of echo requests: flows of the guest, each with a socket of the host, until they are idle.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::config::{Config, Limits};
use crate::flow::{Flow, Unreachable};
use crate::forwards::{self, Forwards, Socket, Whereabouts};
use crate::host::Host;
use crate::packet::Drop;
use crate::shares::{GuestId, Holdings, Shares, Side};
use crate::slab::{Place, Slab};
use crate::token::{Kind, Token};
use crate::{link, udp};

/// How long a flow lives without a datagram: one that was not answered, and one that was (RFC 4787 §4.3 asks for two minutes).
const UNANSWERED: Duration = Duration::from_secs(30);
const ANSWERED: Duration = Duration::from_secs(180);
/// Echo requests: few sockets serve many of them.
const ECHO: Duration = Duration::from_secs(10);
/// Datagrams of one socket that are thrown away at once: the others get their turns.
const LOST_AT_ONCE: usize = 64;
/// Queries have one answer.
const DNS: u16 = 53;

/// What a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// UDP.
    Udp(Flow),
    /// Echo requests of one program.
    Echo {
        /// The guest.
        guest: IpAddr,
        /// Its peer.
        remote: IpAddr,
        /// The identifier that the guest chose.
        ident: u16,
    },
}

impl Key {
    /// The ends of packets to the guest.
    pub(crate) fn ends(&self) -> (IpAddr, IpAddr) {
        match self {
            Key::Udp(flow) => (flow.remote.ip(), flow.guest.ip()),
            Key::Echo { guest, remote, .. } => (*remote, *guest),
        }
    }

    /// Where a datagram of the host begins in the frame for the guest.
    fn payload_at(&self) -> usize {
        let headers = link::headers(self.ends().1);
        match self {
            Key::Udp(_) => headers + udp::HEADER,
            Key::Echo { .. } => headers,
        }
    }
}

#[derive(Debug)]
enum Via<D> {
    /// A socket of its own, and the peer that it talks to.
    Own(D, SocketAddr),
    /// A peer of a forward.
    Forward { forward: Place, peer: SocketAddr },
}

impl<D> Via<D> {
    fn side(&self) -> Side {
        match self {
            Via::Own(..) => Side::Guest,
            Via::Forward { .. } => Side::Outside,
        }
    }
}

#[derive(Debug)]
struct Entry<D> {
    key: Key,
    guest: GuestId,
    via: Via<D>,
    last: Instant,
    /// When it is looked at, at or before its deadline.
    timer: Instant,
    answered: bool,
    /// It is in the list of those that are ready.
    queued: bool,
}

impl<D> Entry<D> {
    fn deadline(&self) -> Instant {
        self.last
            + match self.key {
                Key::Echo { .. } => ECHO,
                Key::Udp(flow) if self.answered && flow.remote.port() != DNS => ANSWERED,
                Key::Udp(_) => UNANSWERED,
            }
    }
}

/// A socket that has something for the guest.
#[derive(Debug, Clone, Copy)]
enum Source {
    Flow(Place),
    Forward(Place),
}

/// Why a datagram of the guest goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is dropped.
    Drop(Drop),
    /// The guest is told.
    Unreachable(Unreachable),
}

/// What a socket of the host gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// A datagram of `len` bytes, which begins at `at` in the room.
    Datagram {
        /// Its flow.
        key: Key,
        /// Where it begins.
        at: usize,
        /// Its length.
        len: usize,
    },
    /// An earlier datagram of the guest did not get there.
    Error {
        /// Its flow.
        key: Key,
        /// Why.
        why: Unreachable,
    },
}

/// What the table needs of the rest of the network.
pub(crate) struct Around<'a, H: Host> {
    pub(crate) host: &'a mut H,
    pub(crate) forwards: &'a Forwards<H>,
    pub(crate) config: &'a Config,
    /// Where forwards lead.
    pub(crate) whereabouts: Whereabouts<'a>,
    pub(crate) now: Instant,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Datagrams<H: Host> {
    entries: Slab<Entry<H::Datagram>>,
    places: HashMap<Key, Place>,
    peers: HashMap<(Place, SocketAddr), Place>,
    ready: VecDeque<Source>,
    /// One entry a flow, at its timer.
    deadlines: BTreeSet<(Instant, Place)>,
    /// Flows of UDP.
    udp: Shares,
    /// Those of echo requests.
    pings: Vec<Place>,
    pinged: Holdings,
    limits: Limits,
}

impl<H: Host> Datagrams<H> {
    /// An empty table.
    pub(crate) fn new(limits: Limits, guests: u16) -> Self {
        Datagrams {
            entries: Slab::new(),
            places: HashMap::new(),
            peers: HashMap::new(),
            ready: VecDeque::new(),
            deadlines: BTreeSet::new(),
            udp: Shares::new(guests),
            pings: Vec::new(),
            pinged: Holdings::new(guests),
            limits,
        }
    }

    /// Flows now, echo sockets among them.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Sends a datagram of `guest`. `to` says where a new flow leads.
    pub(crate) fn send(
        &mut self,
        (key, guest): (Key, GuestId),
        to: impl FnOnce(&mut H) -> Result<SocketAddr, Unreachable>,
        bytes: &[u8],
        around: &mut Around<'_, H>,
    ) -> Result<(), Refusal> {
        let place = match self.places.get(&key) {
            Some(place) => *place,
            None => self.open((key, guest), to, around)?,
        };
        let Some(entry) = self.entries.get_mut(place) else { return Ok(()) };
        entry.last = around.now;
        let sent = match &entry.via {
            Via::Own(socket, _) => around.host.send(socket, None, bytes),
            Via::Forward { forward, peer } => {
                match around.forwards.get(*forward).map(|forward| &forward.socket) {
                    Some(Socket::Udp(socket)) => {
                        // Both directions are in use.
                        entry.answered = true;
                        around.host.send(socket, Some(*peer), bytes)
                    }
                    _ => {
                        self.close(place);
                        return Err(Refusal::Unreachable(Unreachable::Port));
                    }
                }
            }
        };
        match sent {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Refusal::Drop(Drop::Full)),
            Err(error) => Err(refusal(&error)),
        }
    }

    fn open(
        &mut self,
        (key, guest): (Key, GuestId),
        to: impl FnOnce(&mut H) -> Result<SocketAddr, Unreachable>,
        around: &mut Around<'_, H>,
    ) -> Result<Place, Refusal> {
        let kind = match key {
            Key::Udp(_) => Kind::Udp,
            Key::Echo { .. } => Kind::Ping,
        };
        let ping = kind == Kind::Ping;
        if !ping && !self.udp.has_room(guest, Side::Guest, self.limits.udp_flows) {
            return Err(Refusal::Drop(Drop::Full));
        }
        let to = to(around.host).map_err(Refusal::Unreachable)?;
        if ping && !self.makes_room_for_ping(guest) {
            return Err(Refusal::Drop(Drop::Full));
        }
        let Place { slot, generation } = self.entries.next();
        let token = Token { kind, generation, slot }.to_bits();
        let socket = if ping { around.host.ping(to.ip(), token) } else { around.host.datagram(to, token) };
        let socket = socket.map_err(|error| refusal(&error))?;
        Ok(self.insert((key, guest), Via::Own(socket, to), around.now))
    }

    /// One more echo socket may be had, if need be in place of the one that was used least recently: of several guests, a guest
    /// with its share gives up one of its own.
    fn makes_room_for_ping(&mut self, guest: GuestId) -> bool {
        let free = self.limits.pings.saturating_sub(self.pings.len());
        match self.pinged.own(guest) {
            Some(own) if own > 0 && own >= free => self.evict_ping(Some(guest)),
            _ => free > 0 || self.evict_ping(None),
        }
    }

    /// Closes the echo socket that was used least recently. False: there is none.
    fn evict_ping(&mut self, of: Option<GuestId>) -> bool {
        let last = |place: &Place| {
            let entry = self.entries.get(*place)?;
            of.is_none_or(|guest| guest == entry.guest).then_some((entry.last, *place))
        };
        let Some((_, place)) = self.pings.iter().filter_map(last).min() else { return false };
        // A guest that takes nothing would have the list grow without end.
        self.ready.retain(|source| !matches!(source, Source::Flow(other) if *other == place));
        self.close(place);
        true
    }

    fn insert(&mut self, (key, guest): (Key, GuestId), via: Via<H::Datagram>, now: Instant) -> Place {
        if let Via::Forward { forward, peer } = &via {
            self.peers.insert((*forward, *peer), self.entries.next());
        }
        let side = via.side();
        let mut entry = Entry { key, guest, via, last: now, timer: now, answered: false, queued: false };
        let deadline = entry.deadline();
        entry.timer = deadline;
        let place = self.entries.insert(entry);
        match key {
            Key::Udp(_) => self.udp.add(guest, side),
            Key::Echo { .. } => {
                self.pings.push(place);
                self.pinged.change(guest, 1, 0);
            }
        }
        self.places.insert(key, place);
        self.deadlines.insert((deadline, place));
        place
    }

    fn close(&mut self, place: Place) {
        let Some(entry) = self.entries.remove(place) else { return };
        self.places.remove(&entry.key);
        self.deadlines.remove(&(entry.timer, place));
        match entry.key {
            Key::Udp(_) => self.udp.remove(entry.guest, entry.via.side()),
            Key::Echo { .. } => {
                self.pings.retain(|ping| *ping != place);
                self.pinged.change(entry.guest, 0, 1);
            }
        }
        if let Via::Forward { forward, peer } = entry.via {
            self.peers.remove(&(forward, peer));
        }
    }

    /// The socket of a flow has something.
    pub(crate) fn ready(&mut self, place: Place) {
        if let Some(entry) = self.entries.get_mut(place)
            && !std::mem::replace(&mut entry.queued, true)
        {
            self.ready.push_back(Source::Flow(place));
        }
    }

    /// The socket of a forward has something.
    pub(crate) fn forward_ready(&mut self, place: Place) {
        // There are few forwards that are ready at once.
        let known =
            self.ready.iter().any(|source| matches!(source, Source::Forward(other) if *other == place));
        if !known {
            self.ready.push_back(Source::Forward(place));
        }
    }

    /// Receives the next datagram for the guest into `room`, with space for headers in front. Sockets take turns. `None`: no
    /// socket that is ready has one.
    pub(crate) fn receive(&mut self, room: &mut [u8], around: &mut Around<'_, H>) -> Option<Received> {
        // Each turn empties the list or returns.
        while let Some(source) = self.ready.pop_front() {
            let received = match source {
                Source::Flow(place) => self.receive_flow(place, room, around),
                Source::Forward(place) => self.receive_forward(place, room, around),
            };
            match received {
                Turn::Received(received) => {
                    self.ready.push_back(source);
                    return Some(received);
                }
                Turn::Nothing => {}
            }
        }
        None
    }

    fn receive_flow(&mut self, place: Place, room: &mut [u8], around: &mut Around<'_, H>) -> Turn {
        let Some(entry) = self.entries.get_mut(place) else { return Turn::Nothing };
        let Via::Own(socket, remote) = &entry.via else { return Turn::Nothing };
        let key = entry.key;
        let at = key.payload_at();
        let Some(into) = room.get_mut(at..) else { return Turn::Nothing };
        let most = into.len();
        for _ in 0..LOST_AT_ONCE {
            match around.host.receive(socket, into) {
                // It came before the socket was connected, or a ping socket takes what answers nothing of ours.
                Ok((_, from)) if !is_from(from, *remote, &key) => {}
                Ok((len, _)) => {
                    entry.last = around.now;
                    entry.answered = true;
                    return Turn::Received(Received::Datagram { key, at, len: len.min(most) });
                }
                Err(error) => match Unreachable::of(&error) {
                    Some(why) => return Turn::Received(Received::Error { key, why }),
                    None => break,
                },
            }
        }
        entry.queued = false;
        Turn::Nothing
    }

    fn receive_forward(&mut self, place: Place, room: &mut [u8], around: &mut Around<'_, H>) -> Turn {
        let Some(entry) = around.forwards.get(place) else { return Turn::Nothing };
        let Socket::Udp(socket) = &entry.socket else { return Turn::Nothing };
        let guest = around.whereabouts.of(&entry.to);
        let at = link::headers(guest.unwrap_or(IpAddr::V4([0; 4].into()))) + udp::HEADER;
        let Some(into) = room.get_mut(at..) else { return Turn::Nothing };
        for _ in 0..LOST_AT_ONCE {
            let (len, peer) = match around.host.receive(socket, into) {
                Ok((len, peer)) => (len.min(into.len()), peer),
                // What a datagram to one of many peers was answered with.
                Err(error) if Unreachable::of(&error).is_some() => continue,
                Err(_) => return Turn::Nothing,
            };
            let guest = guest.map(|guest| SocketAddr::new(guest, entry.forward.guest_port));
            if let Some(key) = self.flow_of_peer(place, peer, guest, around) {
                return Turn::Received(Received::Datagram { key, at, len });
            }
        }
        Turn::Nothing
    }

    /// The flow of a datagram that came from outside.
    fn flow_of_peer(
        &mut self,
        forward: Place,
        peer: SocketAddr,
        guest: Option<SocketAddr>,
        around: &Around<'_, H>,
    ) -> Option<Key> {
        if let Some(entry) = self.peers.get(&(forward, peer)).and_then(|place| self.entries.get_mut(*place)) {
            entry.last = around.now;
            return Some(entry.key);
        }
        let guest = guest?;
        let account = around.whereabouts.link.account(guest.ip());
        if !self.udp.has_room(account, Side::Outside, self.limits.udp_flows) {
            return None;
        }
        let seen = forwards::peer_as_seen(peer, guest.ip(), around.config);
        let taken = |remote| self.places.contains_key(&Key::Udp(Flow { guest, remote }));
        let key = Key::Udp(Flow { guest, remote: forwards::free_port(seen, taken)? });
        self.insert((key, account), Via::Forward { forward, peer }, around.now);
        Some(key)
    }

    /// Nothing happened for `pause`, which does not count.
    pub(crate) fn stood_still(&mut self, pause: Duration, now: Instant) {
        for entry in self.entries.values_mut() {
            entry.last = (entry.last + pause).min(now);
            entry.timer = (entry.timer + pause).min(entry.deadline());
        }
        self.deadlines = self.entries.iter().map(|(place, entry)| (entry.timer, place)).collect();
    }

    /// When [`Datagrams::timeout`] has something to do.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Closes flows that are idle.
    pub(crate) fn timeout(&mut self, now: Instant) {
        while let Some((at, place)) = self.deadlines.first().copied() {
            if at > now {
                return;
            }
            self.deadlines.pop_first();
            let Some(entry) = self.entries.get_mut(place) else { continue };
            let later = entry.deadline();
            if later > now {
                entry.timer = later;
                self.deadlines.insert((later, place));
            } else {
                self.close(place);
            }
        }
    }
}

enum Turn {
    Received(Received),
    Nothing,
}

/// Whether a datagram of `from` belongs to a flow to `remote`. The host's loopback answers for the unspecified address.
fn is_from(from: SocketAddr, remote: SocketAddr, key: &Key) -> bool {
    let same_address = remote.ip().is_unspecified() || from.ip().to_canonical() == remote.ip().to_canonical();
    same_address && (matches!(key, Key::Echo { .. }) || from.port() == remote.port())
}

fn refusal(error: &io::Error) -> Refusal {
    match Unreachable::of(error) {
        Some(why) => Refusal::Unreachable(why),
        None => Refusal::Drop(Drop::Full),
    }
}
