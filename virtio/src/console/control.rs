//! What device and driver tell each other of ports (virtio 1.3 §5.3.6.2).

use crate::queue::Reader;

/// Bytes of a message without what may follow it: a name.
const LEN: usize = 8;

/// The kind of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Event {
    DeviceReady = 0,
    PortAdd = 1,
    PortReady = 3,
    ConsolePort = 4,
    Resize = 5,
    PortOpen = 6,
    PortName = 7,
}

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) port: u32,
    pub(super) event: Event,
    pub(super) value: bool,
}

impl Message {
    pub(super) fn bytes(self) -> [u8; LEN] {
        let [p0, p1, p2, p3] = self.port.to_le_bytes();
        let [e0, e1] = (self.event as u16).to_le_bytes();
        [p0, p1, p2, p3, e0, e1, self.value.into(), 0]
    }

    /// One that a driver sent; `None` for what a driver does not say.
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Message> {
        let mut bytes = [0; LEN];
        if reader.read(&mut bytes) < LEN {
            return None;
        }
        let [p0, p1, p2, p3, e0, e1, v0, v1] = bytes;
        let event = match u16::from_le_bytes([e0, e1]) {
            0 => Event::DeviceReady,
            3 => Event::PortReady,
            6 => Event::PortOpen,
            _ => return None,
        };
        Some(Message { port: u32::from_le_bytes([p0, p1, p2, p3]), event, value: [v0, v1] != [0, 0] })
    }
}
