//! What is where in the function's one BAR. Each structure has pages of its own, as a guest may map them apart.

use devices::pci::bar::{Bar, BarError, BarIndex, BarKind};
use devices::pci::msix::MsixLayout;

/// Which structure an offset is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Area {
    Common,
    Isr,
    Device,
    Notify,
    Msix,
}

pub(super) const BAR: BarIndex = match BarIndex::new(0) {
    Some(bar) => bar,
    None => unreachable!(),
};
pub(super) const SIZE: u64 = 0x8000;
pub(super) const COMMON: u64 = 0;
/// With the fields of virtio 1.3 §4.1.4.3 up to queue_notif_config_data and queue_reset.
pub(super) const COMMON_LEN: u64 = 0x3c;
pub(super) const ISR: u64 = 0x1000;
pub(super) const ISR_LEN: u64 = 4;
pub(super) const DEVICE: u64 = 0x2000;
pub(super) const DEVICE_LEN: u64 = 0x1000;
pub(super) const NOTIFY: u64 = 0x3000;
/// Bytes from one queue's doorbell to the next's: notify_off_multiplier. Each queue has a doorbell of its own, so that KVM
/// finds the eventfd by the address alone.
pub(super) const NOTIFY_STRIDE: usize = 4;
pub(super) const NOTIFY_LEN: u64 = 0x1000;
const TABLE: u32 = 0x4000;
const PENDING: u32 = 0x7000;

/// Doorbells have room for 1024 queues, and the MSI-X table for 768 vectors.
pub(super) const MOST_QUEUES: u16 = 767;

pub(super) const MSIX: MsixLayout = MsixLayout { bar: BAR, table: TABLE, pending: PENDING };

pub(super) fn bar() -> Result<Bar, BarError> {
    Bar::new(BAR, BarKind::Memory64, SIZE)
}

/// The structure at `offset` of the BAR, and the offset in it.
pub(super) fn area(offset: u64) -> Option<(Area, usize)> {
    let within = |start: u64, len: u64| offset.checked_sub(start).filter(|at| *at < len);
    let (area, at) = None
        .or_else(|| Some((Area::Common, within(COMMON, COMMON_LEN)?)))
        .or_else(|| Some((Area::Isr, within(ISR, ISR_LEN)?)))
        .or_else(|| Some((Area::Device, within(DEVICE, DEVICE_LEN)?)))
        .or_else(|| Some((Area::Notify, within(NOTIFY, NOTIFY_LEN)?)))
        .or_else(|| Some((Area::Msix, within(TABLE.into(), SIZE - u64::from(TABLE))?)))?;
    Some((area, usize::try_from(at).ok()?))
}

/// Where queue `queue`'s doorbell is in the BAR.
pub(super) fn notify_offset(queue: usize) -> u64 {
    NOTIFY + (queue * NOTIFY_STRIDE) as u64
}
