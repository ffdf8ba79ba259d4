//! The network interfaces of a running machine, by id: what can be looked into and changed while it runs.

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::Serialize;

use super::events::{MachineEvent, Publisher};
use super::nets::forward as forward_of;
use crate::host::announce::Announcer;
use crate::host::capture::{CaptureLimits, CapturePoint, CaptureStream, Refused};
use crate::host::forward::ForwardError;
use crate::host::user_network::Ports;
use crate::spec::{NetId, PortForward};

/// Most forwards of one interface that are added while the machine runs.
const MOST_FORWARDS: usize = 256;

/// A forward of a running machine. As text it says where the host listens and where that leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BoundForward {
    /// The interface's name among the machine's parts.
    pub net: NetId,
    /// As it was asked for.
    pub forward: PortForward,
    /// Where the host listens.
    pub address: SocketAddr,
}

impl fmt::Display for BoundForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PortForward { guest, protocol, .. } = self.forward;
        write!(f, "{} to port {guest} of the guest, {protocol}", self.address)
    }
}

impl BoundForward {
    /// The same forward with the port that the host has.
    fn settled(&self) -> PortForward {
        PortForward { host: self.address.port(), ..self.forward }
    }
}

/// Why nothing was changed at a machine's network interface.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// There is no such interface.
    #[error("the machine has no network interface {id:?}; {}", there_are(ids))]
    NoNet {
        /// What was asked for.
        id: String,
        /// What there is.
        ids: Vec<NetId>,
    },
    /// The interface has no forwards.
    #[error("network interface {id} is no user network, and only those have forwards; {}", users_are(users))]
    NoUserNet {
        /// What was asked for.
        id: NetId,
        /// The user networks.
        users: Vec<NetId>,
    },
    /// There is none that could be meant.
    #[error("{}", none(*.of_users))]
    None {
        /// A user network was looked for.
        of_users: bool,
    },
    /// More than one may be meant.
    #[error("the machine has several {}: {}; say which (`--net {}`)", kind(*.of_users), list(ids), first(ids))]
    Several {
        /// A user network was looked for.
        of_users: bool,
        /// Those.
        ids: Vec<NetId>,
    },
    /// The port of the host cannot be had.
    #[error("{}", without_flag(.0))]
    Forward(#[from] ForwardError),
    /// That port leads to the guest already.
    #[error("{} leads to port {} of the guest already; remove that forward first (`{}`)", .0.address, .0.forward.guest, .0.settled())]
    Forwarded(BoundForward),
    /// There is no such forward.
    #[error("{forward} is no forward of network interface {net}; {}", forwards_are(there))]
    NoForward {
        /// The interface.
        net: NetId,
        /// What was asked for.
        forward: PortForward,
        /// What the interface has.
        there: Vec<PortForward>,
    },
    /// There are as many forwards as there may be.
    #[error("the interface has {0} forwards already, as many as it may have; remove one first")]
    TooManyForwards(usize),
    /// There are as many captures as there may be.
    #[error(
        "{0} captures of this interface are in progress already, as many as there may be; end one of them"
    )]
    TooManyCaptures(usize),
    /// There is no machine any more.
    #[error("the machine has ended")]
    Ended,
}

/// What is wrong with a forward, for one that no flag asks for.
fn without_flag(error: &ForwardError) -> String {
    error.to_string().replace("`-p ", "`")
}

fn list(ids: &[impl fmt::Display]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn first(ids: &[NetId]) -> String {
    ids.first().map(ToString::to_string).unwrap_or_default()
}

fn there_are(ids: &[NetId]) -> String {
    if ids.is_empty() { "it has none".into() } else { format!("its interfaces are: {}", list(ids)) }
}

fn users_are(users: &[NetId]) -> String {
    if users.is_empty() {
        "the machine has none (`--net user` gives it one)".into()
    } else {
        format!("its user networks are: {}", list(users))
    }
}

fn forwards_are(there: &[PortForward]) -> String {
    if there.is_empty() { "it has none".into() } else { format!("its forwards are: {}", list(there)) }
}

fn kind(of_users: bool) -> &'static str {
    if of_users { "user networks" } else { "network interfaces" }
}

fn none(of_users: bool) -> &'static str {
    if of_users {
        "the machine has no user network, which forwards need; `--net user` gives it one"
    } else {
        "the machine has no network interface"
    }
}

