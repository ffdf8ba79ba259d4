//! A function's configuration space: values, what the guest may write, and where changes are published.
//!
//! Conventional functions have 256 bytes; the rest of a function's 4 KiB in the ECAM reads as zero, which means
//! "no extended capability" (PCI Express 5.0 §7.6.2).

use std::sync::Arc;

use super::EcamMirror;
use super::bar::{Bar, BarError, BarKind};
use super::registers as reg;

/// Bytes that a function stores.
pub const CONFIG_SIZE: usize = 256;

/// Linux writes a latency timer (64) into every function below 16 that becomes a bus master. Found there already, it
/// is left alone: one exit less a function.
const LATENCY_TIMER: u8 = 64;

/// Identification registers of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass, programming interface: 0x060000 is a host bridge.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// A capability that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a capability of {0} bytes does not fit into the 192 bytes that a function has for them")]
pub struct CapabilityTooLong(pub usize);

/// Saved registers that are not of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OtherFunction {
    /// Another size.
    #[error("it has {0} bytes of configuration space instead of {CONFIG_SIZE}")]
    Length(usize),
    /// A register that no write can change differs.
    #[error("its register {offset:#x} is {saved:#04x}, and {own:#04x} here")]
    ReadOnly {
        /// Offset of the byte.
        offset: usize,
        /// The saved byte.
        saved: u8,
        /// The function's own.
        own: u8,
    },
}

/// A function's configuration space.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: Bytes,
    /// As at power-on, BARs at their preset addresses.
    initial: Bytes,
    /// Bits that a guest's write sets and clears.
    writable: Bytes,
    bars: [Option<Bar>; 6],
    /// Next free byte for a capability, and the pointer that the next one is linked from.
    capability_end: u16,
    last_link: u16,
    mirror: Option<(Arc<dyn EcamMirror>, u64)>,
}

type Bytes = [u8; CONFIG_SIZE];

impl ConfigSpace {
    /// A type 0 header with no BAR and no capability, command register 0.
    pub fn new(identity: Identity) -> Self {
        let mut config = ConfigSpace {
            bytes: [0; CONFIG_SIZE],
            initial: [0; CONFIG_SIZE],
            writable: [0; CONFIG_SIZE],
            bars: [None; 6],
            capability_end: reg::CAPABILITY_AREA,
            last_link: reg::CAPABILITIES,
            mirror: None,
        };
        let [revision, class @ ..] = ((identity.class << 8) | u32::from(identity.revision)).to_le_bytes();
        config.define(reg::VENDOR, &identity.vendor.to_le_bytes());
        config.define(reg::VENDOR + 2, &identity.device.to_le_bytes());
        config.define(reg::REVISION, &[revision]);
        config.define(reg::REVISION + 1, &class);
        config.define(reg::LATENCY, &[LATENCY_TIMER]);
        config.define(reg::SUBSYSTEM, &identity.subsystem_vendor.to_le_bytes());
        config.define(reg::SUBSYSTEM + 2, &identity.subsystem.to_le_bytes());
        let command = reg::COMMAND_MEMORY | reg::COMMAND_MASTER | reg::COMMAND_NO_INTX;
        config.allow(reg::COMMAND, &command.to_le_bytes());
        for byte in [reg::CACHE_LINE, reg::LATENCY, reg::INTERRUPT_LINE] {
            config.allow(byte, &[0xff]);
        }
        config
    }

    /// Adds a BAR; its address is 0 until [`ConfigSpace::set_bar_address`].
    ///
    /// # Errors
    /// [`BarError::Taken`] if one of its registers is another's.
    pub fn add_bar(&mut self, bar: Bar) -> Result<(), BarError> {
        let taken = |other: &Bar| {
            other.registers().start < bar.registers().end && bar.registers().start < other.registers().end
        };
        let index = bar.index().get();
        if self.bars.iter().flatten().any(taken) {
            return Err(BarError::Taken(index));
        }
        if let Some(slot) = self.bars.get_mut(usize::from(index)) {
            *slot = Some(bar);
        }
        let registers = bar.registers();
        let len = usize::from(registers.end - registers.start);
        self.define(registers.start, bar.flags().to_le_bytes().split_at(len).0);
        self.allow(registers.start, bar.address_mask().to_le_bytes().split_at(len).0);
        Ok(())
    }

