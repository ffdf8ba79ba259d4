//! From chains to operations and back: all that happens to a request.

use std::io;
use std::time::Instant;

use super::config::Disk;
use super::engine::{Completion, Engine, Extent, Operation, Tag};
use super::request::{HEADER, ID, Limits, Request, Status};
use super::slots::Moves;
use super::throttle::Admission;
use super::{AnyEngine, Block, MOST_QUEUES};
use crate::device::Context;
use crate::memory::{Memory, cut};
use crate::queue::{Chain, Queue, QueueFault};

/// Requests that move so much together are enough to keep any disk busy. A driver that gives the same page a thousand times
/// could ask for terabytes, and a reset waits for what is in flight.
const ENOUGH_IN_FLIGHT: u64 = 256 << 20;
/// The same for bytes to be zeroed. Most hosts do that without writing them; where one has to, a pause or a reset waits for
/// so much.
const ENOUGH_TO_ZERO: u64 = 1 << 30;

impl Block {
    /// Begins what is available in queue `index`, until there is nothing and the driver will kick for the next.
    fn serve(&mut self, index: u16, cx: &mut Context<'_, AnyEngine>) -> Result<(), QueueFault> {
        let limits = Limits {
            sectors: self.sectors(),
            read_only: self.disk.read_only,
            features: cx.features,
            keeps_space: self.disk.discard.is_none(),
        };
        let stable = self.writes_through(cx.features);
        let Some(Some(queue)) = cx.queues.get_mut(usize::from(index)) else { return Ok(()) };
        queue.disable_kicks()?;
        // A driver that adds as fast as it is served must not keep its thread from the other queues.
        let mut share = queue.size();
        let now = Instant::now();
        let mut has_begun = false;
        loop {
            if let Admission::At { time, is_new } = self.throttle.admit(&mut self.place, now) {
                if is_new {
                    queue.counters().throttled.add_one();
                }
                // What there is next time is for the next queue first.
                if has_begun {
                    self.first = (index + 1) % MOST_QUEUES.get();
                }
                self.waiting.add(index);
                cx.wake_by(time);
                return Ok(());
            }
            if self.slots.bytes() >= ENOUGH_IN_FLIGHT || self.slots.zeroes() >= ENOUGH_TO_ZERO {
                // Continue when one of them has ended.
                self.waiting.add(index);
                return Ok(());
            }
            if let Some(chain) = self.stalled.next(queue)? {
                self.begin(chain, queue, &limits, stable, now, cx.poller.as_mut())?;
                has_begun = true;
                share -= 1;
                if share == 0 {
                    self.waiting.add(index);
                    cx.wake_by(now);
                    return Ok(());
                }
                continue;
            }
            // Keep kicks off while the disk is busy; a completion or the timer brings us back.
            if let Some((completions, limit)) = self.pace.hold(self.slots.moving())
                && cx.poller.gather(completions)
            {
                self.waiting.add(index);
                cx.wake_by(now + limit);
                return Ok(());
            }
            if !queue.enable_kicks()? {
                return Ok(());
            }
        }
    }

