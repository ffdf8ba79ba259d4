//! From the wire to the guest.
//!
//! A frame is read straight into the guest's buffers, as many as a large frame needs where they can be merged. How
//! long it is shows only then. What the buffers at hand had no room for goes to the *spill*, and waits there until the
//! driver has given more: so a ring of few or small buffers loses nothing and cannot lock up, and large frames are
//! still read without a copy when there are buffers for them.

use std::collections::VecDeque;
use std::io;

use devices::component::hex;
use devices::ration::Ration;
use serde::{Deserialize, Serialize};
use vm_memory::Bytes;

use super::header::{self, LONGEST_FRAME};
use super::{HEADER_LEN, NetBackend, Offloads, Progress};
use crate::memory::{Memory, Segment, cut, total};
use crate::queue::{Chain, Queue, QueueFault};

/// Budget in frames, after which other queues are served.
const BUDGET: u16 = 128;
/// Most pieces of guest memory given to the host at once.
const MOST_PIECES: usize = 512;
/// Room offered while frames are small: a frame of 1500 bytes in any buffers of Linux. More costs time each frame.
const SMALL: u64 = 2048;
/// Frames for which the room for large ones is offered after one was seen.
const LARGE_FOR: u8 = 64;
const HEADER: u64 = HEADER_LEN as u64;

/// How frames reach the driver.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mode {
    /// What the driver takes.
    pub offloads: Offloads,
    /// A frame may lie in several buffers.
    pub mergeable: bool,
}

/// A frame that has begun in the buffers at hand and waits for more of them.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    header: [u8; HEADER_LEN],
    /// Bytes that are in the buffers, without the header.
    placed: u64,
    /// Bytes in the spill.
    spilled: usize,
}

/// A frame that waits in a device that is saved.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedFrame {
    header: [u8; HEADER_LEN],
    #[serde(with = "hex")]
    bytes: Vec<u8>,
}

impl SavedFrame {
    pub(super) fn is_possible(&self) -> bool {
        self.bytes.len() as u64 <= LONGEST_FRAME
    }
}

/// One receive queue's part of the device.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    /// Buffers at hand, in the driver's order.
    window: VecDeque<Chain>,
    /// Bytes that they hold.
    room: u64,
    segments: Vec<Segment>,
    spill: Vec<u8>,
    waiting: Option<Waiting>,
    large_for: u8,
    /// The wire may have a frame. Events come at edges only.
    pub(super) readable: bool,
    ration: Ration,
}

impl Receiver {
    /// Takes what the wire has, as long as `queue` has buffers, up to the budget.
    pub(super) fn run(
        &mut self,
        pair: u16,
        queue: &mut Queue,
        backend: &mut dyn NetBackend,
        mode: Mode,
    ) -> Result<Progress, QueueFault> {
        let progress = self.receive_some(pair, queue, backend, mode);
        // One decision about an interrupt for all frames.
        queue.notify()?;
        progress
    }

