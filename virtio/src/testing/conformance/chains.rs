//! Chains that no driver may make, and chains that none would.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress};

use super::{RING, Subject, guest};
use crate::poll::Poller;
use crate::testing::{Guest, INDIRECT, NEXT, RawDescriptor, WRITE};

/// Where indirect tables lie: behind the rings, before the buffers.
const TABLE: u64 = 0x30_0000;
const BUFFER: u64 = 0x38_0000;
/// Bytes of the guest's memory.
const END: u64 = 16 << 20;

struct Case {
    what: &'static str,
    /// From descriptor 0 on.
    ring: Vec<RawDescriptor>,
    table: Vec<RawDescriptor>,
    /// What the available ring says.
    head: u16,
    /// How far its index goes.
    ahead: u16,
}

fn case(what: &'static str, ring: &[RawDescriptor], table: &[RawDescriptor]) -> Case {
    Case { what, ring: ring.to_vec(), table: table.to_vec(), head: 0, ahead: 1 }
}

fn at(address: u64, len: u32, flags: u16, next: u16) -> RawDescriptor {
    RawDescriptor { address, len, flags, next }
}

fn table(entries: u32) -> RawDescriptor {
    at(TABLE, 16 * entries, INDIRECT, 0)
}

fn malformed() -> Vec<Case> {
    let whole = |n: u16| at(0, END as u32, NEXT, n + 1);
    let overlong: Vec<_> = (0..300).map(whole).collect();
    let mut cases = vec![
        case("a circle of one", &[at(BUFFER, 8, NEXT, 0)], &[]),
        case("a circle of two", &[at(BUFFER, 8, NEXT, 1), at(BUFFER, 8, NEXT, 0)], &[]),
        case("a circle of nothing", &[at(0, 0, NEXT, 0)], &[]),
        case("a circle of writable ones", &[at(BUFFER, 8, NEXT | WRITE, 0)], &[]),
        case("a circle in a table", &[table(2)], &[at(BUFFER, 8, NEXT, 1), at(BUFFER, 8, NEXT, 0)]),
        case("a next outside", &[at(BUFFER, 8, NEXT, RING)], &[]),
        case("a next far outside", &[at(BUFFER, 8, NEXT, u16::MAX)], &[]),
        case("a next outside of its table", &[table(1)], &[at(BUFFER, 8, NEXT, 1)]),
        case("behind memory", &[at(END, 1, 0, 0)], &[]),
        case("over the end of memory", &[at(END - 1, 2, WRITE, 0)], &[]),
        case("over the end of all addresses", &[at(u64::MAX, 2, 0, 0)], &[]),
        case("longer than memory", &[at(0, u32::MAX, WRITE, 0)], &[]),
        case("readable behind writable", &[at(BUFFER, 8, WRITE | NEXT, 1), at(BUFFER, 8, 0, 0)], &[]),
        case("more than 4 GiB in one chain", &[table(300)], &overlong),
        case("a table of nothing", &[table(0)], &[]),
        case("a table and a half", &[at(TABLE, 24, INDIRECT, 0)], &[]),
        case("a table with a next", &[at(TABLE, 16, INDIRECT | NEXT, 1)], &[at(BUFFER, 8, 0, 0)]),
        case("a table behind memory", &[at(END, 16, INDIRECT, 0)], &[]),
        case("a table over the end", &[at(END - 16, 32, INDIRECT, 0)], &[]),
        case("a table of more than there may be", &[at(TABLE, 16 * 4096, INDIRECT, 0)], &[]),
        case("a table in a table", &[table(1)], &[at(TABLE, 16, INDIRECT, 0)]),
        case("a table in a table, writable", &[table(1)], &[at(TABLE, 16, INDIRECT | WRITE, 0)]),
        Case { head: RING, ..case("a head outside", &[at(BUFFER, 8, 0, 0)], &[]) },
        Case { head: u16::MAX, ..case("a head far outside", &[], &[]) },
        Case { ahead: RING + 1, ..case("an index one too far", &[at(BUFFER, 8, 0, 0)], &[]) },
        Case { ahead: 0x8000, ..case("an index far ahead", &[at(BUFFER, 8, 0, 0)], &[]) },
        Case { ahead: u16::MAX, ..case("an index that goes back", &[at(BUFFER, 8, 0, 0)], &[]) },
    ];
    // Everything behind a good start, too.
    let mut late = case("bad at its end", &[at(BUFFER, 8, NEXT, 1), at(BUFFER + 8, 8, NEXT, 2)], &[]);
    late.ring.push(at(END, 8, WRITE, 0));
    cases.push(late);
    cases
}

fn odd() -> Vec<Case> {
    let rings = 0x1000;
    let long: Vec<_> = (0..1024)
        .map(|n| at(BUFFER + u64::from(n), 1, if n < 1023 { NEXT | WRITE } else { WRITE }, n + 1))
        .collect();
    vec![
        case("no bytes", &[at(BUFFER, 0, 0, 0)], &[]),
        case("no bytes to write", &[at(u64::MAX, 0, WRITE, 0)], &[]),
        case("no bytes, thrice", &[at(0, 0, NEXT, 1), at(0, 0, NEXT, 2), at(0, 0, WRITE, 0)], &[]),
        case("one byte to read", &[at(BUFFER, 1, 0, 0)], &[]),
        case("one byte to write", &[at(BUFFER, 1, WRITE, 0)], &[]),
        case("nothing to write into", &[at(BUFFER, 4096, 0, 0)], &[]),
        case("nothing to read", &[at(BUFFER, 4096, WRITE, 0)], &[]),
        case("all of memory to read", &[at(0, END as u32, 0, 0)], &[]),
        case("read-only where an answer goes", &[at(BUFFER, 16, NEXT, 1), at(BUFFER + 16, 1, 0, 0)], &[]),
        case("both into the same", &[at(BUFFER, 512, NEXT, 1), at(BUFFER, 512, WRITE, 0)], &[]),
        case("into its own table", &[table(2)], &[at(TABLE, 32, NEXT, 1), at(TABLE, 32, WRITE, 0)]),
        case("a header in crumbs, and its answer", &[table(1024)], &long),
        case("out of the rings", &[at(rings, 0x1000, 0, 0)], &[]),
        case("the table is the ring", &[at(rings + 16, 16, INDIRECT, 0), at(BUFFER, 8, 0, 0)], &[]),
        case(
            "into its descriptors",
            &[at(BUFFER, 16, NEXT, 1), at(BUFFER + 16, 512, NEXT, 2), at(rings, 0x100, WRITE, 0)],
            &[],
        ),
    ]
}

