//! Console (virtio 1.3 §5.3): the terminal `hvc0`, and named ports, which are streams of bytes between a program in
//! the guest and one on the host.
//!
//! Lossless with back-pressure: a slow reader blocks its writer. No chain is held between calls; data that cannot move yet
//! stays in its ring.

mod backend;
mod control;
mod port;
mod socket;
#[cfg(test)]
mod tests;

use std::io;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Instant;

use devices::component::{State, StateError};
use serde::{Deserialize, Serialize};

use crate::DeviceKind;
use crate::config_space::ConfigSpace;
use crate::device::{Context, Device, DeviceInfo, Message as DeviceMessage, TIMER};
use crate::poll::{Epoll, Token};
use crate::queue::QueueFault;
pub use backend::{Backend, Nobody, Stream, TOKENS};
use control::{Event, Message};
use port::{Port, PortState, Progress, Scratch};
pub use socket::SocketBackend;

/// VIRTIO_CONSOLE_F_SIZE (§5.3.3).
const SIZE: u64 = 1 << 0;
/// VIRTIO_CONSOLE_F_MULTIPORT (§5.3.3). Not offered without named ports: Linux then reads the terminal's size from the configuration,
/// where columns come first for all of its versions. In the control message for it those before 6.15 and their stable releases of the time
/// have rows first (commit 5326ab737a47).
const MULTIPORT: u64 = 1 << 1;
const QUEUE_SIZE: NonZeroU16 = NonZeroU16::new(64).unwrap();
/// Control queues (§5.3.2): from the device, to the device.
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;
/// Budget in control messages, after which other devices of the thread are served.
const MESSAGES: usize = 256;
/// Most ports: their tokens (below 2048) and queues (below 768) must fit.
const MOST_PORTS: usize = 256;
const KIND: &str = "virtio-console";
const VERSION: u16 = 1;

/// The device.
#[derive(Debug)]
pub struct Console {
    name: String,
    config: Arc<ConfigSpace>,
    ports: Vec<Port>,
    /// That of the terminal, if it is known.
    size: Option<TerminalSize>,
    /// The driver has sent DEVICE_READY.
    driver_ready: bool,
    /// A state was loaded, and the device was not started since.
    loaded: bool,
    scratch: Scratch,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Characters of a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl TerminalSize {
    /// As it is in the configuration and in a control message.
    fn bytes(self) -> [u8; 4] {
        let ([c0, c1], [r0, r1]) = (self.columns.to_le_bytes(), self.rows.to_le_bytes());
        [c0, c1, r0, r1]
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConsoleState {
    driver_ready: bool,
    ports: Vec<SavedPort>,
}

/// Bytes in the host's queues and sockets belong to the host and are not saved.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedPort {
    name: Option<String>,
    state: PortState,
}

/// A port, or one of its queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum QueueOwner {
    Control,
    Port(usize),
}

impl Console {
    /// One whose first port is a console at `terminal`.
    pub fn new(name: impl Into<String>, terminal: Box<dyn Backend>) -> Self {
        let mut console = Console {
            name: name.into(),
            config: Arc::new(ConfigSpace::new(config(1))),
            ports: Vec::new(),
            size: None,
            driver_ready: false,
            loaded: false,
            scratch: Scratch::default(),
        };
        console.ports.push(Port::new(None, terminal));
        console
    }

    /// With one more port, of this name in the guest. Those behind the 255th are not there.
    #[must_use]
    pub fn with_port(mut self, name: impl Into<String>, backend: Box<dyn Backend>) -> Self {
        if self.ports.len() < MOST_PORTS {
            self.ports.push(Port::new(Some(name.into()), backend));
            self.config = Arc::new(ConfigSpace::new(config(self.ports.len())));
        }
        self
    }

    /// With one more console, at a terminal of its own: a Linux that knows the first one as `hvc0` has it as `hvc1`. It counts as a port.
    #[must_use]
    pub fn with_console(mut self, terminal: Box<dyn Backend>) -> Self {
        if self.ports.len() < MOST_PORTS {
            self.ports.push(Port::new(None, terminal));
            self.config = Arc::new(ConfigSpace::new(config(self.ports.len())));
        }
        self
    }

