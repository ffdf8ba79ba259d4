//! The loop of a switch: one thread with one epoll, which owns the switch and all its ports.
//!
//! Every port has its turn with one read. What came in it is switched, and goes out in one write for each port that it is for.
//! A port that takes no more loses frames; no other port waits for it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;
use vswitch::{Limits, Switch};

use super::accepting::Unwatched;
use super::command::{End, Inbox};
use super::config;
use super::life::{Keeper, Life};
use super::link::Link;
use super::ports::{Batch, Port, Ports};
use crate::host::frame_link::{BadFrame, ReceiveBuffer};
use crate::host::switch_port::{OFFLOADS, PortRequest};
use crate::spec::{MacAddress, SwitchName};

/// Events of one wait.
const EVENTS: usize = 64;
/// Messages of other threads in one turn.
const COMMANDS: usize = 64;
/// 0 would switch the timer off.
const NEXT_TICK: Duration = Duration::from_nanos(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct SwitchLoop {
    pub(super) name: SwitchName,
    pub(super) started: Instant,
    pub(super) switch: Switch,
    pub(super) ports: Ports,
    pub(super) life: Life,
    /// Ports that will come, by ticket.
    pub(super) reserved: BTreeMap<u64, (String, PortRequest)>,
    pub(super) next_ticket: u64,
    /// Ports that there may be.
    pub(super) most_ports: usize,
    inbox: Inbox,
    pub(super) epoll: Epoll,
    timer: TimerFd,
    /// When the timer goes off.
    armed: Option<Instant>,
    pub(super) buffer: ReceiveBuffer,
    pub(super) unwatched: Unwatched,
}

/// Why a port is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Closed {
    #[error("it was disconnected")]
    End,
    #[error(transparent)]
    Frame(#[from] BadFrame),
    #[error(transparent)]
    Host(#[from] io::Error),
}

/// What an event of the epoll belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Bell,
    Timer,
    /// The frames of a port.
    Port(usize),
    /// The listener of a port.
    Listener(usize),
}

impl Token {
    pub(super) fn number(self) -> u64 {
        match self {
            Token::Bell => 0,
            Token::Timer => 1,
            Token::Port(slot) => 2 + 2 * slot as u64,
            Token::Listener(slot) => 3 + 2 * slot as u64,
        }
    }

    fn of(number: u64) -> Self {
        let slot = usize::try_from(number / 2).unwrap_or(usize::MAX).wrapping_sub(1);
        match number {
            0 => Token::Bell,
            1 => Token::Timer,
            _ if number.is_multiple_of(2) => Token::Port(slot),
            _ => Token::Listener(slot),
        }
    }
}

impl SwitchLoop {
    /// A switch without ports.
    pub(super) fn new(name: SwitchName, keeper: Keeper, inbox: Inbox) -> io::Result<Self> {
        let (epoll, timer, started) = (Epoll::new()?, TimerFd::new()?, Instant::now());
        let add = |fd: RawFd, token: Token| {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token.number()))
        };
        add(inbox.bell().as_raw_fd(), Token::Bell)?;
        add(timer.as_raw_fd(), Token::Timer)?;
        let limits = Limits::default();
        Ok(SwitchLoop {
            name,
            started,
            switch: Switch::new(limits),
            ports: Ports::default(),
            life: Life::new(keeper, started),
            reserved: BTreeMap::new(),
            next_ticket: 0,
            most_ports: limits.ports,
            inbox,
            epoll,
            timer,
            armed: None,
            buffer: ReceiveBuffer::new(),
            unwatched: Unwatched::default(),
        })
    }

    /// How many descriptors are ready now.
    #[cfg(test)]
    pub(super) fn ready(&self) -> usize {
        self.epoll.wait(0, &mut [EpollEvent::default(); EVENTS]).unwrap()
    }

    /// Switches frames until the switch ends.
    pub(crate) fn run(&mut self) -> End {
        let mut events = [EpollEvent::default(); EVENTS];
        loop {
            if let Some(end) = self.tick(Instant::now()) {
                return end;
            }
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::error!("the switch cannot wait for frames any more: {error}");
                    return End::Failed;
                }
            };
            let mut is_called = false;
            for event in events.iter().take(count) {
                match Token::of(event.data()) {
                    Token::Bell => is_called = true,
                    Token::Timer => {}
                    Token::Port(slot) => self.serve(slot, event.event_set()),
                    Token::Listener(slot) => self.accept(slot),
                }
            }
            // Last: no slot is used anew while events of its old port are left.
            if let Some(end) = is_called.then(|| self.commands()).flatten() {
                return end;
            }
        }
    }

    fn commands(&mut self) -> Option<End> {
        self.inbox.hush();
        for _ in 0..COMMANDS {
            if let Some(end) = self.inbox.next().map(|command| self.command(command))? {
                return Some(end);
            }
        }
        // More may have come.
        let _ = self.inbox.bell().write(1);
        None
    }

    /// Does what is due, and sets the timer for the next time.
    pub(super) fn tick(&mut self, now: Instant) -> Option<End> {
        if self.switch.next_timeout().is_some_and(|at| at <= now) {
            self.buffer.clear();
            let mut batch = Batch { ports: &mut self.ports, received: self.buffer.filled() };
            self.switch.timeout(now, &mut batch);
            self.flush();
        }
        if self.unwatched.until.is_some_and(|at| at <= now) {
            self.listen_again();
        }
        // A port that is about to come keeps the switch.
        let is_awaited = !self.reserved.is_empty();
        if let Some(end) = self.life.end(now).filter(|_| !is_awaited) {
            return Some(end);
        }
        let last = self.life.deadline().filter(|_| !is_awaited);
        let next = [self.switch.next_timeout(), last, self.unwatched.until].into_iter().flatten().min();
        if next != self.armed || next.is_some_and(|at| at <= now) {
            let set = match next {
                Some(at) => self.timer.reset(at.saturating_duration_since(now).max(NEXT_TICK), None),
                None => self.timer.clear(),
            };
            if let Err(error) = set {
                log::error!("the timer of the switch cannot be set: {error}");
                return Some(End::Failed);
            }
            self.armed = next;
        }
        None
    }

    /// Starts to serve a port. Its link may come later.
    pub(super) fn begin(&mut self, port: Port) -> io::Result<usize> {
        let slot = self.ports.add(port);
        let begun = self.begin_at(slot);
        if begun.is_err() {
            self.ports.remove(slot);
        }
        begun.map(|()| slot)
    }

    fn begin_at(&mut self, slot: usize) -> io::Result<()> {
        self.listen(slot)?;
        self.link_up(slot)
    }

    /// Takes a port that has a link into the switch.
    pub(super) fn link_up(&mut self, slot: usize) -> io::Result<()> {
        let Some(port) = self.ports.get_mut(slot) else { return Ok(()) };
        let Some(fd) = port.link.fd()? else { return Ok(()) };
        let config =
            config::port_config(port.link.kind(), &port.options, port.mac).map_err(io::Error::other)?;
        let machine = port.mac.zip(port.machine.clone());
        // First: a machine that hears what the switch takes has its port.
        let Some(id) = self.switch.add(config) else {
            let sentence =
                format!("the switch has {} ports already, as many as there may be", self.most_ports);
            return Err(io::Error::other(sentence));
        };
        if let Err(error) = self.greet(slot, fd) {
            self.switch.remove(id);
            return Err(error);
        }
        self.ports.set_id(slot, id);
        if let Some((mac, name)) = machine {
            self.name(mac, Some(&name));
        }
        Ok(())
    }

    /// Tells the other end of a stream what the switch takes, and watches the link.
    fn greet(&mut self, slot: usize, fd: RawFd) -> io::Result<()> {
        let Some(port) = self.ports.get_mut(slot) else { return Ok(()) };
        let waits = match port.link.stream() {
            Some(stream) => {
                let _ = stream.takes(OFFLOADS);
                stream.flush(&[])?
            }
            None => false,
        };
        port.waits_for_room = waits;
        let event = EpollEvent::new(interest(waits), Token::Port(slot).number());
        self.epoll.ctl(ControlOperation::Add, fd, event)
    }

    /// Tells the networks behind the host's sockets that a machine has come, or has left.
    fn name(&mut self, machine: MacAddress, name: Option<&str>) {
        for user in self.ports.users() {
            user.name(machine.bytes(), name.map(str::to_owned));
        }
    }

    /// Sends the frames of the batch.
    pub(super) fn flush(&mut self) {
        while let Some(slot) = self.ports.next_pending() {
            let stream = self.ports.get_mut(slot).and_then(|port| port.link.stream());
            match stream.map(|stream| stream.flush(self.buffer.filled())) {
                Some(Ok(waits)) => self.watch_room(slot, waits),
                Some(Err(error)) => self.close(slot, &error.into()),
                None => {}
            }
        }
    }

    /// Sends what waited for room in a port's socket.
    pub(super) fn drain(&mut self, slot: usize) {
        let stream = self.ports.get_mut(slot).and_then(|port| port.link.stream());
        match stream.map(|stream| stream.drain()) {
            Some(Ok(waits)) => self.watch_room(slot, waits),
            Some(Err(error)) => self.close(slot, &error.into()),
            None => {}
        }
    }

    /// Has the loop told of room in a port's socket while something waits for it.
    fn watch_room(&mut self, slot: usize, waits: bool) {
        let Some(port) = self.ports.get_mut(slot).filter(|port| port.waits_for_room != waits) else { return };
        port.waits_for_room = waits;
        let Ok(Some(fd)) = port.link.fd() else { return };
        let event = EpollEvent::new(interest(waits), Token::Port(slot).number());
        if let Err(error) = self.epoll.ctl(ControlOperation::Modify, fd, event) {
            self.close(slot, &error.into());
        }
    }

    /// The link of a port has ended. A machine's port goes with it.
    pub(super) fn close(&mut self, slot: usize, why: &Closed) {
        let Some(port) = self.ports.get_mut(slot) else { return };
        if let Ok(Some(fd)) = port.link.fd() {
            // Another descriptor of the socket may keep it alive.
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
        if let Some(id) = port.id.take() {
            self.switch.remove(id);
        }
        match (why, &mut port.link) {
            (Closed::Frame(_), _) => log::warn!("port {} is disconnected: {why}", port.name),
            (_, Link::Tap(_) | Link::User(_)) => {
                log::error!("the switch goes on without its uplink {}: {why}", port.name)
            }
            _ => {}
        }
        if let Link::Socket(uplink) = &mut port.link {
            uplink.disconnect();
            (port.waits_for_room, port.accepts) = (false, vswitch::Accepts::default());
        } else {
            self.forget(slot);
        }
        // There is a descriptor more.
        self.listen_again();
    }

    /// Removes a port.
    fn forget(&mut self, slot: usize) {
        let Some(port) = self.ports.remove(slot) else { return };
        if let Some(mac) = port.mac {
            self.name(mac, None);
        }
        if port.is_machine() && !self.ports.iter().any(|(_, port)| port.is_machine()) {
            self.life.emptied(Instant::now());
        }
    }

    /// Closes a machine's port whose machine has gone, before the loop has seen that.
    pub(super) fn close_if_gone(&mut self, slot: usize) -> bool {
        let is_gone = self
            .ports
            .get(slot)
            .is_some_and(|port| matches!(&port.link, Link::Machine(stream) if stream.is_hung_up()));
        if is_gone {
            self.close(slot, &Closed::End);
        }
        is_gone
    }
}

/// What a port is watched for.
fn interest(waits_for_room: bool) -> EventSet {
    if waits_for_room { EventSet::IN | EventSet::OUT } else { EventSet::IN }
}
