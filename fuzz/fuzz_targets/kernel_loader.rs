//! Any bytes as a kernel: parsed, planned, loaded and given its tables, in 2 to 64 MiB of memory. Either it is
//! refused, or every copy lies in the file and in memory and none overlaps another or the machine's own structures.
//!
//! `cargo +nightly fuzz run kernel_loader fuzz/corpus/kernel_loader fuzz/seeds/kernel_loader`
#![no_main]

use boot::entry::Protocol;
use boot::layout::{HIMEM, RamLayout};
use boot::{Initrd, Kernel, Load, PlanRequest};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: usize = 64 << 20;
static MEM: LazyLock<GuestMemoryMmap> =
    LazyLock::new(|| GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("64 MiB"));

/// Copies what `load` says; false where it does not lie in file and memory.
fn copy(file: &[u8], load: &Load, ram: u64) -> bool {
    let (start, end) = (load.file_offset as usize, (load.file_offset + load.len) as usize);
    let bytes = file.get(start..end).expect("a copy lies in the file");
    assert!(load.guest >= HIMEM && load.guest + load.len <= ram, "a copy lies in memory");
    MEM.write_slice(bytes, GuestAddress(load.guest)).is_ok()
}

fuzz_target!(|file: &[u8]| {
    let Ok(kernel) = Kernel::parse(file) else { return };
    // The last bytes, which no header claims, choose the circumstances.
    let [a, b, c, d] = *file.last_chunk::<4>().unwrap_or(&[0; 4]);
    let size = (u64::from(a % 32) + 1) << 21;
    let initrd_file = vec![b; usize::from(c) << 8];
    let cmdline = "x".repeat(usize::from(d) << 4);
    let preferred_entry = [None, Some(Protocol::Linux64), Some(Protocol::Pvh)][usize::from(b) % 3];
    let initrd = Initrd::parse(&initrd_file[..]).ok();
    let ram = RamLayout::new(size);
    let request = PlanRequest { cmdline: &cmdline, initrd, ram: &ram, preferred_entry };
    let plan = match boot::plan(&kernel, &request) {
        Ok(plan) => plan,
        Err(error) => {
            assert!(error.to_string().ends_with('.'));
            return;
        }
    };
    assert!(plan.kernel.iter().all(|load| copy(file, load, size)));
    assert!(plan.initrd.iter().all(|load| copy(&initrd_file, load, size)));
    let mut ranges: Vec<_> = plan.kernel.iter().chain(&plan.initrd).map(Load::range).collect();
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "copies overlap");
    assert!(plan.kernel.iter().any(|load| load.range().contains(&plan.entry)), "the entry is loaded");
    plan.write_tables(&*MEM, 0xc_0000).expect("the tables lie in memory");
});
