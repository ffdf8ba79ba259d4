//! How much bytes cost on their way between a guest's memory and the host's sockets, without a guest:
//! `cargo test --release --workspace --lib user_network::speed -- --ignored --nocapture`, under `strace -fc` for system calls.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use usernet::Config;
use virtio::memory::{Memory, Segment};
use virtio::net::{HEADER_LEN, NetBackend, Offloads};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{UserBackend, UserNetwork};

const BYTES: usize = 1 << 30;
const QUESTIONS: u32 = 100_000;
const MSS: u16 = 1460;
/// Headers of Ethernet, IP and TCP; without Ethernet's.
const HEADERS: usize = 54;
const PACKET_HEADERS: usize = 40;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// What Linux sends at once.
const LARGE: usize = 44 * MSS as usize;
/// Buffers that Linux gives for frames.
const BUFFER: u32 = 1536;
const BUFFERS: u64 = 44;
const FROM: u64 = 0x1000;
const TO: u64 = 0x4_0000;

/// A guest with one flow, that works off what is there before it waits, as the device's thread does.
#[derive(Debug)]
struct Guest {
    backend: UserBackend,
    memory: Memory,
    epoll: Epoll,
    room: Vec<Segment>,
    spill: Vec<u8>,
    server: u16,
    seq: u32,
    ack: u32,
    window_edge: u32,
}

impl Guest {
    fn new(server: u16) -> Self {
        let config = Config { host_loopback: true, ..Config::default() };
        let mut backend = UserNetwork::open(config, &[], 1).unwrap().backend().unwrap();
        backend.set_offloads(Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6).unwrap();
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        epoll.ctl(ControlOperation::Add, backend.fd(0).unwrap(), event).unwrap();
        let room = (0..BUFFERS)
            .map(|at| Segment { address: GuestAddress(TO + at * u64::from(BUFFER)), len: BUFFER })
            .collect();
        let (memory, _) = virtio::testing::memory(1 << 20);
        let (seq, ack) = (1, 0);
        Guest { backend, memory, epoll, room, spill: vec![0; 70_000], server, seq, ack, window_edge: 0 }
    }

    fn packet(&self, protocol: u8, transport: &[u8], payload: usize) -> Vec<u8> {
        let mut frame = vec![0x52, 0x55, 10, 0, 2, 2, 2, 0, 0, 0, 0, 0x15, 8, 0];
        let len = u16::try_from(20 + transport.len() + payload).unwrap().to_be_bytes();
        let mut ip = [0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2];
        let sum: u32 = ip.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(ip);
        frame.extend([0x9c, 0x40]);
        frame.extend(self.server.to_be_bytes());
        frame.extend(&transport[4..]);
        frame
    }

    /// Sends headers, and what happens to lie in memory as payload.
    fn send(&mut self, protocol: u8, transport: &[u8], payload: usize) {
        let frame = self.packet(protocol, transport, payload);
        self.memory.write_slice(&frame, GuestAddress(FROM)).unwrap();
        let len = u32::try_from(frame.len() + payload).unwrap();
        let mut header = [0; HEADER_LEN];
        header[0] = 1;
        header[6..8].copy_from_slice(&34u16.to_le_bytes());
        header[8..10].copy_from_slice(&(if protocol == TCP { 16u16 } else { 6 }).to_le_bytes());
        if payload > MSS.into() {
            header[1] = 1;
            header[2..4].copy_from_slice(&u16::try_from(HEADERS).unwrap().to_le_bytes());
            header[4..6].copy_from_slice(&MSS.to_le_bytes());
        }
        let frame = [Segment { address: GuestAddress(FROM), len }];
        self.backend.send(0, &header, &self.memory, &frame).unwrap();
    }

    fn segment(&mut self, flags: u8, payload: usize) {
        let mut header = [0; 20];
        header[4..8].copy_from_slice(&self.seq.to_be_bytes());
        header[8..12].copy_from_slice(&self.ack.to_be_bytes());
        header[12..16].copy_from_slice(&[0x50, flags, 0xff, 0xff]);
        let mut transport = header.to_vec();
        if flags & 2 != 0 {
            // MSS, and windows of 8 MiB.
            transport[12] = 0x70;
            transport.extend([2, 4, 5, 0xb4, 3, 3, 7, 0]);
        }
        self.send(TCP, &transport, payload);
        self.seq = self.seq.wrapping_add(u32::try_from(payload).unwrap() + u32::from(flags & 2 != 0));
    }

