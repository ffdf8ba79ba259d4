//! A saved state that was tampered with: of a device amid its work, with numbers changed, parts missing, doubled or of
//! another kind.
//!
//! Promises: no panic and no hang; it is refused, or the device goes on from it; after that and a reset it works.
//!
//! Input: the device, what was done before it was saved (queue, kind and number of requests, features), then changes of 12
//! bytes each: which value of the state (two bytes), what is done to it, how far the number is shifted, the number.
#![no_main]

#[path = "changed.rs"]
mod changed;
#[path = "checked.rs"]
mod checked;

use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use changed::{CHANGE, change};
use checked::{SECTORS, checked};
use devices::component::Component;
use devices::pci::function::PciFunction;
use libfuzzer_sys::fuzz_target;
use virtio::balloon::{Balloon, BalloonControl};
use virtio::block::{Block, Disk, Topology};
use virtio::console::{Console, Nobody};
use virtio::device::Device;
use virtio::entropy::Entropy;
use virtio::net::testing::Wire;
use virtio::net::{Net, Offloads};
use virtio::poll::{Epoll, Poller};
use virtio::testing::Guest;
use virtio::worker::MakePoller;

const SIZE: u16 = 16;
const BEFORE: usize = 5;

/// Saves a device at work, changes what was saved, and takes it up in a function made anew.
fn run<P: Poller + 'static>(
    input: &[u8],
    device: impl Fn() -> Box<dyn Device<Poller = P>>,
    make: fn() -> MakePoller<P>,
    works: impl FnOnce(&mut Guest<P>),
) {
    let Some((before, changes)) = input.split_at_checked(BEFORE) else { return };
    let mut guest = Guest::new(device(), make());
    guest.start(u64::MAX ^ u64::from(before[3]) << (before[4] % 56), SIZE);
    let queue = usize::from(before[0]) % guest.rings.len();
    for n in 0..before[1] % 8 {
        let (readable, writable) = ([before[2] & 0xf; 16], usize::from(before[2]) * 8 + 1);
        if before[2] & 1 == 0 {
            guest.add(queue, &[&readable], &[writable, 1][..usize::from(before[2] >> 6) % 3]);
        } else {
            guest.add(queue, &[], &[writable]);
        }
        if n % 2 == 0 {
            guest.kick(queue);
        }
    }
    guest.function.quiesce();
    let mut state = guest.function.save().expect("a state");
    changes.chunks_exact(CHANGE).take(16).for_each(|raw| change(&mut state.data, raw));
    let config = *guest.function().config().bytes();
    let Guest { function, memory, discards, rings, .. } = guest;
    drop(function);
    let mut guest = Guest::with_memory(device(), make(), memory, discards);
    guest.function.quiesce();
    let fresh = guest.function.save().expect("a state");
    match guest.load(&config, &state) {
        Ok(()) => {
            guest.function.go();
            guest.rings = rings;
            (0..guest.rings.len()).for_each(|queue| guest.kick(queue));
            guest.add(queue, &[], &[8]);
            guest.kick(queue);
            guest.function.quiesce();
            guest.function.save().expect("its thread lives");
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(guest.function.save() == Ok(fresh), "refused, and nothing is changed");
        }
    }
    guest.function.go();
    guest.start(u64::MAX, SIZE);
    works(&mut guest);
}

fn epoll() -> MakePoller<Epoll> {
    Box::new(Epoll::new)
}

fn disk() -> Disk {
    let (topology, queues) = (Topology::default(), NonZeroU16::new(2).expect("2"));
    Disk { sectors: SECTORS, read_only: false, serial: "fuzz".into(), queues, topology, discard: Some(4096) }
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, input)) = input.split_first() else { return };
    let begin = Instant::now();
    match kind % 5 {
        0 => run(
            input,
            || Box::new(Block::new("blk0", disk())),
            || Box::new(checked),
            |guest| {
                let header = [&8u32.to_le_bytes()[..], &[0; 12]].concat();
                assert_eq!(guest.request(0, &[&header], &[20, 1]).1[1][0], 0);
            },
        ),
        1 => {
            let wire = Wire::new(2, Offloads::all());
            let device =
                || Box::new(Net::<Epoll>::new("net0", [2, 0, 0, 0, 0, 1], Box::new(wire.clone()), 2)) as _;
            run(input, device, epoll, |guest| {
                guest.request(1, &[&[0; 12], &[7; 60]], &[]);
                assert_eq!(wire.ends().from_guest.pop().map(|(_, frame)| frame.bytes), Some(vec![7; 60]));
            });
        }
        2 => run(
            input,
            || Box::new(Entropy::new("rng")),
            epoll,
            |guest| {
                assert_eq!(guest.request(0, &[], &[64]).0.len, 64);
            },
        ),
        3 => {
            let control = BalloonControl::new(1);
            run(
                input,
                || Box::new(Balloon::new("balloon", &control)),
                epoll,
                |guest| {
                    guest.request(0, &[&7u32.to_le_bytes()], &[]);
                    assert_eq!(guest.discards.all().last(), Some(&(7 << 12, 4096)));
                },
            );
        }
        _ => {
            let device = || {
                let console = Console::new("console", Box::new(Nobody));
                Box::new(console.with_port("port", Box::new(Nobody))) as _
            };
            run(input, device, epoll, |guest| {
                guest.request(3, &[&[0, 0, 0, 0, 0, 0, 1, 0]], &[]);
            });
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(30), "something held the device up");
});
