//! Registers of a type 0 header (PCI 3.0 §6.1).

/// Vendor, then device.
pub const VENDOR: u16 = 0x00;
/// What the function may do.
pub const COMMAND: u16 = 0x04;
/// What the function has; bit 4: a capability list.
pub const STATUS: u16 = 0x06;
/// Revision, then three bytes of class.
pub const REVISION: u16 = 0x08;
/// Cache line size; the guest's own.
pub const CACHE_LINE: u16 = 0x0c;
/// Latency timer; the guest's own.
pub const LATENCY: u16 = 0x0d;
/// Header type; bit 7: more functions follow.
pub const HEADER_TYPE: u16 = 0x0e;
/// First of six BARs.
pub const BAR0: u16 = 0x10;
/// After the last BAR.
pub const BAR_END: u16 = 0x28;
/// Subsystem vendor, then subsystem.
pub const SUBSYSTEM: u16 = 0x2c;
/// Offset of the first capability.
pub const CAPABILITIES: u16 = 0x34;
/// Interrupt line; the guest's own.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Where capabilities may start.
pub const CAPABILITY_AREA: u16 = 0x40;
/// [`COMMAND`]: BARs of memory answer.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// [`COMMAND`]: the function may reach memory, and send messages.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// [`COMMAND`]: no legacy interrupt.
pub const COMMAND_NO_INTX: u16 = 1 << 10;