    /// The next frame; takes its acknowledgement and returns how many bytes it carries.
    fn receive(&mut self) -> Option<usize> {
        let mut header = [0; HEADER_LEN];
        match self.backend.receive(0, &mut header, &self.memory, &self.room, &mut self.spill) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) => panic!("{error}"),
        }
        let mut frame = [0; HEADERS];
        self.memory.read_slice(&mut frame, GuestAddress(TO)).unwrap();
        let number = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
        if frame[12..14] != [8, 0] || frame[23] != TCP {
            return Some(0);
        }
        let packet = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
        let syn = frame[47] & 2 != 0;
        let payload = packet - PACKET_HEADERS - if syn { packet - PACKET_HEADERS } else { 0 };
        self.ack = number(38).wrapping_add(u32::try_from(payload).unwrap() + u32::from(syn));
        let shift = if syn { 0 } else { 7 };
        self.window_edge =
            number(42).wrapping_add(u32::from(u16::from_be_bytes([frame[48], frame[49]])) << shift);
        Some(payload)
    }

    fn wait(&self) {
        match self.epoll.wait(-1, &mut [EpollEvent::default(); 4]) {
            Err(error) if error.kind() != ErrorKind::Interrupted => panic!("{error}"),
            _ => {}
        }
    }

    fn connect(&mut self) {
        self.segment(2, 0);
        while self.ack == 0 {
            match self.receive() {
                Some(_) => {}
                None => self.wait(),
            }
        }
        self.segment(16, 0);
    }

    fn download(&mut self) -> usize {
        let mut got = 0;
        while got < BYTES {
            let mut frames = 0;
            while let Some(payload) = self.receive() {
                got += payload;
                frames += 1;
                if frames == 16 {
                    break;
                }
            }
            // One for each, as the driver of a real one does that has gathered nothing.
            (0..frames).for_each(|_| self.segment(16, 0));
            if frames == 0 {
                self.wait();
            }
        }
        got
    }

    fn upload(&mut self) -> usize {
        let mut sent = 0;
        while sent < BYTES {
            let mut frames = 0;
            while frames < 16 && self.window_edge.wrapping_sub(self.seq) >= u32::try_from(LARGE).unwrap() {
                self.segment(16, LARGE);
                sent += LARGE;
                frames += 1;
            }
            while self.receive().is_some() {
                frames += 1;
            }
            if frames == 0 {
                self.wait();
            }
        }
        sent
    }

    fn ask(&mut self) {
        let len = 9u16.to_be_bytes();
        self.send(UDP, &[0, 0, 0, 0, len[0], len[1], 0, 0, 7], 0);
        while self.receive().is_none() {
            self.wait();
        }
    }
}

/// Processor time of this thread, in seconds.
fn busy() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

fn serve(work: fn(TcpStream)) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || work(listener.accept().unwrap().0));
    port
}

fn write_for_ever(mut stream: TcpStream) {
    let bytes = vec![5; 128 << 10];
    while stream.write_all(&bytes).is_ok() {}
}

fn read_for_ever(mut stream: TcpStream) {
    let mut bytes = vec![5; 128 << 10];
    while stream.read(&mut bytes).is_ok_and(|count| count > 0) {}
}

fn tcp(name: &str, server: fn(TcpStream), work: fn(&mut Guest) -> usize) {
    let mut guest = Guest::new(serve(server));
    guest.connect();
    let began = busy();
    let bytes = work(&mut guest);
    let ms = (busy() - began) * 1e3 * f64::from(1 << 30) / bytes as f64;
    println!("{name}: {ms:.0} ms of this thread for a GiB");
}

#[test]
#[ignore = "it prints figures"]
fn download() {
    tcp("to the guest", write_for_ever, Guest::download);
}

#[test]
#[ignore = "it prints figures"]
fn upload() {
    tcp("from the guest", read_for_ever, Guest::upload);
}

#[test]
#[ignore = "it prints figures"]
fn question() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut bytes = [0; 100];
        while let Ok((len, from)) = server.recv_from(&mut bytes) {
            let _ = server.send_to(&bytes[..len], from);
        }
    });
    let mut guest = Guest::new(port);
    let began = busy();
    (0..QUESTIONS).for_each(|_| guest.ask());
    let us = (busy() - began) * 1e6 / f64::from(QUESTIONS);
    println!("question and answer by UDP: {us:.1} us of this thread");
}