    fn receive_some(
        &mut self,
        pair: u16,
        queue: &mut Queue,
        backend: &mut dyn NetBackend,
        mode: Mode,
    ) -> Result<Progress, QueueFault> {
        for _ in 0..BUDGET {
            if !self.readable && self.waiting.is_none() {
                return Ok(Progress::Idle);
            }
            let enough = self.gather(queue, mode)?;
            if !enough {
                // We are out of buffers, so ask the driver to kick when it adds some.
                if queue.enable_kicks()? {
                    queue.disable_kicks()?;
                    continue;
                }
                return Ok(Progress::Idle);
            }
            if let Some(waiting) = self.waiting.take() {
                self.deliver(waiting, queue, mode)?;
                continue;
            }
            match self.read(pair, queue, backend, mode) {
                Ok(Some(frame)) => self.deliver_or_wait(frame, queue, mode)?,
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.readable = false;
                    if error.kind() != io::ErrorKind::WouldBlock
                        && let Some(left_out) = self.ration.take()
                    {
                        log::warn!("the network interface gives no more frames: {error}{left_out}");
                    }
                }
            }
        }
        Ok(Progress::More)
    }

    /// Takes buffers until there are enough for the next frame or for the one that waits; false if there are none to
    /// go on with.
    fn gather(&mut self, queue: &mut Queue, mode: Mode) -> Result<bool, QueueFault> {
        let needed = self.waiting.map(|waiting| HEADER + waiting.placed + waiting.spilled as u64);
        let wanted = needed.unwrap_or_else(|| self.wanted(mode));
        let most = if mode.mergeable { usize::from(queue.size()) } else { 1 };
        // Bounded by the queue's size: a driver that adds bad buffers without end does not keep us here.
        for _ in 0..queue.size() {
            if self.room >= wanted || self.window.len() >= most {
                break;
            }
            let Some(chain) = queue.pop()? else { break };
            let room = chain.writable_len();
            // §5.1.6.3.1: a buffer has room for the header at least, and is the device's to write.
            if room < HEADER || !chain.readable().is_empty() {
                queue.counters().errors.add_one();
                queue.complete(chain)?;
                continue;
            }
            self.room += room;
            self.window.push_back(chain);
        }
        match needed {
            // All buffers that the driver can have are here: what does not fit now never will.
            Some(needed) => Ok(self.room >= needed || self.window.len() >= most),
            None => Ok(!self.window.is_empty()),
        }
    }

    fn wanted(&self, mode: Mode) -> u64 {
        let large = mode.offloads.intersects(!Offloads::CSUM) && self.large_for > 0;
        HEADER + if large { LONGEST_FRAME } else { SMALL }
    }

    /// Reads a frame into the window. `None`: it was longer than anything can be, and is lost.
    fn read(
        &mut self,
        pair: u16,
        queue: &Queue,
        backend: &mut dyn NetBackend,
        mode: Mode,
    ) -> io::Result<Option<Waiting>> {
        self.segments.clear();
        let mut skip = HEADER;
        for chain in &self.window {
            cut(chain.writable(), skip, u64::MAX, &mut self.segments);
            skip = 0;
        }
        self.segments.truncate(MOST_PIECES);
        let placed_most = total(&self.segments);
        // One byte more than the longest frame, which shows that one was cut. Memory is only taken when it is used.
        self.spill.resize(usize::try_from(LONGEST_FRAME).unwrap_or(usize::MAX) + 1, 0);
        let mut header = [0; HEADER_LEN];
        let memory = queue.memory();
        let len = backend.receive(pair, &mut header, memory, &self.segments, &mut self.spill)? as u64;
        if memory.is_logged() {
            // Now, and not when it is delivered: it may wait for buffers until after the next look at the log.
            self.segments.iter().for_each(|segment| memory.written(segment.address, segment.len.into()));
        }
        self.large_for = if len > SMALL { LARGE_FOR } else { self.large_for.saturating_sub(1) };
        let placed = len.min(placed_most);
        // Without merging, the features that the driver accepted tell how large its buffers must be (§5.1.6.3.1).
        if len > LONGEST_FRAME || (!mode.mergeable && placed < len) {
            queue.counters().errors.add_one();
            return Ok(None);
        }
        let spilled = usize::try_from(len - placed).unwrap_or(usize::MAX);
        Ok(Some(Waiting { header, placed, spilled }))
    }

    fn deliver_or_wait(&mut self, frame: Waiting, queue: &mut Queue, mode: Mode) -> Result<(), QueueFault> {
        if frame.spilled > 0 {
            self.waiting = Some(frame);
            return Ok(());
        }
        self.deliver(frame, queue, mode)
    }

    /// Gives the frame to the driver, all its buffers at once (§5.1.6.4). One that no number of buffers can hold is lost.
    fn deliver(&mut self, frame: Waiting, queue: &mut Queue, mode: Mode) -> Result<(), QueueFault> {
        let total = HEADER + frame.placed + frame.spilled as u64;
        if self.room < total {
            queue.counters().errors.add_one();
            return Ok(());
        }
        let mut buffers = 0u16;
        let mut covered = 0;
        for chain in &self.window {
            if covered >= total {
                break;
            }
            covered += chain.writable_len();
            buffers = buffers.saturating_add(1);
        }
        let header = header::received(frame.header, mode.offloads, buffers);
        let mut placed = frame.placed;
        let mut spilled = self.spill.get(..frame.spilled).unwrap_or_default();
        for (index, chain) in self.window.iter_mut().take(buffers.into()).enumerate() {
            let mut writer = chain.writer(queue.memory());
            if index == 0 {
                writer.write(&header);
            }
            placed -= writer.advance(placed);
            if placed == 0 && !spilled.is_empty() {
                let copied = writer.write(spilled);
                spilled = spilled.get(copied..).unwrap_or_default();
            }
        }
        self.room = self.room.saturating_sub(covered);
        queue.counters().bytes_in.add(total - HEADER);
        queue.complete_together(self.window.drain(..usize::from(buffers)))
    }

    /// Gives the buffers at hand back to `queue`, if it still works. A frame that waits for more of them goes on waiting,
    /// all of it in the spill: nothing is lost where the device only pauses.
    pub(super) fn stop(&mut self, queue: Option<&mut Queue>) {
        self.readable = false;
        self.room = 0;
        match queue {
            Some(queue) => {
                self.waiting = self.waiting.take().and_then(|frame| self.take_out(frame, queue.memory()));
                while let Some(chain) = self.window.pop_back() {
                    queue.put_back(chain);
                }
            }
            None => {
                self.waiting = None;
                self.window.clear();
            }
        }
    }

    /// The driver is gone, and a frame that waited for it is lost, as on any wire.
    pub(super) fn reset(&mut self) {
        self.waiting = None;
    }

    /// The frame that waits, in a device that is stopped.
    pub(super) fn saved_frame(&self) -> Option<SavedFrame> {
        let waiting = self.waiting?;
        Some(SavedFrame { header: waiting.header, bytes: self.spill.get(..waiting.spilled)?.to_vec() })
    }

    /// Has `frame`, which is possible, wait for buffers.
    pub(super) fn load_frame(&mut self, frame: Option<SavedFrame>) {
        self.waiting = frame.map(|SavedFrame { header, bytes }| {
            let spilled = bytes.len();
            self.spill = bytes;
            Waiting { header, placed: 0, spilled }
        });
    }

    /// Brings the part of `frame` that is in the window to the front of the spill.
    fn take_out(&mut self, frame: Waiting, memory: &Memory) -> Option<Waiting> {
        let placed = usize::try_from(frame.placed).ok()?;
        let whole = placed.checked_add(frame.spilled).filter(|whole| *whole <= self.spill.len())?;
        self.spill.copy_within(..frame.spilled, placed);
        self.segments.clear();
        let (mut skip, mut left) = (HEADER, frame.placed);
        for chain in &self.window {
            cut(chain.writable(), skip, left, &mut self.segments);
            left = frame.placed - total(&self.segments).min(frame.placed);
            skip = 0;
        }
        let mut rest = self.spill.get_mut(..placed)?;
        for segment in &self.segments {
            let (part, behind) = rest.split_at_mut_checked(usize::try_from(segment.len).ok()?)?;
            memory.read_slice(part, segment.address).ok()?;
            rest = behind;
        }
        rest.is_empty().then_some(Waiting { placed: 0, spilled: whole, ..frame })
    }
}
