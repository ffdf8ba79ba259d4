//! Blocks of a pcapng file (IETF draft-ietf-opsawg-pcapng), in this machine's byte order.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Type of a Section Header Block: the same in both byte orders, and what every file begins with.
pub(super) const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const VERSION: [u16; 2] = [1, 0];
/// Length of a section that is still written.
const UNKNOWN_LENGTH: i64 = -1;
const ETHERNET: u16 = 1;
/// Frames are not cut.
const NO_LIMIT: u32 = 0;

const END: u16 = 0;
const USER_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const RESOLUTION: u16 = 9;
const NANOSECONDS: u8 = 9;
const FLAGS: u16 = 2;
const FRAMES_SEEN: u16 = 4;
const FRAMES_LOST: u16 = 5;

/// Bytes of an Enhanced Packet Block around its frame, without padding: 7 fields before it, the options and the length after it.
const AROUND_FRAME: usize = 7 * 4 + 12 + 4;

/// Direction of a frame, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The guest receives it.
    Inbound,
    /// The guest sends it.
    Outbound,
}

/// The time since 1970.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Bytes that a frame of `len` bytes takes at most.
pub(super) fn packet_len(len: usize) -> usize {
    AROUND_FRAME + len.next_multiple_of(4)
}

/// Section header and interface description: what a file begins with.
pub(super) fn header(interface: &str, into: &mut Vec<u8>) {
    block(into, SECTION_HEADER, |body| {
        body.extend(BYTE_ORDER.to_ne_bytes());
        VERSION.iter().for_each(|part| body.extend(part.to_ne_bytes()));
        body.extend(UNKNOWN_LENGTH.to_ne_bytes());
        option(body, USER_APPLICATION, concat!("minivmm ", env!("CARGO_PKG_VERSION")).as_bytes());
        option(body, END, &[]);
    });
    block(into, INTERFACE_DESCRIPTION, |body| {
        body.extend(ETHERNET.to_ne_bytes());
        body.extend([0; 2]);
        body.extend(NO_LIMIT.to_ne_bytes());
        option(body, INTERFACE_NAME, interface.as_bytes());
        option(body, RESOLUTION, &[NANOSECONDS]);
        option(body, END, &[]);
    });
}

/// A frame of `len` bytes at `time` since 1970, which `fill` appends.
pub(super) fn packet(
    into: &mut Vec<u8>,
    direction: Direction,
    time: Duration,
    len: usize,
    fill: impl FnOnce(&mut Vec<u8>),
) {
    block(into, ENHANCED_PACKET, |body| {
        body.extend(0u32.to_ne_bytes());
        timestamp(body, time);
        let len_field = u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes();
        body.extend(len_field);
        body.extend(len_field);
        let start = body.len();
        fill(body);
        // What is not there is zeros: the lengths hold.
        body.resize(start + len, 0);
        pad(body, len);
        let flags = match direction {
            Direction::Inbound => 1u32,
            Direction::Outbound => 2,
        };
        option(body, FLAGS, &flags.to_ne_bytes());
        option(body, END, &[]);
    });
}

/// What became of all frames: the end of a file.
pub(super) fn statistics(into: &mut Vec<u8>, time: Duration, seen: u64, lost: u64) {
    block(into, INTERFACE_STATISTICS, |body| {
        body.extend(0u32.to_ne_bytes());
        timestamp(body, time);
        option(body, FRAMES_SEEN, &seen.to_ne_bytes());
        option(body, FRAMES_LOST, &lost.to_ne_bytes());
        option(body, END, &[]);
    });
}

/// Appends a block: its type, its length, its body, its length again.
fn block(into: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = into.len();
    into.extend(kind.to_ne_bytes());
    into.extend([0; 4]);
    body(into);
    let len = u32::try_from(into.len() - start + 4).unwrap_or(u32::MAX).to_ne_bytes();
    if let Some(field) = into.get_mut(start + 4..start + 8) {
        field.copy_from_slice(&len);
    }
    into.extend(len);
}

fn timestamp(body: &mut Vec<u8>, time: Duration) {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let [high, low] = [nanoseconds >> 32, nanoseconds & u64::from(u32::MAX)];
    for half in [high, low] {
        body.extend(u32::try_from(half).unwrap_or(u32::MAX).to_ne_bytes());
    }
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    // Names are not longer: what is cut here is no use to anybody.
    let value = value.get(..value.len().min(usize::from(u16::MAX))).unwrap_or_default();
    body.extend(code.to_ne_bytes());
    body.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_ne_bytes());
    body.extend(value);
    pad(body, value.len());
}

fn pad(body: &mut Vec<u8>, len: usize) {
    body.resize(body.len() + len.next_multiple_of(4) - len, 0);
}