    fn is_multiport(&self) -> bool {
        self.ports.len() > 1
    }

    /// The first port is the console, and the driver does not know the size of its terminal.
    fn introduce_size(&mut self) {
        let is_known = self.size.is_some();
        if let Some(console) = self.ports.first_mut() {
            console.resized = is_known;
        }
    }

    /// Both directions of a port, as far as they go now.
    fn serve(&mut self, index: usize, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        let Some(port) = self.ports.get_mut(index) else { return Ok(()) };
        let (receive, transmit) = queues(index);
        let mut over = false;
        if let Some(queue) = cx.queue(transmit) {
            over |= port.transmit(queue, &mut self.scratch)? == Progress::Over;
        }
        if let Some(queue) = cx.queue(receive) {
            over |= port.receive(queue, &mut self.scratch)? == Progress::Over;
        }
        if port.backend.attend(first_token(index), cx) {
            port.left();
        }
        if over {
            cx.wake_at(Some(Instant::now()));
        }
        Ok(())
    }

    fn serve_every_port(&mut self, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        // A fault of one port does not keep the others from being served.
        let mut outcome = Ok(());
        for index in 0..self.ports.len() {
            outcome = self.serve(index, cx).and(outcome);
        }
        outcome
    }

    /// Sends the control messages that are due, as far as the driver has given buffers.
    fn send_control(&mut self, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        if !cx.has(MULTIPORT) {
            return Ok(());
        }
        let Some(queue) = cx.queue(CONTROL_RECEIVE) else { return Ok(()) };
        let memory = queue.memory().clone();
        for (index, port) in (0u32..).zip(&mut self.ports) {
            while let Some((event, value)) = port.due(self.driver_ready) {
                let Some(mut chain) = queue.pop()? else {
                    if queue.enable_kicks()? {
                        continue;
                    }
                    return queue.notify();
                };
                let mut writer = chain.writer(&memory);
                writer.write(&Message { port: index, event, value }.bytes());
                if event == Event::PortName {
                    // §5.3.6.2: without a zero at its end.
                    writer.write(port.name.as_deref().unwrap_or_default().as_bytes());
                }
                if let (Event::Resize, Some(size)) = (event, self.size) {
                    writer.write(&size.bytes());
                }
                port.sent(event, value);
                queue.complete(chain)?;
            }
        }
        queue.notify()
    }

