//! Decides all addresses before anything is loaded; the caller copies, when and with as many threads as it
//! likes.

mod error;

use std::ops::Range;

pub use error::PlanError;

use crate::entry::{CpuState, Protocol};
use crate::initrd::Initrd;
use crate::kernel::{BzImage, Elf, Image, Kernel};
use crate::layout::{CMDLINE_MAX, HIMEM, LOW_RAM_END, RamLayout};

const PAGE: u64 = 4096;

/// The input of a plan.
#[derive(Debug, Clone, Copy)]
pub struct PlanRequest<'a> {
    /// Kernel command line, without a terminating zero.
    pub cmdline: &'a str,
    /// The initrd, if there is one.
    pub initrd: Option<Initrd>,
    /// The machine's memory.
    pub ram: &'a RamLayout,
    /// The entry to use instead of the kernel's best one.
    pub preferred_entry: Option<Protocol>,
}

/// A piece of a file to copy to guest memory. It is within the file and within low RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Offset in the file.
    pub file_offset: u64,
    /// Guest-physical address.
    pub guest: u64,
    /// Length in both; never 0.
    pub len: u64,
}

impl Load {
    /// Its guest-physical addresses.
    pub fn range(&self) -> Range<u64> {
        self.guest..self.guest + self.len
    }
}

/// The rest of the work to start a kernel. The guest's memory must read as zero where nothing is loaded: a
/// segment may be longer in memory than in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootPlan {
    /// Pieces of the kernel file, by address, not overlapping.
    pub kernel: Vec<Load>,
    /// The whole initrd file.
    pub initrd: Option<Load>,
    /// The entry protocol.
    pub protocol: Protocol,
    /// Guest-physical address of the entry.
    pub entry: u64,
    /// The setup header of a bzImage.
    pub(crate) setup_header: Option<Vec<u8>>,
    /// With its terminating zero.
    pub(crate) cmdline: Vec<u8>,
    pub(crate) ram: RamLayout,
}

impl BootPlan {
    /// The state of the first vCPU at the entry.
    pub fn cpu_state(&self) -> CpuState {
        CpuState::at(self.protocol, self.entry)
    }
}

/// Plans the boot of `kernel`.
pub fn plan(kernel: &Kernel, request: &PlanRequest<'_>) -> Result<BootPlan, PlanError> {
    let protocol = choose_entry(kernel, request.preferred_entry)?;
    let cmdline = terminated(request.cmdline, kernel.cmdline_max())?;
    let room = kernel_range(kernel)?;
    check_memory(kernel, &room, request)?;
    let initrd =
        request.initrd.map(|initrd| place_initrd(&initrd, kernel, &room, request.ram)).transpose()?;
    let (loads, entry, setup_header) = match &kernel.image {
        Image::BzImage(image) => (load_bzimage(image), image.entry(room.start), Some(image.header.clone())),
        Image::Elf(elf) => (load_elf(elf), elf_entry(elf, protocol).unwrap_or(room.start), None),
    };
    Ok(BootPlan { kernel: loads, initrd, protocol, entry, setup_header, cmdline, ram: request.ram.clone() })
}

/// The preferred entry if the kernel has it; else PVH if there is one, as it needs no page tables.
fn choose_entry(kernel: &Kernel, preferred: Option<Protocol>) -> Result<Protocol, PlanError> {
    match preferred {
        Some(wanted) if !kernel.supports(wanted) => {
            Err(PlanError::NoSuchEntry { wanted, format: kernel.format() })
        }
        Some(wanted) => Ok(wanted),
        None => {
            let best =
                [Protocol::Pvh, Protocol::Linux64].into_iter().find(|protocol| kernel.supports(*protocol));
            Ok(best.unwrap_or(Protocol::Linux32))
        }
    }
}

fn elf_entry(elf: &Elf, protocol: Protocol) -> Option<u64> {
    match protocol {
        Protocol::Linux64 | Protocol::Linux32 => elf.entry,
        Protocol::Pvh => elf.pvh_entry.map(u64::from),
    }
}