    /// Adds a capability `id` with `body` after its two header bytes, of which the guest may write the bits of
    /// `writable`; gives the offset of the header. Every capability starts at a multiple of four.
    ///
    /// # Errors
    /// [`CapabilityTooLong`] when the space is used up.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u16, CapabilityTooLong> {
        let start = self.capability_end;
        let end = usize::from(start) + 2 + body.len();
        let (Ok(next), Ok(link)) = (u16::try_from(end.next_multiple_of(4)), u8::try_from(start)) else {
            return Err(CapabilityTooLong(body.len()));
        };
        if end > CONFIG_SIZE {
            return Err(CapabilityTooLong(body.len()));
        }
        self.define(self.last_link, &[link]);
        self.define(start, &[id, 0]);
        self.define(start + 2, body);
        self.allow(start + 2, writable.get(..body.len()).unwrap_or(writable));
        self.define(reg::STATUS, &(1u16 << 4).to_le_bytes());
        self.last_link = start + 1;
        self.capability_end = next;
        Ok(start)
    }

    /// The guest or anyone reads; past the stored bytes are zeros.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0);
        for (to, from) in data.iter_mut().zip(self.bytes.get(usize::from(offset)..).unwrap_or_default()) {
            *to = *from;
        }
    }

    /// A 16-bit register.
    pub fn read_u16(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// A 32-bit register.
    pub fn read_u32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// The guest writes: bits that are not writable stay as they are.
    pub fn guest_write(&mut self, offset: u16, data: &[u8]) {
        for (at, data) in (offset..).step_by(8).zip(data.chunks(8)) {
            let mut merged = [0; 8];
            self.read(at, &mut merged);
            for ((byte, new), writable) in merged.iter_mut().zip(data).zip(tail(&self.writable, at)) {
                *byte = (*byte & !writable) | (new & writable);
            }
            self.set(at, merged.split_at(data.len()).0);
        }
    }

    /// The function changes its own registers, whatever the guest may write.
    /// Publishes the bytes that differ and no others.
    pub fn set(&mut self, offset: u16, data: &[u8]) {
        let current = tail_mut(&mut self.bytes, offset);
        let mut run: Option<usize> = None;
        let len = data.len().min(current.len());
        for at in 0..=len {
            let differs = at < len && current.get(at) != data.get(at);
            match (differs, run) {
                (true, None) => run = Some(at),
                (false, Some(start)) => {
                    run = None;
                    let (Some(to), Some(from)) = (current.get_mut(start..at), data.get(start..at)) else {
                        break;
                    };
                    to.copy_from_slice(from);
                    if let Some((mirror, base)) = &self.mirror {
                        mirror.publish(base + u64::from(offset) + start as u64, from);
                    }
                }
                _ => {}
            }
        }
    }

    /// The function's BARs.
    pub fn bars(&self) -> impl Iterator<Item = Bar> + '_ {
        self.bars.iter().flatten().copied()
    }

    /// Address that `bar`'s registers hold.
    pub fn bar_address(&self, bar: &Bar) -> u64 {
        let low = self.read_u32(bar.registers().start);
        let high = match bar.kind() {
            BarKind::Memory32 => 0,
            BarKind::Memory64 => self.read_u32(bar.registers().start + 4),
        };
        (u64::from(high) << 32 | u64::from(low)) & bar.address_mask()
    }

    /// Presets `bar`'s address. Bits below its size, or above 32 in a 32-bit one, are dropped.
    pub fn set_bar_address(&mut self, bar: &Bar, address: u64) {
        let registers = bar.registers();
        let value = (address & bar.address_mask() | bar.flags()).to_le_bytes();
        self.define(registers.start, value.split_at(usize::from(registers.end - registers.start)).0);
    }

    /// Whether memory BARs answer.
    pub fn memory_enabled(&self) -> bool {
        self.read_u16(reg::COMMAND) & reg::COMMAND_MEMORY != 0
    }

    /// Whether the function may reach memory and send messages (PCI 3.0 §6.2.2).
    pub fn master_enabled(&self) -> bool {
        self.read_u16(reg::COMMAND) & reg::COMMAND_MASTER != 0
    }

    /// From now on every change is published at `base`; everything is published now.
    pub fn attach(&mut self, mirror: Arc<dyn EcamMirror>, base: u64) {
        mirror.publish(base, &self.bytes);
        self.mirror = Some((mirror, base));
    }

    /// Says on function 0 that the device has others.
    pub fn set_multifunction(&mut self) {
        self.define(reg::HEADER_TYPE, &[0x80]);
    }

    /// All registers.
    pub fn bytes(&self) -> &[u8; CONFIG_SIZE] {
        &self.bytes
    }

    /// The registers `saved`, if they are of a function that is built like this one.
    ///
    /// # Errors
    /// [`OtherFunction`].
    pub fn check<'a>(&self, saved: &'a [u8]) -> Result<&'a [u8; CONFIG_SIZE], OtherFunction> {
        let saved: &Bytes = saved.try_into().map_err(|_| OtherFunction::Length(saved.len()))?;
        for (offset, ((saved, own), writable)) in
            saved.iter().zip(&self.initial).zip(&self.writable).enumerate()
        {
            if (saved ^ own) & !writable != 0 {
                return Err(OtherFunction::ReadOnly { offset, saved: *saved, own: *own });
            }
        }
        Ok(saved)
    }

    /// Takes over registers that passed [`ConfigSpace::check`].
    pub fn load(&mut self, checked: &[u8; CONFIG_SIZE]) {
        self.set(0, checked);
    }

    /// Sets a register, and what a saved one must agree with.
    fn define(&mut self, offset: u16, data: &[u8]) {
        for (to, from) in tail_mut(&mut self.initial, offset).iter_mut().zip(data) {
            *to = *from;
        }
        self.set(offset, data);
    }

    fn allow(&mut self, offset: u16, mask: &[u8]) {
        for (slot, bits) in tail_mut(&mut self.writable, offset).iter_mut().zip(mask) {
            *slot = *bits;
        }
    }
}

fn tail(bytes: &Bytes, offset: u16) -> &[u8] {
    bytes.get(usize::from(offset)..).unwrap_or_default()
}

fn tail_mut(bytes: &mut Bytes, offset: u16) -> &mut [u8] {
    bytes.get_mut(usize::from(offset)..).unwrap_or_default()
}
