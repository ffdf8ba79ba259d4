//! The VM generation ID (Microsoft, "Virtual Machine Generation ID"): 16 random bytes in guest memory, others after each boot, restore and
//! clone. A guest that listens makes its random numbers anew when they change, and so differs from every other guest that goes on
//! from the same state.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use boot::acpi::GenerationId;
use boot::layout;
use devices::irq::Irq;
use devices::ports;
use virtio::console::Backend;
use virtio::device::Context;
use virtio::poll::{Epoll, Token};
use vm_memory::{Bytes, GuestAddress};

use super::StartError;
use super::saved::GuestClock;
use crate::kvm::memory::GuestRam;

/// Where the guest finds it, and what tells of a change.
pub(super) const GENERATION_ID: GenerationId =
    GenerationId { address: layout::GENERATION_ID, gsi: ports::GENERATION_ID_GSI };

/// Its value.
pub(super) type Id = [u8; 16];

/// Writes a new one to the memory of a guest that does not run, and gives it.
pub(super) fn renew(ram: &GuestRam) -> Result<Id, StartError> {
    let mut id = Id::default();
    getrandom::fill(&mut id).map_err(StartError::describe)?;
    ram.memory().write_slice(&id, GuestAddress(GENERATION_ID.address)).map_err(StartError::describe)?;
    Ok(id)
}

/// Says to a guest that goes on that it has another one.
#[derive(Debug)]
pub(super) struct GenerationChange(pub(super) Arc<dyn Irq>);

impl GenerationChange {
    pub(super) fn announce(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

/// Random bytes of a line: more than any pool holds.
const RANDOM: usize = 64;

/// What is to be said to a guest that has another ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct News {
    id: Id,
    clock: GuestClock,
}

/// The machine's end of the port for guests without a driver for the ID: see [`PortSpec::generation`](crate::spec::PortSpec::generation).
/// It has no thread and no descriptor; a line is made when the guest takes it, and a guest that takes none costs nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct GenerationEnd(Arc<Mutex<Option<News>>>);

impl GenerationEnd {
    /// The guest is about to go on with this ID.
    pub(super) fn tell(&self, id: Id, clock: GuestClock) {
        *self.news() = Some(News { id, clock });
    }

    /// The guest is about to boot: whatever was not said before is of another one.
    pub(super) fn forget(&self) {
        *self.news() = None;
    }

    /// For the device of one boot.
    pub(super) fn backend(&self) -> Box<dyn Backend> {
        Box::new(GenerationPort { end: self.clone(), rest: Vec::new() })
    }

    fn news(&self) -> MutexGuard<'_, Option<News>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl News {
    /// The line; the one before may have been cut by a save.
    fn line(self) -> io::Result<String> {
        let mut random = [0; RANDOM];
        getrandom::fill(&mut random)?;
        let mut line = "\ngeneration=".to_owned();
        line.push_str(&hex(&self.id));
        line.push_str(" random=");
        line.push_str(&hex(&random));
        if self.clock == GuestClock::Host {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            line.push_str(&format!(" time={}.{:09}", now.as_secs(), now.subsec_nanos()));
        }
        line.push('\n');
        Ok(line)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// See [`GenerationEnd`].
#[derive(Debug)]
struct GenerationPort {
    end: GenerationEnd,
    /// Of a line that the guest has taken a part of.
    rest: Vec<u8>,
}

impl Backend for GenerationPort {
    fn start(&mut self, _: Token, cx: &mut Context<'_, Epoll>) -> io::Result<()> {
        if self.end.news().is_some() {
            // The guest may wait for it since before it was saved, and kick nothing.
            cx.wake_at(Some(Instant::now()));
        }
        Ok(())
    }

    fn goes_on(&self) -> bool {
        true
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            let news = self.end.news().take();
            self.rest = news.ok_or(io::ErrorKind::WouldBlock)?.line()?.into_bytes();
        }
        let count = self.rest.len().min(into.len());
        into.iter_mut().zip(self.rest.drain(..count)).for_each(|(to, from)| *to = from);
        Ok(count)
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        // Nobody listens.
        Ok(from.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(port: &mut dyn Backend) -> Option<String> {
        let (mut line, mut bytes) = (Vec::new(), [0; 16]);
        while let Ok(count) = port.read(&mut bytes) {
            line.extend(&bytes[..count]);
        }
        (!line.is_empty()).then(|| String::from_utf8(line).unwrap())
    }

    #[test]
    fn guest_hears_the_newest_line_once_and_those_of_two_machines_differ() {
        let end = GenerationEnd::default();
        let mut port = end.backend();
        assert_eq!(read(&mut *port), None);
        assert_eq!(port.write(&[0; 1 << 20]).unwrap(), 1 << 20);
        end.tell([1; 16], GuestClock::Saved);
        end.tell([0xab; 16], GuestClock::Host);
        let line = read(&mut *port).unwrap();
        let words: Vec<_> = line.split_whitespace().map(|word| word.split_once('=').unwrap()).collect();
        let [("generation", id), ("random", random), ("time", time)] = words[..] else { panic!("{line}") };
        assert_eq!((id, random.len()), ("ab".repeat(16).as_str(), 2 * RANDOM));
        let time = std::time::Duration::from_secs_f64(time.parse().unwrap());
        assert!((UNIX_EPOCH + time).elapsed().unwrap() < std::time::Duration::from_secs(600));
        assert!(line.starts_with('\n') && line.ends_with('\n'));
        assert_eq!(read(&mut *port), None);
        end.tell([0xab; 16], GuestClock::Saved);
        let other = read(&mut *port).unwrap();
        assert!(!other.contains("time=") && !other.contains(random), "{other}");
        end.tell([2; 16], GuestClock::Host);
        end.forget();
        assert_eq!(read(&mut *port), None);
    }
}
