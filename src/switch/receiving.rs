//! The turns of a switch's ports: what has come in from one is switched.

use std::time::Instant;

use vmm_sys_util::epoll::EventSet;
use vswitch::HEADER_LEN;

use super::config;
use super::link::Link;
use super::ports::{Batch, Port};
use super::run_loop::{Closed, SwitchLoop};
use crate::host::frame_link::{Cutter, Item, Read, taken};

/// Frames of a TAP in one turn.
const TAP_FRAMES: usize = 64;

impl SwitchLoop {
    /// A port's turn.
    pub(super) fn serve(&mut self, slot: usize, events: EventSet) {
        if events.contains(EventSet::OUT) {
            self.drain(slot);
        }
        if (events & !EventSet::OUT).is_empty() {
            return;
        }
        let now = Instant::now();
        let result = match self.ports.get(slot).map(|port| &port.link) {
            Some(Link::Machine(_) | Link::Socket(_)) => self.receive(slot, now),
            Some(Link::Tap(_)) => self.receive_tap(slot, now),
            Some(Link::User(_)) => self.receive_user(slot, now),
            None => Ok(()),
        };
        self.flush();
        if let Err(why) = result {
            self.close(slot, &why);
        }
    }

    /// Switches what one read of a stream gives.
    fn receive(&mut self, slot: usize, now: Instant) -> Result<(), Closed> {
        let Self { ports, switch, buffer, .. } = self;
        let Some(port) = ports.get_mut(slot) else { return Ok(()) };
        let Some((id, stream)) = port.id.zip(port.link.stream()) else { return Ok(()) };
        match stream.fill(buffer)? {
            Read::Bytes => {}
            Read::Nothing => return Ok(()),
            Read::End => return Err(Closed::End),
        }
        let (mut cutter, received, mut frames) = (Cutter::new(stream.framing()), buffer.filled(), 0);
        loop {
            match cutter.next(received)? {
                Some(Item::Frame { header, at }) => {
                    frames += 1;
                    let frame = received.get(at).unwrap_or_default();
                    Batch { ports, received }.input(switch, (slot, id), &header, frame, now);
                }
                Some(Item::Control(at)) => {
                    if let (Some(port), Some(takes)) = (ports.get_mut(slot), received.get(at).and_then(taken))
                    {
                        port.accepts = config::accepts(takes);
                    }
                }
                None => break,
            }
        }
        if let Some(stream) = ports.get_mut(slot).and_then(|port| port.link.stream()) {
            stream.keep(buffer, cutter.taken(), frames);
        }
        Ok(())
    }

    /// Switches some frames of a TAP.
    fn receive_tap(&mut self, slot: usize, now: Instant) -> Result<(), Closed> {
        let Self { ports, switch, buffer, .. } = self;
        let Some(Port { id: Some(id), link: Link::Tap(tap), .. }) = ports.get(slot) else { return Ok(()) };
        let (id, mut places) = (*id, Vec::with_capacity(TAP_FRAMES));
        buffer.clear();
        while let Some(room) = buffer.room().filter(|_| places.len() < TAP_FRAMES) {
            let Some(count) = tap.read(room)? else { break };
            let start = buffer.filled().len();
            buffer.take(count);
            places.push(start..start + count);
        }
        let received = buffer.filled();
        for place in places {
            let frame = received.get(place).and_then(|bytes| bytes.split_first_chunk::<HEADER_LEN>());
            if let Some((header, frame)) = frame {
                Batch { ports, received }.input(switch, (slot, id), header, frame, now);
            }
        }
        Ok(())
    }

    /// Switches some frames of a network behind the host's sockets.
    fn receive_user(&mut self, slot: usize, now: Instant) -> Result<(), Closed> {
        let Self { ports, switch, buffer, .. } = self;
        let Some(Port { id: Some(id), link: Link::User(user), .. }) = ports.get_mut(slot) else {
            return Ok(());
        };
        let (id, mut places) = (*id, Vec::with_capacity(TAP_FRAMES));
        buffer.clear();
        loop {
            let Some(room) = buffer.room().filter(|_| places.len() < TAP_FRAMES) else {
                user.go_on()?;
                break;
            };
            let Some((header, at)) = user.next_frame(room)? else { break };
            let start = buffer.filled().len();
            buffer.take(at.end);
            places.push((header, start + at.start..start + at.end));
        }
        let received = buffer.filled();
        for (header, place) in places {
            let frame = received.get(place).unwrap_or_default();
            Batch { ports, received }.input(switch, (slot, id), &header, frame, now);
        }
        Ok(())
    }
}