    /// Begins a request, or ends it if there is nothing to wait for.
    fn begin(
        &mut self,
        mut chain: Chain,
        queue: &mut Queue,
        limits: &Limits,
        stable: bool,
        now: Instant,
        engine: &mut dyn Engine,
    ) -> Result<(), QueueFault> {
        // A request without room for a status is none (§5.2.6). As many slots as descriptors: one is free.
        let room = chain.writable_len() > 0;
        let alone = self.slots.in_flight() == 0;
        let Some((tag, slot)) = room.then(|| self.slots.take()).flatten() else {
            log::debug!("{}: a request has no room for its status", self.name);
            self.used.add(queue.index());
            queue.counters().errors.add_one();
            return queue.complete(chain);
        };
        let parsed = Request::parse(&chain, queue.memory(), limits, &mut slot.ranges);
        self.segments.clear();
        let mut zeroes = 0;
        let first = match parsed {
            Ok(Request::Transfer(operation, extent)) if extent.len > 0 => {
                match operation {
                    Operation::Read => cut(chain.writable(), 0, extent.len, &mut self.segments),
                    _ => cut(chain.readable(), HEADER, extent.len, &mut self.segments),
                }
                Ok(Some((operation, extent)))
            }
            Ok(Request::Transfer(..)) => Ok(None),
            Ok(Request::Flush) => Ok(Some((Operation::Flush, Extent::default()))),
            Ok(Request::Ranges) => {
                zeroes = zeroed(&slot.ranges);
                Ok(slot.next())
            }
            Ok(Request::GetId) => {
                let wrote = self.disk.write_id(&mut chain, queue.memory());
                Err((Status::Ok, wrote))
            }
            Err(status) => Err((status, 0)),
        };
        slot.chain = Some(chain);
        slot.queue = queue.index();
        slot.stable = stable;
        slot.begun = None;
        match first {
            Ok(Some((operation, extent))) => {
                slot.operation = Some((operation, extent));
                let moves = match operation {
                    Operation::Read => Moves::In,
                    Operation::Write => Moves::Out,
                    _ => Moves::Nothing,
                };
                if moves != Moves::Nothing {
                    slot.begun = Some((now, alone));
                }
                slot.stable &= !matches!(operation, Operation::Read | Operation::Flush);
                let bytes = if moves == Moves::Nothing { 0 } else { extent.len };
                self.throttle.charge(&mut self.place, bytes, now);
                self.slots.moves(tag, moves, extent.len);
                self.slots.zeroes_out(tag, zeroes);
                if !operation.is_on_space() || self.lane.enter(tag, operation) {
                    engine.submit(tag, operation, extent, &self.segments);
                }
                Ok(())
            }
            Ok(None) => self.end(tag, Status::Ok, 0, queue),
            Err((status, wrote)) => self.end(tag, status, wrote, queue),
        }
    }

    /// Takes what the engine has finished, and tells the driver once.
    pub(super) fn finish(&mut self, cx: &mut Context<'_, AnyEngine>) -> Result<(), QueueFault> {
        let mut now = None;
        while let Some(Completion { tag, result }) = cx.poller.completed() {
            let Some(slot) = self.slots.get(tag) else { continue };
            if let Some((begun, alone)) = slot.begun.take() {
                let now = *now.get_or_insert_with(Instant::now);
                self.pace.ended(now.saturating_duration_since(begun), alone);
            }
            let (operation, extent) = slot.operation.unwrap_or((Operation::Flush, Extent::default()));
            let index = slot.queue;
            let next = if result.is_ok() { slot.next() } else { None };
            if operation.is_on_space() && !next.is_some_and(|(next, _)| next.is_on_space()) {
                self.lane.leave();
                self.enter_lane(cx.poller.as_mut());
            }
            if let Some((next, at)) = next {
                if let Some(slot) = self.slots.get(tag) {
                    slot.operation = Some((next, at));
                }
                if !next.is_on_space() || self.lane.go_on(tag, next) {
                    cx.poller.submit(tag, next, at, &[]);
                } else {
                    self.enter_lane(cx.poller.as_mut());
                }
                continue;
            }
            let (status, wrote) = match result {
                Ok(()) => (Status::Ok, if operation == Operation::Read { extent.len } else { 0 }),
                Err(error) if error.kind() == io::ErrorKind::Unsupported => (Status::Unsupported, 0),
                Err(error) if self.waits_for_room(operation, &error) => {
                    self.stall(tag, extent.len, &error, cx);
                    continue;
                }
                Err(error) => {
                    self.errors.failed(&self.name, operation, extent, &error);
                    (Status::IoError, 0)
                }
            };
            match cx.queues.get_mut(usize::from(index)) {
                Some(Some(queue)) => self.end(tag, status, wrote, queue)?,
                // The queue broke meanwhile: the driver waits for its reset.
                _ => drop(self.slots.release(tag)),
            }
        }
        let mut result = Ok(());
        for index in self.used.take() {
            let Some(Some(queue)) = cx.queues.get_mut(usize::from(index)) else { continue };
            // Along with what is submitted next: an interrupt costs no call of its own.
            result = queue.notify_by(|event| cx.poller.signal(event)).and(result);
        }
        result
    }