/// What can be changed at one interface.
#[derive(Debug)]
pub(super) struct NetHandle {
    id: NetId,
    /// The interface's frames, for captures.
    point: CapturePoint,
    /// Of a user network.
    forwards: Option<Forwards>,
    /// Of a machine that has come from elsewhere.
    announcer: OnceLock<Announcer>,
}

#[derive(Debug)]
struct Forwards {
    ports: Ports,
    /// `None` once the machine has ended.
    list: Mutex<Option<Vec<BoundForward>>>,
}

impl Forwards {
    fn list(&self) -> MutexGuard<'_, Option<Vec<BoundForward>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NetHandle {
    /// `forwards`: the open ports of a user network.
    pub(super) fn new(id: NetId, forwards: Option<(Ports, Vec<BoundForward>)>) -> Self {
        let forwards = forwards.map(|(ports, list)| Forwards { ports, list: Mutex::new(Some(list)) });
        NetHandle { id, point: CapturePoint::default(), forwards, announcer: OnceLock::new() }
    }

    /// Its name among the machine's parts.
    pub(super) fn id(&self) -> &NetId {
        &self.id
    }

    /// The interface's frames, for captures.
    pub(super) fn point(&self) -> &CapturePoint {
        &self.point
    }

    /// Tells the network where the guest is, if the machine has come from elsewhere.
    pub(super) fn announcer(&self) -> Option<&Announcer> {
        self.announcer.get()
    }

    /// The machine has ended: nothing stays open.
    pub(super) fn close(&self) {
        self.point.close();
        if let Some(forwards) = &self.forwards {
            *forwards.list() = None;
            forwards.ports.close_all();
        }
    }

    fn forwards(&self) -> Vec<BoundForward> {
        self.forwards.as_ref().and_then(|forwards| forwards.list().clone()).unwrap_or_default()
    }
}

/// All interfaces, in the order of the spec. Clones are of the same ones. Keeps nothing of a machine that has ended.
#[derive(Debug, Clone)]
pub(crate) struct NetHandles {
    nets: Arc<[Arc<NetHandle>]>,
    publisher: Publisher,
}

impl NetHandles {
    pub(super) fn new(nets: impl Iterator<Item = Arc<NetHandle>>, publisher: Publisher) -> Self {
        NetHandles { nets: nets.collect(), publisher }
    }

    /// The machine comes from elsewhere, and will be announced. Before the first backend is made.
    pub(super) fn will_announce(&self) -> io::Result<()> {
        // A user network is this process's own.
        self.nets.iter().filter(|net| net.forwards.is_none()).try_for_each(|net| {
            let announcer = Announcer::new()?;
            net.announcer.get_or_init(|| announcer);
            Ok(())
        })
    }

    /// Tells the networks of a machine that has come from elsewhere where its guest is now.
    #[cfg(feature = "cli")]
    pub(super) fn announce(&self) {
        self.nets.iter().filter_map(|net| net.announcer()).for_each(Announcer::announce);
    }

    /// The ports of the host that lead to the guest.
    pub(crate) fn forwards(&self) -> Vec<BoundForward> {
        self.nets.iter().flat_map(|net| net.forwards()).collect()
    }

    /// Those of this user network or of the only one.
    pub(crate) fn forwards_of(&self, net: Option<&str>) -> Result<Vec<BoundForward>, NetError> {
        let (_, forwards) = self.user_net(net)?;
        forwards.list().clone().ok_or(NetError::Ended)
    }

    /// Opens a port of the host that leads to the guest.
    pub(crate) fn add_forward(
        &self,
        net: Option<&str>,
        forward: PortForward,
    ) -> Result<BoundForward, NetError> {
        let (net, forwards) = self.user_net(net)?;
        let mut open = forwards.list();
        let list = open.as_mut().ok_or(NetError::Ended)?;
        if list.len() >= MOST_FORWARDS {
            return Err(NetError::TooManyForwards(list.len()));
        }
        let address = forwards.ports.open(forward_of(&forward)).map_err(|source| {
            match list.iter().find(|other| other.settled().clashes(&forward)) {
                Some(other) => NetError::Forwarded(other.clone()),
                None => ForwardError::new(forward, source).into(),
            }
        })?;
        let bound = BoundForward { net: net.id.clone(), forward, address };
        list.push(bound.clone());
        drop(open);
        self.publisher.publish(MachineEvent::ForwardAdded(bound.clone()));
        Ok(bound)
    }

