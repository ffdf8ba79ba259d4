//! A guest that does anything to a console with a named port, while clients come, speak, listen and go.
//!
//! Promises: no panic and no hang; after all of it and a reset, the port carries bytes both ways.
//!
//! Input: steps of 8 bytes, see `steps.rs`.
#![no_main]

#[path = "steps.rs"]
mod steps;

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use devices::console::ByteQueue;
use libfuzzer_sys::fuzz_target;
use virtio::console::{Console, SocketBackend, Stream};
use virtio::poll::Epoll;
use virtio::testing::Guest;

const RX: usize = 4;
const TX: usize = 5;

fn message(port: u8, event: u8, value: u8) -> [u8; 8] {
    [port, 0, 0, 0, event, 0, value, 0]
}

/// A listener without a file, and where it is.
fn listener() -> (UnixListener, SocketAddr) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = format!("minivmm-fuzz-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    (UnixListener::bind_addr(&address).expect("a socket"), address)
}

/// The port carries a byte each way for a client that comes now.
fn works(guest: &mut Guest<Epoll>, address: &SocketAddr) {
    let mut client = UnixStream::connect_addr(address).expect("a listener");
    client.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    // Before this client is let in, the guest takes what those said that have gone.
    let buffers: Vec<_> = (1..steps::SIZE).map(|_| guest.add(RX, &[], &[32 << 10])).collect();
    for told in [message(0, 0, 1), message(1, 3, 1), message(1, 6, 1)] {
        guest.request(3, &[&told], &[]);
    }
    guest.request(TX, &[b"x"], &[]);
    let mut byte = [0];
    client.read_exact(&mut byte).expect("what the guest wrote");
    assert_eq!(byte, *b"x");
    client.write_all(b"y").expect("room");
    loop {
        let used = guest.rings[RX].wait_used();
        let (_, outs) = buffers.iter().find(|(head, _)| *head == used.head).expect("a buffer of ours");
        if guest.bytes(outs[0] + u64::from(used.len) - 1, 1) == b"y" {
            return;
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let (listener, address) = listener();
    let [keys, screen] = [0; 2].map(|_| Arc::new(ByteQueue::new(1 << 12)));
    let terminal = Stream::new(keys.clone(), screen.clone()).expect("a file descriptor");
    let port = SocketBackend::new(listener).expect("a listener");
    let console = Console::new("console", Box::new(terminal)).with_port("port", Box::new(port));
    let mut guest = Guest::new(Box::new(console), Box::new(Epoll::new));
    let mut clients: Vec<UnixStream> = Vec::new();
    let mut own = |guest: &mut Guest<Epoll>, what: u8, queue: usize, [a, b, c]: [u16; 3]| {
        match what % 16 {
            11 => drop(guest.add(3, &[&message(a as u8 % 3, b as u8 % 8, c as u8 % 3)], &[])),
            12 if clients.len() < 4 => {
                let client = UnixStream::connect_addr(&address).expect("a listener");
                client.set_nonblocking(true).expect("a socket");
                clients.push(client);
            }
            12 => drop(clients.remove(usize::from(a) % 4)),
            13 => {
                let Some(client) = clients.get_mut(usize::from(a) % 4) else { return false };
                let mut bytes = vec![b as u8 & 0x3f; usize::from(b) % 2000 + 1];
                let _ = if c & 1 == 0 { client.write(&bytes) } else { client.read(&mut bytes) };
            }
            14 => {
                keys.try_push(&vec![0; usize::from(a) % 300]);
                screen.try_pop(&mut vec![0; usize::from(b)]);
            }
            _ => return false,
        }
        let _ = queue;
        true
    };
    steps::run(&mut guest, input, &mut own, |_| {});
    clients.clear();
    // Whoever was let in is seen to have gone once the guest listens.
    guest.start(u64::MAX, steps::SIZE);
    works(&mut guest, &address);
});
