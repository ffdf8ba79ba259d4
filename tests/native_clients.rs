//! Clients of a machine's control socket that do whatever comes to their minds, forty at once: none is left when they have gone,
//! the machine answers and runs on, and it has no more memory than before.
//!
//! `CLIENTS_SECONDS` sets for how long (5), `CLIENTS_SEED` what they choose.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/host.rs"]
mod host;
#[path = "support/memory.rs"]
mod memory;
#[path = "support/vmm.rs"]
mod vmm;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use host::Host;
use memory::private_memory;
use minivmm::control::routes::ROUTES;
use tiny_guest::Guest;
use vmm::LIMIT;

/// Clients that play, each with so many connections at most.
const PLAYERS: u64 = 8;
const EACH: usize = 5;
/// Operations, on a busy host over more than the first fifth, after which the process holds what it needs.
const FIRST: u64 = 2000;
const UPGRADE: &[u8] = b"GET /v1/console HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: minivmm-console\r\n\r\n";
/// KiB that may be held more than in the first fifth: what an allocator keeps, and the guest's input, which came to its
/// limit or not.
const KEPT: u64 = 4 << 10;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.number() % end as u64).unwrap()
    }

    /// Bytes that the guest does not end for, as it does for 4.
    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let count = self.below(most) + 1;
        (0..count).map(|_| u8::try_from(self.number() & 0xff).unwrap()).map(|byte| byte.max(5)).collect()
    }

    /// A whole request, of one that is there but neither ends the machine nor boots it again, nor lets it go on `at_rest`.
    fn request(&mut self, at_rest: bool) -> Vec<u8> {
        let avoided = ["/v1/kill", "/v1/reset", if at_rest { "/v1/resume" } else { "" }];
        let mild: Vec<_> = ROUTES.iter().filter(|route| !avoided.contains(&route.path)).collect();
        let route = mild[self.below(mild.len())];
        let body = match (route.method, route.path) {
            ("PUT", _) => format!("{{\"mib\":{}}}", self.below(6)),
            (_, "/v1/pause") => format!("{{\"timeout\":{}}}", self.below(2)),
            (_, "/v1/nets/{id}/forwards") => "{\"forward\":\"0:22\"}".to_owned(),
            _ => String::new(),
        };
        let more = ["", "", "Connection: close\r\n", "Connection: Upgrade\r\nUpgrade: minivmm-console\r\n"];
        let (more, length) = (more[self.below(more.len())], body.len());
        let (method, path) = (route.method, route.path.replace("{id}", ["-", "net0", "x"][self.below(3)]));
        format!("{method} {path} HTTP/1.1\r\n{more}Content-Length: {length}\r\n\r\n{body}").into()
    }
}

/// One action of a client. Bytes that the connection does not accept now are dropped.
fn play(host: &Host, chance: &mut Chance, open: &mut Vec<UnixStream>, at_rest: bool) {
    if open.is_empty() || (open.len() < EACH && chance.below(4) == 0) {
        let stream = host.connect("vm0");
        stream.set_nonblocking(true).unwrap();
        open.push(stream);
    }
    let at = chance.below(open.len());
    let mut stream = &open[at];
    let _ = match chance.below(17) {
        0..=4 => stream.write_all(&chance.request(at_rest)),
        5 => {
            let request = chance.request(at_rest);
            stream.write_all(&request[..chance.below(request.len())])
        }
        6 => stream.write_all(&chance.request(at_rest).repeat(chance.below(50))),
        7 => stream.write_all(&chance.bytes(100)),
        8 => stream.write_all(&chance.bytes(1 << 15)),
        9 => stream.shutdown([Shutdown::Write, Shutdown::Read][chance.below(2)]),
        10 | 11 => stream.read(&mut [0; 1 << 15]).map(drop),
        12 => {
            thread::sleep(Duration::from_millis(chance.below(20) as u64));
            Ok(())
        }
        13 => {
            let _ = stream.write_all(UPGRADE);
            stream.write_all(&chance.bytes(1 << 18))
        }
        14 => {
            open.clear();
            Ok(())
        }
        _ => {
            open.remove(at);
            Ok(())
        }
    };
}

/// Threads of the machine's that serve a client, and the machine's ends of connections.
fn served(host: &Host, pid: i32) -> (usize, usize) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    let threads =
        names.filter(|name| ["control-client", "control-typist"].contains(&name.trim_end())).count();
    let socket = host.folder().join("vm0.sock");
    let all = fs::read_to_string("/proc/net/unix").unwrap();
    // One of them listens.
    (threads, all.lines().filter(|line| line.ends_with(socket.to_str().unwrap())).count() - 1)
}

#[test]
fn clients_that_do_anything_leave_nothing_behind() {
    let time = Duration::from_secs(number("CLIENTS_SECONDS").unwrap_or(5));
    let seed = number("CLIENTS_SEED").unwrap_or_else(|| {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos().into()
    });
    println!("CLIENTS_SEED={seed}");
    let host = Host::new();
    let machine = host.start(Guest::EchoInterrupt, "vm0", "ready\n");
    let (over, at_rest, count) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let (mut first, mut most, mut together) = (0, 0, 0);
    thread::scope(|scope| {
        for player in 0..PLAYERS {
            let (host, over, at_rest, count) = (&host, &over, &at_rest, &count);
            scope.spawn(move || {
                let (mut chance, mut open) = (Chance(seed ^ player << 32), Vec::new());
                while !over.load(Ordering::Relaxed) {
                    play(host, &mut chance, &mut open, at_rest.load(Ordering::Relaxed));
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let begin = Instant::now();
        let early = || begin.elapsed() < time / 5 || count.load(Ordering::Relaxed) < FIRST;
        while begin.elapsed() < time || early() {
            let memory = private_memory(machine.pid());
            if early() {
                first = memory.max(first);
            } else {
                most = memory.max(most);
            }
            together = served(&host, machine.pid()).0.max(together);
            // In the last fifth no client reads its input. An earlier request may still resume the machine.
            if begin.elapsed() > time * 4 / 5 {
                at_rest.store(true, Ordering::Relaxed);
                host.run(&["pause", "vm0"]);
            }
            thread::sleep(Duration::from_millis(50));
        }
        over.store(true, Ordering::Relaxed);
    });
    let begin = Instant::now();
    while served(&host, machine.pid()) != (0, 0) {
        let (threads, sockets) = served(&host, machine.pid());
        // A guest at rest keeps what was typed last for 5 s, a last answer lingers for 1 s.
        assert!(begin.elapsed() < LIMIT, "{threads} threads and {sockets} connections are left");
        thread::sleep(Duration::from_millis(10));
    }
    let last = private_memory(machine.pid());
    println!(
        "{} operations, {together} threads at once; all places free after {:?}; private memory {first} KiB at first, \
         at most {most} KiB, {last} KiB at last",
        count.load(Ordering::Relaxed),
        begin.elapsed()
    );
    assert!(most.max(last) < first + KEPT, "{first} KiB became {most} KiB");
    assert_eq!(host.http("vm0", "GET", "/v1/machine", "").0, 200);
    // The guest is as it was: at rest or not, with much or little to read.
    host.does(&["reset", "vm0"]);
    machine.expect("ready\n", 2);
    host.does(&["kill", "vm0"]);
    assert_eq!(machine.end().status.code(), Some(6));
}