    /// Closes one; connections go on.
    pub(crate) fn remove_forward(
        &self,
        net: Option<&str>,
        forward: PortForward,
    ) -> Result<BoundForward, NetError> {
        let (net, forwards) = self.user_net(net)?;
        let mut open = forwards.list();
        let list = open.as_mut().ok_or(NetError::Ended)?;
        let index = index_of(list, &forward).ok_or_else(|| NetError::NoForward {
            net: net.id.clone(),
            forward,
            there: list.iter().map(BoundForward::settled).collect(),
        })?;
        let bound = list.remove(index);
        drop(open);
        forwards.ports.close(forward_of(&bound.forward).protocol, bound.address);
        self.publisher.publish(MachineEvent::ForwardRemoved(bound.clone()));
        Ok(bound)
    }

    /// Begins a capture, whose reader takes it from what this returns.
    pub(crate) fn capture(
        &self,
        net: Option<&str>,
        limits: CaptureLimits,
    ) -> Result<CaptureStream, NetError> {
        let net = match net {
            Some(id) => self.net(id)?,
            None => self.only(false)?,
        };
        net.point.stream(net.id.as_str(), limits).map_err(|refused| match refused {
            Refused::TooMany(count) => NetError::TooManyCaptures(count),
            Refused::Closed => NetError::Ended,
        })
    }

    /// The machine has ended: nothing stays open.
    #[cfg(test)]
    pub(crate) fn close(&self) {
        self.nets.iter().for_each(|net| net.close());
    }

    fn net(&self, id: &str) -> Result<&NetHandle, NetError> {
        let found = self.nets.iter().find(|net| net.id.as_str() == id);
        found.map(|net| &**net).ok_or_else(|| NetError::NoNet { id: id.into(), ids: self.ids(false) })
    }

    fn user_net(&self, id: Option<&str>) -> Result<(&NetHandle, &Forwards), NetError> {
        let net = match id {
            Some(id) => self.net(id)?,
            None => self.only(true)?,
        };
        let refused = || NetError::NoUserNet { id: net.id.clone(), users: self.ids(true) };
        Ok((net, net.forwards.as_ref().ok_or_else(refused)?))
    }

    /// The one that is meant if none is named.
    fn only(&self, of_users: bool) -> Result<&NetHandle, NetError> {
        let mut all = self.all(of_users);
        match (all.next(), all.next()) {
            (Some(net), None) => Ok(net),
            (None, _) => Err(NetError::None { of_users }),
            (Some(_), Some(_)) => Err(NetError::Several { of_users, ids: self.ids(of_users) }),
        }
    }

    fn all(&self, of_users: bool) -> impl Iterator<Item = &NetHandle> {
        self.nets.iter().map(|net| &**net).filter(move |net| !of_users || net.forwards.is_some())
    }

    fn ids(&self, of_users: bool) -> Vec<NetId> {
        self.all(of_users).map(|net| net.id.clone()).collect()
    }
}

/// The forward that is meant: by the port that the host has, or else as it was asked for, if only one was.
fn index_of(list: &[BoundForward], forward: &PortForward) -> Option<usize> {
    let same_guest = |other: &BoundForward| {
        (other.forward.protocol, other.forward.guest) == (forward.protocol, forward.guest)
    };
    let bound = list.iter().position(|other| same_guest(other) && other.address == forward.bind());
    bound.or_else(|| {
        let mut asked =
            (0..).zip(list).filter(|(_, other)| other.forward == *forward).map(|(index, _)| index);
        asked.next().filter(|_| asked.next().is_none())
    })
}

#[cfg(test)]
impl Default for NetHandles {
    /// `net0`, which is no user network, and `net1`, which is one.
    fn default() -> Self {
        let forwards = [None, Some((Ports::default(), Vec::new()))];
        let nets = (0..)
            .zip(forwards)
            .map(|(index, forwards)| Arc::new(NetHandle::new(NetId::numbered(index), forwards)));
        NetHandles::new(nets, Publisher::default())
    }
}
