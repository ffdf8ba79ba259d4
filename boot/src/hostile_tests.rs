//! Damaged kernels: each ends in an error or in a plan that copies from inside the file to inside RAM,
//! without overlaps. `MINIVMM_TEST_KERNELS` names real kernels, separated by colons, to damage as well.

use proptest::prelude::*;
use std::ops::Range;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::initrd::Initrd;
use crate::kernel::Kernel;
use crate::layout::{HIMEM, RamLayout};
use crate::plan::{BootPlan, PlanRequest, plan};
use crate::testing::{MIB, bzimage, initrd, put, pvh_elf, tiny_elf};

/// The part of a file with its headers.
const HEADERS: usize = 4096;

fn synthetic() -> [Vec<u8>; 3] {
    [bzimage(), pvh_elf(), tiny_elf()]
}

fn real() -> Vec<Vec<u8>> {
    let paths = std::env::var("MINIVMM_TEST_KERNELS").unwrap_or_default();
    let paths = paths.split(':').filter(|path| !path.is_empty());
    paths.map(|path| std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"))).collect()
}

/// The first megabyte of a guest, and the plan whose tables are in it.
struct Guest {
    mem: GuestMemoryMmap,
    tables_of: Option<BootPlan>,
}

/// Boots `file` as far as this crate does and checks every address; returns whether it would be booted.
fn boots_soundly(file: &[u8], guest: &mut Guest) -> bool {
    let Ok(kernel) = Kernel::parse(file) else { return false };
    let mut last = None;
    for mib in [2, 32, 128, 6144] {
        let ram = RamLayout::new(mib * MIB);
        let initrd = initrd(5000);
        let request =
            PlanRequest { cmdline: "console=ttyS0", initrd: Some(initrd), ram: &ram, preferred_entry: None };
        let Ok(plan) = plan(&kernel, &request) else { continue };
        let mut claimed: Vec<Range<u64>> = Vec::new();
        for load in plan.kernel.iter().chain(&plan.initrd) {
            assert!(load.len > 0 && load.guest >= HIMEM && load.range().end <= ram.low.end, "{load:x?}");
            assert!(claimed.iter().all(|c| c.end <= load.guest || load.range().end <= c.start), "{load:x?}");
            claimed.push(load.range());
        }
        let room = kernel.pref_address()..kernel.pref_address() + kernel.init_size();
        assert!(plan.initrd.is_some_and(|load| load.guest >= room.end && room.end <= ram.low.end));
        assert!(plan.kernel.iter().all(|load| load.file_offset + load.len <= file.len() as u64));
        assert!(plan.kernel.iter().any(|load| load.range().contains(&plan.entry)), "{:x}", plan.entry);
        last = Some(plan);
    }
    // Most damage does not change the plan, so the tables are written only if it does.
    if last.is_some() && last != guest.tables_of {
        last.iter().for_each(|plan| plan.write_tables(&guest.mem, 0xe_0000).unwrap());
        guest.tables_of = last.clone();
    }
    last.is_some()
}

fn guest() -> Guest {
    let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    Guest { mem, tables_of: None }
}

#[test]
fn whole_kernels_boot() {
    let mut guest = guest();
    assert!(synthetic().iter().chain(&real()).all(|file| boots_soundly(file, &mut guest)));
}

#[test]
fn truncated_kernel_never_boots() {
    let mut guest = guest();
    for file in synthetic() {
        for len in 0..whole_len(&file) {
            assert!(!boots_soundly(&file[..len], &mut guest), "{len}");
        }
    }
    for file in real() {
        // A signature may follow the code, and debug sections the segments: cutting those off is no damage.
        let end = whole_len(&file);
        for len in (0..end).step_by(4096).chain([end - 1]) {
            assert!(!boots_soundly(&file[..len], &mut guest), "{len}");
        }
        for len in (end..file.len()).step_by(4096) {
            boots_soundly(&file[..len], &mut guest);
        }
    }
}

/// The shortest complete length: a bzImage may lack padding of its last paragraph.
fn whole_len(file: &[u8]) -> usize {
    let padding = if file.starts_with(b"\x7fELF") { 0 } else { 15 };
    needed_len(file) - padding
}

/// The end of the last byte that is loaded.
fn needed_len(file: &[u8]) -> usize {
    let ram = RamLayout::new(1 << 30);
    let request = PlanRequest { cmdline: "", initrd: None, ram: &ram, preferred_entry: None };
    let plan = plan(&Kernel::parse(file).unwrap(), &request).unwrap();
    usize::try_from(plan.kernel.iter().map(|load| load.file_offset + load.len).max().unwrap()).unwrap()
}

#[test]
fn every_flipped_header_byte_is_survived() {
    let mut guest = guest();
    for mut file in synthetic().into_iter().chain(real()) {
        for at in 0..HEADERS.min(file.len()) {
            let whole = file[at];
            for damaged in [!whole, whole ^ 1, whole ^ 0x80, 0, 0xff, whole.wrapping_add(1), 0x7f] {
                file[at] = damaged;
                boots_soundly(&file, &mut guest);
            }
            file[at] = whole;
        }
    }
}

/// Numbers near which sums overflow and comparisons change.
fn edges() -> impl Strategy<Value = u64> {
    let bits = (0u32..64, -2i64..=2).prop_map(|(bit, near)| (1u64 << bit).wrapping_add_signed(near));
    prop_oneof![any::<u64>(), bits, 0u64..0x3000, (0u64..8).prop_map(|n| n.wrapping_neg())]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1024) })]

    #[test]
    fn rubbish_in_the_fields_is_survived(
        which in 0usize..3,
        damage in prop::collection::vec((0usize..0x280, 1usize..=8, edges()), 1..6),
    ) {
        let mut file = synthetic()[which].clone();
        for (at, len, value) in damage {
            put(&mut file, at, &value.to_le_bytes()[..len]);
        }
        boots_soundly(&file, &mut guest());
    }

    #[test]
    fn any_bytes_are_survived(
        start in prop_oneof![Just(&b"\x7fELF\x02\x01\x01"[..]), Just(&b"MZ"[..]), Just(&b""[..])],
        rest in prop::collection::vec(any::<u8>(), 0..700),
    ) {
        let file = [start, &rest].concat();
        boots_soundly(&file, &mut guest());
        let _ = Initrd::parse(&file[..]);
    }

    #[test]
    fn any_memory_and_initrd_size_is_survived(ram in edges(), initrd_len in edges().prop_map(|len| len.max(1)), which in 0usize..3) {
        let ram = RamLayout::new(ram);
        let kernel = Kernel::parse(&synthetic()[which][..]).unwrap();
        let initrd = Some(initrd(initrd_len));
        if let Ok(plan) = plan(&kernel, &PlanRequest { cmdline: "", initrd, ram: &ram, preferred_entry: None }) {
            let load = plan.initrd.unwrap();
            prop_assert!(load.range().end <= ram.low.end);
            prop_assert!(plan.kernel.iter().all(|k| k.range().end <= load.guest));
        }
    }
}