/// The command line with its zero, which `max` does not count ("`cmdline_size`", boot protocol 2.06).
fn terminated(cmdline: &str, max: u64) -> Result<Vec<u8>, PlanError> {
    if let Some(at) = cmdline.bytes().position(|byte| byte == 0) {
        return Err(PlanError::CmdlineHasNul(at));
    }
    let (len, max) = (cmdline.len() as u64, max.min(CMDLINE_MAX - 1));
    if len > max {
        return Err(PlanError::CmdlineTooLong { len, max });
    }
    let mut bytes = Vec::with_capacity(cmdline.len() + 1);
    bytes.extend_from_slice(cmdline.as_bytes());
    bytes.push(0);
    Ok(bytes)
}

/// The memory that the kernel needs before it reads its memory map: from its load address to the end of its
/// unpacking buffer or of its last segment.
fn kernel_range(kernel: &Kernel) -> Result<Range<u64>, PlanError> {
    let start = kernel.pref_address();
    if start < HIMEM {
        return Err(PlanError::KernelTooLow { address: start, limit: HIMEM });
    }
    let end = start.saturating_add(kernel.init_size());
    if end > LOW_RAM_END {
        return Err(PlanError::KernelTooHigh { end, limit: LOW_RAM_END });
    }
    Ok(start..end)
}

/// Memory in which this kernel with this initrd is expected to reach /init, in whole MiB. Added to the
/// kernel's range are an eighth of it for allocations at boot (measured with Debian 6.1: 9 to 13 % without
/// the initrd's share), and the initrd with its unpacked content.
pub fn memory_estimate(kernel: &Kernel, initrd: Option<&Initrd>) -> Result<u64, PlanError> {
    let room = kernel_range(kernel)?;
    let initrd = initrd.map_or(0, |initrd| page_up(initrd.working_memory()));
    let needed = page_up(room.end).saturating_add((room.end - room.start) / 8).saturating_add(initrd);
    Ok(needed.div_ceil(1 << 20).saturating_mul(1 << 20))
}

/// Refuses memory that is certainly too small for the kernel's range and the initrd's file. A small kernel
/// needs little.
fn check_memory(kernel: &Kernel, room: &Range<u64>, request: &PlanRequest<'_>) -> Result<(), PlanError> {
    let initrd = request.initrd.map_or(0, |initrd| page_up(initrd.least_memory()));
    let certain = page_up(room.end).saturating_add(initrd);
    let high = request.ram.high.as_ref().map_or(0, |high| high.end - high.start);
    let given = request.ram.low.end.saturating_add(high);
    if given >= certain && request.ram.low.end >= room.end {
        return Ok(());
    }
    let needed = memory_estimate(kernel, request.initrd.as_ref())?;
    Err(PlanError::NotEnoughMemory { needed, given, initrd: request.initrd.is_some() })
}

/// As high as possible: kernels unpack upwards from their load address, and allocate from below first.
fn place_initrd(
    initrd: &Initrd,
    kernel: &Kernel,
    room: &Range<u64>,
    ram: &RamLayout,
) -> Result<Load, PlanError> {
    let len = initrd.file_len();
    let bottom = page_up(room.end);
    let top = page_down(ram.low.end.min(kernel.initrd_addr_max().saturating_add(1)));
    match top.checked_sub(len).map(page_down) {
        Some(guest) if guest >= bottom => Ok(Load { file_offset: 0, guest, len }),
        _ => Err(PlanError::InitrdTooLarge { len, max: top.saturating_sub(bottom) }),
    }
}

fn load_bzimage(image: &BzImage) -> Vec<Load> {
    vec![Load { file_offset: image.code, guest: image.pref_address, len: image.code_len }]
}

fn load_elf(elf: &Elf) -> Vec<Load> {
    let loads = elf.segments.iter().filter(|segment| segment.file_len > 0);
    loads.map(|s| Load { file_offset: s.file_offset, guest: s.guest, len: s.file_len }).collect()
}

fn page_down(address: u64) -> u64 {
    address & !(PAGE - 1)
}

/// Saturates at the last whole page.
fn page_up(address: u64) -> u64 {
    address.checked_next_multiple_of(PAGE).unwrap_or(!(PAGE - 1))
}

#[cfg(test)]
mod tests;
