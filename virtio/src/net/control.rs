//! The control queue (virtio 1.3 §5.1.6.5): a class, a command, its data, and one byte for the answer.

use super::features::{CTRL_GUEST_OFFLOADS, GUEST_OFFLOADS, MQ};
use crate::memory::Memory;
use crate::queue::{Chain, Queue, QueueFault};

const CLASS_MQ: u8 = 4;
const MQ_PAIRS_SET: u8 = 0;
const CLASS_GUEST_OFFLOADS: u8 = 5;
const GUEST_OFFLOADS_SET: u8 = 0;

const OK: u8 = 0;
const ERROR: u8 = 1;

/// What the driver asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Use this many pairs of queues.
    Pairs(u16),
    /// Hand over only what these feature bits say.
    GuestOffloads(u64),
}

/// Answers what is in `queue`. `obey` returns whether it did. True: there may be more.
pub(super) fn serve(
    queue: &mut Queue,
    features: u64,
    most_pairs: u16,
    mut obey: impl FnMut(Command) -> bool,
) -> Result<bool, QueueFault> {
    let mut more = true;
    // At most one queue's worth; then others are served.
    for _ in 0..queue.size() {
        let Some(mut chain) = queue.pop()? else {
            more = queue.enable_kicks()?;
            if more {
                continue;
            }
            break;
        };
        let command = parse(&chain, queue.memory(), features, most_pairs);
        let answer = if command.is_some_and(&mut obey) { OK } else { ERROR };
        queue.counters().errors.add((answer == ERROR).into());
        // Without room for an answer there is none, and the driver has asked for that.
        chain.writer(queue.memory()).write(&[answer]);
        queue.complete(chain)?;
    }
    queue.notify()?;
    Ok(more)
}

/// A command of a class that was negotiated, with data that makes sense (§5.1.6.5.5, §5.1.6.5.6). Filters of addresses
/// and VLANs are not offered: the host's bridge or switch has them.
fn parse(chain: &Chain, memory: &Memory, features: u64, most_pairs: u16) -> Option<Command> {
    let mut reader = chain.reader(memory);
    let class: u8 = reader.read_obj().ok()?;
    let command: u8 = reader.read_obj().ok()?;
    match (class, command) {
        (CLASS_MQ, MQ_PAIRS_SET) if features & MQ != 0 => {
            let pairs = u16::from_le(reader.read_obj().ok()?);
            (1..=most_pairs).contains(&pairs).then_some(Command::Pairs(pairs))
        }
        (CLASS_GUEST_OFFLOADS, GUEST_OFFLOADS_SET) if features & CTRL_GUEST_OFFLOADS != 0 => {
            let offloads = u64::from_le(reader.read_obj().ok()?);
            // Only what was negotiated can be switched on.
            (offloads & !(features & GUEST_OFFLOADS) == 0).then_some(Command::GuestOffloads(offloads))
        }
        _ => None,
    }
}