    /// Gives the engine what waited for room in the lane.
    fn enter_lane(&mut self, engine: &mut dyn Engine) {
        while let Some(tag) = self.lane.next() {
            match self.slots.get(tag).and_then(|slot| slot.operation) {
                Some((operation, extent)) => engine.submit(tag, operation, extent, &[]),
                None => self.lane.leave(),
            }
        }
    }

    /// Ends the discards that have not begun: a device may ignore one (§5.2.6.2), and a
    /// reset or a pause should not wait for them.
    pub(super) fn skip_discards(&mut self, cx: &mut Context<'_, AnyEngine>) -> Result<(), QueueFault> {
        self.slots.cut_discards();
        loop {
            let Some(tag) = self.lane.take_discard() else { return Ok(()) };
            let index = self.slots.get(tag).map_or(0, |slot| slot.queue);
            match cx.queues.get_mut(usize::from(index)) {
                Some(Some(queue)) => self.end(tag, Status::Ok, 0, queue)?,
                _ => drop(self.slots.release(tag)),
            }
        }
    }

    /// Ends the request of `tag`, of which `wrote` bytes of data went to the driver.
    fn end(&mut self, tag: Tag, status: Status, wrote: u64, queue: &mut Queue) -> Result<(), QueueFault> {
        let Some((mut chain, moves, bytes)) = self.slots.release(tag) else { return Ok(()) };
        let counters = queue.counters();
        match (status, moves) {
            (Status::Ok, Moves::In) => counters.bytes_in.add(bytes),
            (Status::Ok, Moves::Out) => counters.bytes_out.add(bytes),
            (Status::Ok, Moves::Nothing) => {}
            (Status::IoError | Status::Unsupported, _) => counters.errors.add_one(),
        }
        let data = chain.writable_len().saturating_sub(1);
        let mut writer = chain.writer(queue.memory());
        writer.advance(data);
        writer.write(&[status as u8]);
        if wrote < data {
            // §2.7.8: the used length counts from the front, and a hole is not counted.
            chain.writer(queue.memory()).advance(wrote);
        }
        self.used.add(queue.index());
        queue.complete(chain)
    }

    /// Ends what the disk has done, then begins what waits: what is in flight then is what there is to wait for. After a
    /// fault in one queue the others continue: what is left is done in the next call.
    pub(super) fn turn(&mut self, cx: &mut Context<'_, AnyEngine>) -> Result<(), QueueFault> {
        cx.wake_at(None);
        let result = self.finish(cx).and_then(|()| self.serve_waiting(cx)).and_then(|()| self.finish(cx));
        if result.is_err() {
            cx.wake_at(Some(Instant::now()));
        }
        result
    }

    fn serve_waiting(&mut self, cx: &mut Context<'_, AnyEngine>) -> Result<(), QueueFault> {
        let mut result = Ok(());
        if self.stalled.is_full() {
            return result;
        }
        for queue in self.waiting.take_from(self.first) {
            match result {
                Ok(()) => result = self.serve(queue, cx),
                Err(_) => self.waiting.add(queue),
            }
        }
        result
    }
}

/// Bytes that `ranges` zero.
fn zeroed(ranges: &[(Operation, Extent)]) -> u64 {
    let zeroes = ranges.iter().filter(|(operation, _)| *operation != Operation::Discard);
    zeroes.map(|(_, extent)| extent.len).sum()
}

impl Disk {
    /// Puts the id string into `chain`, before its status byte, and returns how many bytes that were.
    fn write_id(&self, chain: &mut Chain, memory: &Memory) -> u64 {
        let mut id = [0; ID];
        for (to, from) in id.iter_mut().zip(self.serial.as_bytes()) {
            *to = *from;
        }
        let room = usize::try_from(chain.writable_len().saturating_sub(1)).unwrap_or(ID).min(ID);
        let wrote = chain.writer(memory).write(id.get(..room).unwrap_or_default());
        wrote as u64
    }
}