/// Every malformed chain on every queue: the queue is broken, DEVICE_NEEDS_RESET is set and said, the guest's memory is not
/// written, the other queues go on, and after a reset all is well. The same holds for a queue that the device has no reason
/// to look at, but that nothing is said.
pub fn malformed_chains<S: Subject>(subject: &mut S) {
    let mut guest = guest(subject);
    for queue in 0..usize::from(guest.queues()) {
        for case in malformed() {
            guest.start(subject.wanted(), RING);
            let (told, failures) = (guest.config_interrupts(), guest.failures.count());
            let guard = Guard::set(&guest, &case);
            put(&mut guest, queue, &case);
            let what = format!("queue {queue} with {}", case.what);
            if subject.looks_at_once(queue) || subject.provoke(queue, &mut guest) {
                guest.wait_until(&format!("{what} is broken and the driver and the machine hear"), |guest| {
                    guest.status() & 0x40 != 0
                        && guest.config_interrupts() > told
                        && guest.failures.count() > failures
                });
                subject.work_without(queue, &mut guest);
                assert_eq!(guest.failures.count(), failures + 1, "{what}: the machine hears once");
            } else {
                subject.work_without(queue, &mut guest);
                assert_eq!(
                    (guest.status(), guest.failures.count()),
                    (0xf, failures),
                    "{what}: nobody looks at it"
                );
            }
            assert_eq!(guest.rings[queue].used_index(), 0, "{what}: it is not used");
            guard.holds(&guest, &[], &what);
        }
        guest.start(subject.wanted(), RING);
        subject.work(&mut guest);
    }
}

/// Every odd chain on every queue: an answer or a broken queue. An answer is no longer than what the device may write, and
/// is written nowhere else.
pub fn odd_chains<S: Subject>(subject: &mut S) {
    let mut guest = guest(subject);
    for queue in 0..usize::from(guest.queues()) {
        for case in odd() {
            guest.start(subject.wanted(), RING);
            let guard = Guard::set(&guest, &case);
            put(&mut guest, queue, &case);
            let what = format!("queue {queue} with {}", case.what);
            if subject.answers_at_once(queue) || subject.provoke(queue, &mut guest) {
                guest.wait_until(&format!("{what} is answered"), |guest| {
                    guest.status() & 0x40 != 0 || guest.rings[queue].used_index() != 0
                });
            }
            let room = case.writable();
            if guest.status() & 0x40 == 0
                && let Some(used) = guest.rings[queue].poll_used()
            {
                let most: u64 = room.iter().map(|range| range.end - range.start).sum();
                assert_eq!(used.head, case.head, "{what}");
                assert!(u64::from(used.len) <= most, "{what}: {} bytes into {most}", used.len);
            }
            guard.holds(&guest, &room, &what);
        }
        guest.start(subject.wanted(), RING);
        subject.work(&mut guest);
    }
}

/// The guest's memory around tables and buffers, as it was before a chain was put in.
struct Guard(Vec<u8>);

impl Guard {
    const RANGE: Range<u64> = TABLE - 0x1000..BUFFER + 0x2000;

    fn set<P: Poller>(guest: &Guest<P>, case: &Case) -> Self {
        let pattern = vec![0x5a; (Self::RANGE.end - Self::RANGE.start) as usize];
        guest.memory.write_slice(&pattern, GuestAddress(Self::RANGE.start)).expect("the guest's memory");
        for (index, descriptor) in (0u64..).zip(&case.table) {
            guest.rings[0].write_descriptor(TABLE + 16 * index, *descriptor);
        }
        Guard(guest.bytes(Self::RANGE.start, pattern.len()))
    }

    /// Nothing but `room` has changed.
    fn holds<P: Poller>(&self, guest: &Guest<P>, room: &[Range<u64>], what: &str) {
        let now = guest.bytes(Self::RANGE.start, self.0.len());
        let changed = self.0.iter().zip(&now).zip(Self::RANGE).filter(|((before, now), _)| before != now);
        for (_, address) in changed {
            assert!(room.iter().any(|range| range.contains(&address)), "{what}: {address:#x} is written");
        }
    }
}

impl Case {
    /// What the device may write.
    fn writable(&self) -> Vec<Range<u64>> {
        let all = self.ring.iter().chain(&self.table);
        let writable = all.filter(|descriptor| descriptor.flags & (WRITE | INDIRECT) == WRITE);
        writable
            .map(|descriptor| descriptor.address..descriptor.address.saturating_add(descriptor.len.into()))
            .collect()
    }
}

fn put<P: Poller>(guest: &mut Guest<P>, queue: usize, case: &Case) {
    let ring = &mut guest.rings[queue];
    for (index, descriptor) in (0..).zip(&case.ring) {
        ring.set_descriptor(index, *descriptor);
    }
    ring.make_available(case.head);
    ring.set_available_index(case.ahead);
    guest.kick(queue);
}
