//! A guest with a TCP of another author, on any wire of frames.
#![allow(clippy::cast_possible_truncation, reason = "numbers of tests are small")]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, IpCidr};

const LIMIT: Duration = Duration::from_secs(60);

/// Where a guest's frames go, and where they come from.
pub(crate) trait FrameWire {
    /// Sends a frame.
    fn put(&mut self, frame: &[u8]);
    /// The next frame that has come.
    fn take(&mut self) -> Option<Vec<u8>>;
    /// Waits for frames, no longer than `most`.
    fn wait(&mut self, most: Duration);
}

/// See the module.
pub(crate) struct TcpGuest<W: FrameWire> {
    wire: Plug<W>,
    pub(crate) interface: Interface,
    pub(crate) sockets: SocketSet<'static>,
    started: Instant,
}

impl<W: FrameWire> TcpGuest<W> {
    /// A guest with these addresses, in a network of 256.
    pub(crate) fn on(wire: W, mac: EthernetAddress, address: Ipv4Addr, gateway: Ipv4Addr) -> Self {
        let mut wire = Plug(wire);
        let mut interface = Interface::new(Config::new(mac.into()), &mut wire, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(address.into(), 24)).unwrap());
        interface.routes_mut().add_default_ipv4_route(gateway).unwrap();
        TcpGuest { wire, interface, sockets: SocketSet::new(Vec::new()), started: Instant::now() }
    }

    /// A socket that is not used yet.
    pub(crate) fn tcp(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 32 << 10]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    /// Does what there is to do now. Returns when that was.
    pub(crate) fn work(&mut self) -> smoltcp::time::Instant {
        let now = smoltcp::time::Instant::from_micros(self.started.elapsed().as_micros() as i64);
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        now
    }

    /// Waits for frames, no longer than `most`.
    pub(crate) fn wait(&mut self, most: Duration) {
        self.wire.0.wait(most);
    }

    /// Lets the guest work until `done` says so.
    pub(crate) fn run<T>(&mut self, mut done: impl FnMut(&mut SocketSet<'static>) -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            let now = self.work();
            if let Some(result) = done(&mut self.sockets) {
                return result;
            }
            assert!(Instant::now() < end, "the guest waits for something that does not come");
            // What `done` wrote is due at once.
            let delay = self.interface.poll_delay(now, &self.sockets).map_or(LIMIT, Duration::from);
            self.wait(delay.min(LIMIT));
        }
    }
}

struct Plug<W>(W);

impl<W: FrameWire> Device for Plug<W> {
    type RxToken<'a>
        = Received
    where
        W: 'a;
    type TxToken<'a>
        = Sender<'a, W>
    where
        W: 'a;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sender<'_, W>)> {
        Some((Received(self.0.take()?), Sender(&mut self.0)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sender<'_, W>> {
        Some(Sender(&mut self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, with: F) -> R {
        with(&self.0)
    }
}

struct Sender<'a, W>(&'a mut W);

impl<W: FrameWire> TxToken for Sender<'_, W> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, with: F) -> R {
        let mut frame = vec![0; len];
        let result = with(&mut frame);
        self.0.put(&frame);
        result
    }
}