    /// Reads the driver's control messages.
    fn read_control(&mut self, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        let Some(queue) = cx.queue(CONTROL_TRANSMIT) else { return Ok(()) };
        let mut progress = Progress::Over;
        for _ in 0..MESSAGES {
            let Some(chain) = queue.pop()? else {
                if queue.enable_kicks()? {
                    continue;
                }
                progress = Progress::Done;
                break;
            };
            let message = Message::read(&mut chain.reader(queue.memory()));
            queue.complete(chain)?;
            let Some(Message { port, event, value }) = message else {
                queue.counters().errors.add_one();
                continue;
            };
            let port = usize::try_from(port).ok().and_then(|port| self.ports.get_mut(port));
            match (event, port) {
                (Event::DeviceReady, _) => self.driver_ready = value,
                (Event::PortReady, Some(port)) => port.is_ready(value),
                (Event::PortOpen, Some(port)) => port.state.guest_open = value,
                // A port that does not exist, or what only a device says.
                _ => {}
            }
        }
        queue.notify()?;
        if progress == Progress::Over {
            cx.wake_at(Some(Instant::now()));
        }
        Ok(())
    }
}

/// The configuration (§5.3.4): columns and rows, which are zero as long as they are not known, and the number of ports.
fn config(ports: usize) -> Vec<u8> {
    let ports = u32::try_from(ports).unwrap_or(u32::MAX);
    [[0; 4], ports.to_le_bytes(), [0; 4]].concat()
}

/// Receive and transmit queue of a port (§5.3.2): the control queues are behind those of the first.
fn queues(port: usize) -> (u16, u16) {
    let first = if port == 0 { 0 } else { 2 * port + 2 };
    let receive = u16::try_from(first).unwrap_or(u16::MAX - 1);
    (receive, receive + 1)
}

/// The owner of a queue.
fn place(queue: u16) -> QueueOwner {
    match usize::from(queue / 2) {
        0 => QueueOwner::Port(0),
        1 => QueueOwner::Control,
        pair => QueueOwner::Port(pair - 1),
    }
}

fn first_token(port: usize) -> Token {
    Token::try_from(port).unwrap_or(0) * TOKENS
}

impl Device for Console {
    type Poller = Epoll;

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            kind: DeviceKind::Console,
            name: self.name.clone(),
            features: if self.is_multiport() { SIZE | MULTIPORT } else { SIZE },
            // With control queues also where no driver uses them: the driver of a state of version 0.2.0 does.
            queues: vec![QUEUE_SIZE; 2 * (self.ports.len() + 1)],
            config: self.config.clone(),
        }
    }

    /// It was offered to consoles without ports as well, up to version 0.2.0.
    fn tolerated(&self) -> u64 {
        MULTIPORT
    }

    fn start(&mut self, cx: &mut Context<'_, Epoll>) -> io::Result<()> {
        for (index, port) in self.ports.iter_mut().enumerate() {
            port.backend.start(first_token(index), cx)?;
            if self.loaded && port.name.is_some() && !port.backend.goes_on() {
                // A client at the host's end is not that of the saved machine.
                port.left();
            }
        }
        self.loaded = false;
        if let Some(first) = self.ports.first_mut().filter(|_| !cx.has(MULTIPORT)) {
            // A driver that knows of one port only has it open.
            first.state.guest_open = true;
        }
        if self.size.is_some() && cx.has(SIZE) {
            // Linux looks at it when it has changed, and not when it begins.
            self.config.announce();
        }
        Ok(())
    }

    fn kicked(&mut self, queue: u16, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        match (place(queue), queue) {
            (QueueOwner::Port(index), _) => self.serve(index, cx)?,
            (QueueOwner::Control, CONTROL_TRANSMIT) => {
                self.read_control(cx)?;
                // A port that was opened now takes what has waited for that.
                self.serve_every_port(cx)?;
            }
            (QueueOwner::Control, _) => {}
        }
        self.send_control(cx)
    }

    fn ready(&mut self, token: Token, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        if token == TIMER {
            // A budget was used up before the work was done. Serve all: idle ones cost little.
            let read = self.read_control(cx);
            let served = self.serve_every_port(cx);
            return self.send_control(cx).and(served).and(read);
        }
        let index = usize::try_from(token / TOKENS).unwrap_or(usize::MAX);
        if let Some(port) = self.ports.get_mut(index) {
            port.backend.ready(token);
            self.serve(index, cx)?;
        }
        self.send_control(cx)
    }

    /// Between calls it holds no chain.
    fn stop(&mut self, _: &mut Context<'_, Epoll>) {}

    fn reset(&mut self) {
        (self.driver_ready, self.loaded) = (false, false);
        for port in &mut self.ports {
            port.state = PortState::default();
        }
        self.introduce_size();
    }

    fn tell(
        &mut self,
        message: DeviceMessage,
        cx: Option<&mut Context<'_, Epoll>>,
    ) -> Result<(), QueueFault> {
        let DeviceMessage::ConsoleSize { size } = message else { return Ok(()) };
        if self.size.replace(size) == Some(size) {
            return Ok(());
        }
        self.config.set(0, &size.bytes());
        self.introduce_size();
        cx.map_or(Ok(()), |cx| self.send_control(cx))
    }

    fn save(&self) -> Result<State, StateError> {
        let ports =
            self.ports.iter().map(|port| SavedPort { name: port.name.clone(), state: port.state.clone() });
        State::new(KIND, VERSION, &ConsoleState { driver_ready: self.driver_ready, ports: ports.collect() })
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        let ConsoleState { driver_ready, ports } = state.open(KIND, VERSION)?;
        if !ports.iter().map(|port| &port.name).eq(self.ports.iter().map(|port| &port.name)) {
            return Err(StateError::mismatch(KIND, "it has other ports"));
        }
        self.driver_ready = driver_ready;
        for (port, saved) in self.ports.iter_mut().zip(ports) {
            port.state = saved.state;
        }
        self.loaded = true;
        Ok(())
    }
}
