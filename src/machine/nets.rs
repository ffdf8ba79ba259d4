//! The network interfaces of a machine: opened once, before the guest runs, and kept over its reboots. Each boot gets a backend
//! of its own on what is open.

use std::sync::Arc;

use usernet::{Config, Forward, Ipv4Subnet};
use virtio::net::NetBackend;

use super::StartError;
use super::deadline::Progress;
use super::net_handles::{BoundForward, NetHandle};
use crate::host::capture::{Capture, CaptureFile};
use crate::host::forward::ForwardError;
use crate::host::net_socket::{DgramSocket, PeerRole, StreamSocket};
use crate::host::switch_port::{PortRequest, SwitchPort};
use crate::host::tap::{Tap, TapBackend};
use crate::host::user_network::{self, UserNetwork, UserNetworkError};
use crate::shown::path as shown;
use crate::spec::{HostName, Mtu, NetId, NetLink, NetSpec, PortForward, Protocol, Spec, UserNet};

/// Largest packet of an Ethernet.
const DEFAULT_MTU: u16 = 1500;

/// An open network interface.
#[derive(Debug)]
pub(super) struct NetResource {
    /// What can be changed while the machine runs.
    handle: Arc<NetHandle>,
    mac: [u8; 6],
    mtu: Option<u16>,
    link: Link,
    /// What `pcap=` asked for; it ends with the machine.
    capture: Option<Capture>,
}

/// What it is connected to.
#[derive(Debug)]
enum Link {
    Tap(Arc<Tap>),
    Stream(StreamSocket),
    Dgram(DgramSocket),
    Switch(SwitchPort),
    User(Box<UserNetwork>),
}

impl NetResource {
    /// Opens all that `spec` names, in its order.
    pub(super) fn open_all(spec: &Spec, progress: &Progress) -> Result<Vec<Self>, StartError> {
        if user_nets(spec).any(|user| !user.restrict) {
            user_network::warn_without_name_server();
        }
        spec.interfaces().map(|(id, net)| Self::open(id, net, spec, progress)).collect()
    }

    /// Opens the files of `pcap=`, and begins when all of them can be had: earlier captures are replaced. Everything that may fail
    /// otherwise comes before it.
    pub(super) fn capture_all(nets: &mut [Self], spec: &Spec, progress: &Progress) -> Result<(), StartError> {
        let mut opened = Vec::new();
        for (net, (_, asked)) in nets.iter_mut().zip(spec.interfaces()) {
            if let Some(path) = &asked.pcap {
                progress.begin(format!("opening the capture {}", shown(path)));
                opened.push((net, CaptureFile::open(path)?));
            }
        }
        for (net, file) in opened {
            let capture = net.handle.point().attach(file, net.id())?;
            drop(net.capture.replace(capture));
        }
        Ok(())
    }

    fn open(id: NetId, net: &NetSpec, spec: &Spec, progress: &Progress) -> Result<Self, StartError> {
        let mac = net.mac.ok_or(StartError::Internal("the network addresses"))?.bytes();
        let mtu = net.mtu.map(Mtu::get);
        let mut forwards = None;
        let link = match &net.link {
            NetLink::Tap(name) => {
                progress.begin(format!("opening the TAP {name}"));
                let queues = u16::try_from(spec.cpus().get()).unwrap_or(u16::MAX);
                Link::Tap(Arc::new(Tap::open(name.as_str(), queues)?))
            }
            NetLink::User(user) => {
                let network = open_user(user, mtu, spec)?;
                let bound = user.forward.iter().zip(network.forwards());
                let bound = bound.map(|(forward, (_, address))| BoundForward {
                    net: id.clone(),
                    forward: *forward,
                    address,
                });
                forwards = Some((network.ports().clone(), bound.collect()));
                Link::User(Box::new(network))
            }
            NetLink::Socket { path, listen } => {
                progress.begin(format!("opening the socket {}", shown(path)));
                let role = if *listen { PeerRole::Listen } else { PeerRole::Connect };
                Link::Stream(StreamSocket::open(path, role, mtu.unwrap_or(DEFAULT_MTU))?)
            }
            NetLink::Dgram { local, remote } => {
                progress.begin(format!("opening the socket {}", shown(local)));
                Link::Dgram(DgramSocket::open(local, remote, mtu.unwrap_or(DEFAULT_MTU))?)
            }
            NetLink::Switch { name, port } => {
                progress.begin(format!("attaching to the switch {name}"));
                let mac = net.mac.ok_or(StartError::Internal("the network addresses"))?;
                let (machine, interface) = (spec.name.clone(), id.clone());
                let (mtu, options) = (mtu.unwrap_or(DEFAULT_MTU), port.clone());
                Link::Switch(SwitchPort::open(name, &PortRequest { machine, interface, mac, mtu, options })?)
            }
            NetLink::None => return Err(StartError::Internal("the list of networks")),
        };
        Ok(NetResource { handle: Arc::new(NetHandle::new(id, forwards)), mac, mtu, link, capture: None })
    }

