//! The identity map of the first 4 GiB for the 64-bit entry.

use vm_memory::GuestMemory;

use super::{TablesError, write};
use crate::layout::PML4;

const PAGE: u64 = 4096;
const ENTRIES: usize = 512;
/// Present and writable (Intel SDM vol. 3, table 4-15).
const TABLE: u64 = 1 << 0 | 1 << 1;
/// Present, writable, accessed, dirty, and mapping a large page (table 4-18): with accessed and dirty set,
/// the processor does not write to the tables.
const LARGE_PAGE: u64 = TABLE | 1 << 5 | 1 << 6 | 1 << 7;
const LARGE_PAGE_SIZE: u64 = 2 << 20;
/// One page directory maps 1 GiB.
const DIRECTORIES: u64 = 4;

/// Writes six pages from [`PML4`] on. 2 MiB pages, as not every CPU supports 1 GiB.
pub(super) fn write_identity_map<M: GuestMemory>(mem: &M) -> Result<(), TablesError> {
    let pdpt = PML4 + PAGE;
    let first = pdpt + PAGE;
    write_table(mem, PML4, 1, |_| pdpt | TABLE)?;
    write_table(mem, pdpt, DIRECTORIES, |i| (first + i * PAGE) | TABLE)?;
    for directory in 0..DIRECTORIES {
        let base = directory << 30;
        write_table(mem, first + directory * PAGE, ENTRIES as u64, |i| {
            (base + i * LARGE_PAGE_SIZE) | LARGE_PAGE
        })?;
    }
    Ok(())
}

/// One page of entries, `used` of them from `entry`, the others not present.
fn write_table<M: GuestMemory>(
    mem: &M,
    at: u64,
    used: u64,
    entry: impl Fn(u64) -> u64,
) -> Result<(), TablesError> {
    let mut page = [0; ENTRIES * size_of::<u64>()];
    for (to, i) in page.chunks_exact_mut(size_of::<u64>()).zip(0..used) {
        to.copy_from_slice(&entry(i).to_le_bytes());
    }
    write(mem, "page table", at, &page)
}
