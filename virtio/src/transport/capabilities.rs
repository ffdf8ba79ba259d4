//! The vendor capabilities that say where the structures are (virtio 1.3 §4.1.4), and the window through which
//! firmware reaches them without mapping the BAR (§4.1.4.9).

use std::ops::Range;

use devices::pci::config::{CapabilityTooLong, ConfigSpace};

use super::bar;

/// PCI's id of a vendor capability.
const VENDOR: u8 = 0x09;
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// Offsets in a capability, from its id on (struct virtio_pci_cap).
const CAP_BAR: u16 = 4;
const CAP_OFFSET: u16 = 8;
const CAP_LENGTH: u16 = 12;
const CAP_DATA: u16 = 16;
const CAP_END: u16 = 20;
/// Bytes of a guest's widest write.
const WIDEST: usize = 8;

/// Adds all of them.
pub(super) fn add(config: &mut ConfigSpace) -> Result<PciAccess, CapabilityTooLong> {
    let stride = u32::try_from(bar::NOTIFY_STRIDE).unwrap_or(0).to_le_bytes();
    let structures: [(u8, u64, u64, &[u8]); 4] = [
        (COMMON_CFG, bar::COMMON, bar::COMMON_LEN, &[]),
        (NOTIFY_CFG, bar::NOTIFY, bar::NOTIFY_LEN, &stride),
        (ISR_CFG, bar::ISR, bar::ISR_LEN, &[]),
        (DEVICE_CFG, bar::DEVICE, bar::DEVICE_LEN, &[]),
    ];
    for (kind, offset, len, extra) in structures {
        config.add_capability(VENDOR, &body(kind, offset, len, extra), &[])?;
    }
    let body = body(PCI_CFG, 0, 0, &[0; 4]);
    // The driver chooses bar, offset and length, and writes the data.
    let mut writable = vec![0; body.len()];
    let fields = [CAP_BAR..CAP_BAR + 1, CAP_OFFSET..CAP_END];
    for at in fields.into_iter().flatten() {
        if let Some(mask) = writable.get_mut(usize::from(at - 2)) {
            *mask = 0xff;
        }
    }
    Ok(PciAccess { at: config.add_capability(VENDOR, &body, &writable)? })
}

/// A capability behind its id and next pointer.
fn body(kind: u8, offset: u64, len: u64, extra: &[u8]) -> Vec<u8> {
    let [offset, len] = [offset, len].map(|value| u32::try_from(value).unwrap_or(0).to_le_bytes());
    let total = 16 + u8::try_from(extra.len()).unwrap_or(0);
    let mut body = vec![total, kind, bar::BAR.get(), 0, 0, 0];
    for part in [&offset, &len, extra] {
        body.extend_from_slice(part);
    }
    body
}

/// VIRTIO_PCI_CAP_PCI_CFG.
#[derive(Debug, Clone, Copy)]
pub(super) struct PciAccess {
    at: u16,
}

/// An access that a driver asked for through the window: `len` is 1, 2 or 4, and `offset` a multiple of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct WindowAccess {
    pub(super) offset: u64,
    pub(super) len: usize,
    /// The bytes to write; `None` to read.
    pub(super) data: Option<[u8; 4]>,
}

impl PciAccess {
    /// What the configuration write to `written` asks for.
    ///
    /// A driver's read of the data cannot be seen: it reads configuration space from memory. So the read is made when
    /// the driver has set bar, offset or length, and the data lies there when it comes for it.
    pub(super) fn written(self, config: &ConfigSpace, written: &Range<u16>) -> Option<WindowAccess> {
        // A restore or reset of the whole space is no access: the window must not write again what it once wrote.
        if written.len() > WIDEST || written.end <= self.at + CAP_BAR || written.start >= self.at + CAP_END {
            return None;
        }
        let field = |at: u16| u32::from_le_bytes(self.word(config, at));
        let (bar, offset, len) = (self.word(config, CAP_BAR)[0], field(CAP_OFFSET), field(CAP_LENGTH));
        if bar != bar::BAR.get() || !matches!(len, 1 | 2 | 4) || !offset.is_multiple_of(len) {
            return None;
        }
        let wrote_data = written.end > self.at + CAP_DATA;
        let data = wrote_data.then(|| self.word(config, CAP_DATA));
        Some(WindowAccess { offset: offset.into(), len: usize::try_from(len).ok()?, data })
    }

    /// Puts the data of a read into the capability.
    pub(super) fn answer(self, config: &mut ConfigSpace, data: &[u8]) {
        config.set(self.at + CAP_DATA, data);
    }

    fn word(self, config: &ConfigSpace, at: u16) -> [u8; 4] {
        let mut word = [0; 4];
        config.read(self.at + at, &mut word);
        word
    }
}