    /// What can be changed while the machine runs.
    pub(super) fn handle(&self) -> &Arc<NetHandle> {
        &self.handle
    }

    /// Its name among the machine's parts.
    pub(super) fn id(&self) -> &str {
        self.handle.id().as_str()
    }

    /// The guest's address.
    pub(super) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// A backend for the device of one boot. What came before that boot is gone.
    pub(super) fn backend(&self) -> Result<Box<dyn NetBackend>, StartError> {
        let backend: Box<dyn NetBackend> = match &self.link {
            Link::Tap(tap) => {
                let backend = TapBackend::new(tap.clone())?.with_mtu(self.mtu);
                if let Some(warning) = backend.warning() {
                    log::warn!("{warning}");
                }
                Box::new(backend)
            }
            Link::Stream(socket) => socket.backend(),
            Link::Dgram(socket) => socket.backend(),
            Link::Switch(port) => port.backend(),
            Link::User(network) => Box::new(network.backend().map_err(StartError::Descriptors)?),
        };
        let backend = self.handle.point().around(backend);
        match self.handle.announcer() {
            Some(announcer) => announcer.around(backend, self.mac).map_err(StartError::Descriptors),
            None => Ok(backend),
        }
    }
}

impl Drop for NetResource {
    fn drop(&mut self) {
        // Handles of the machine may stay for longer than it.
        self.handle.close();
    }
}

fn user_nets(spec: &Spec) -> impl Iterator<Item = &UserNet> {
    spec.net.iter().filter_map(NetSpec::user_net)
}

fn open_user(user: &UserNet, mtu: Option<u16>, spec: &Spec) -> Result<UserNetwork, StartError> {
    let mut config = Config {
        host_loopback: user.host_loopback,
        restrict: user.restrict,
        hostname: hostname(user, spec),
        ..Config::default()
    };
    if let Some(subnet) = user.subnet {
        config.ipv4 = Ipv4Subnet::new(subnet.network(), subnet.prefix());
    }
    if let Some(mtu) = mtu {
        config.mtu = mtu;
    }
    let forwards: Vec<Forward> = user.forward.iter().map(forward).collect();
    let networks = user_nets(spec).count();
    UserNetwork::open(config, &forwards, networks).map_err(|error| match error {
        UserNetworkError::Host(source) => StartError::Descriptors(source),
        UserNetworkError::Bind { forward: refused, source, .. } => {
            let asked = user.forward.iter().find(|asked| forward(asked) == refused);
            asked.map_or(StartError::Internal("the forwards"), |asked| {
                ForwardError::new(*asked, source).into()
            })
        }
    })
}

/// The name that DHCP gives to the guest: by default the machine's, if a host can be called so.
fn hostname(user: &UserNet, spec: &Spec) -> Option<String> {
    let machine = || spec.name.as_ref()?.as_str().parse().ok();
    user.hostname.clone().or_else(machine).map(|name: HostName| name.as_str().to_owned())
}

/// A forward as the user network takes it.
pub(super) fn forward(asked: &PortForward) -> Forward {
    let protocol = match asked.protocol {
        Protocol::Tcp => usernet::Protocol::Tcp,
        Protocol::Udp => usernet::Protocol::Udp,
    };
    Forward { protocol, bind: asked.bind(), guest_port: asked.guest }
}
